"""System checkpoints inside the images (C3): disks' bytes, memory, what is in the way, and failures."""

from __future__ import annotations

import pytest

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev, drive, listing, messages, throttled, traced
from qmpsnap.errors import (
    BadName,
    Changed,
    CommandFailed,
    NodeBusy,
    NotInChain,
    Refused,
    TargetExists,
    UnknownNode,
    Unsupported,
)
from qmpsnap.plan.intent import CheckpointInternal, DeleteCheckpoint, RevertInternal
from qmpsnap.testing.guest import open_guest
from qmpsnap.testing.machine import GuestDisk, find_guest_image, guest_argv

WRITE = (0xA1, 6 * MIB, 64 * KIB)
LATER = (0xA2, 6 * MIB, 32 * KIB)


@pytest.fixture(params=[drive, blockdev], ids=["drive", "blockdev"])
def way(request):
    return request.param


def status(running):
    return running.qmp("query-status")["status"]


@pytest.mark.parametrize("runs", [False, True], ids=["paused", "running"])
async def test_checkpoint_goes_back_ten_times_and_the_guest_stays_as_it_was(qemu, images, machine, way, runs):
    one, two = images("base <- s1", folder="a"), images("base", folder="b")
    with machine(*way("vda", one.active), *blockdev("vdb", two.active)) as running:
        if runs:
            running.qmp("cont")
        running.write("vda", *WRITE)
        before = status(running)
        async with running.connect() as vm:
            plan = await vm.plan(CheckpointInternal("c1"))
            with traced(vm) as sent:
                taken = await vm.run(plan)
            assert sent == messages(plan)
            assert set(taken.chains) == {"vda", "vdb"}
            assert (taken.standstill_s > 0) is runs
            for number in range(10):
                running.write("vda", number + 1, 6 * MIB, 32 * KIB)
                running.write("vdb", number + 1, 0, 32 * KIB)
                back = await vm.revert_internal("c1")
                assert (back.op, status(running)) == ("revert-internal", before)
                assert (back.standstill_s > 0) is runs
                running.read("vda", WRITE[0], *WRITE[1:])
            running.write("vda", *LATER)
            gone = await vm.delete_checkpoint("c1")
            assert gone.chains == taken.chains
            assert (await vm.moments()).moments == ()
    assert qemu.read(one.active) == overwritten(content(2), WRITE, LATER)
    assert qemu.read(two.active) == content(1)
    qemu.check_chain(*one.chain)
    qemu.check(two.active)


async def test_checkpoint_is_listed_with_its_state_and_reads_its_disks(qemu, images, machine):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            await vm.checkpoint_internal("c1")
            (moment,) = (await vm.moments()).moments
            assert (moment.name, moment.kind) == ("c1", "internal")
            assert moment.vm_state_size > 100 * KIB
        running.write("vda", *LATER)
    assert qemu.read_inside(made.active, "c1") == overwritten(content(1), WRITE)


async def test_checkpoint_refuses_what_cannot_be_and_sends_nothing(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot_internal("disks")
            await vm.checkpoint_internal("c1")
            before = listing(tmp_path), running.roots(), await vm.graph()
            cases = {
                "bad name": (CheckpointInternal('c"1'), BadName, "name for a snapshot"),
                "existing": (CheckpointInternal("c1"), TargetExists, "'c1' already"),
                "revert missing": (RevertInternal("nope"), UnknownNode, "'nope'"),
                "delete missing": (DeleteCheckpoint("nope"), UnknownNode, "'nope'"),
                "disks alone": (RevertInternal("disks"), Unsupported, "holds disks alone"),
            }
            for case, (intent, error, text) in cases.items():
                with traced(vm) as sent, pytest.raises(Refused, match=text) as caught:
                    await vm.run(await vm.plan(intent))
                assert (case, type(caught.value), caught.value.changed) == (case, error, Changed.NO)
                assert sent == []
            assert (listing(tmp_path), running.roots(), await vm.graph()) == before
            await vm.snapshot("ex", disks=["vda"])
            with pytest.raises(NotInChain, match="not inside the active layer of vda"):
                await vm.revert_internal("c1")


async def test_checkpoint_names_a_writable_raw_disk_that_is_in_the_way(qemu, images, machine, tmp_path):
    raw = qemu.create(tmp_path / "r.raw", form="raw")
    with machine(*blockdev("vda", images("base").active), *blockdev("vdr", raw, "raw")) as running:
        async with running.connect() as vm:
            for intent in (CheckpointInternal("c1"),):
                with (
                    traced(vm) as sent,
                    pytest.raises(Unsupported, match=r"vdr \(.*r\.raw\) is writable and raw"),
                ):
                    await vm.run(await vm.plan(intent))
                assert sent == []


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_checkpoint_with_uefi_variables(qemu, images, machine, tmp_path, form):
    made = images("base")
    code, variables = (
        qemu.create(tmp_path / name, form=form, size=size)
        for name, size in (("code", 2 * MIB), ("vars", MIB))
    )
    flash = [
        "-drive", f"if=pflash,unit=0,format={form},readonly=on,file={code}",
        "-drive", f"if=pflash,unit=1,format={form},file={variables}",
    ]  # fmt: skip
    with machine(*blockdev("vda", made.active), *flash) as running:
        async with running.connect() as vm:
            if form == "raw":
                with pytest.raises(Unsupported, match="pflash1") as caught:
                    await vm.checkpoint_internal("c1")
                assert "qcow2 image, or read-only" in caught.value.hint
                return
            taken = await vm.checkpoint_internal("c1")
            assert set(taken.chains) == {"vda", "pflash1"}
            await vm.revert_internal("c1")
            await vm.delete_checkpoint("c1")


async def test_checkpoint_refuses_under_a_throttle(images, machine):
    with machine(*throttled("vda", images("base").active)) as running:
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(Unsupported, match="throttle 'thr'"):
                await vm.checkpoint_internal("c1")
            assert sent == []


async def test_checkpoint_names_a_node_without_use_that_is_in_the_way(qemu, images, machine, tmp_path):
    made, spare = images("base <- s1"), qemu.create(tmp_path / "spare.qcow2")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("blockdev-add", {"driver": "qcow2", "node-name": "leak",
                                     "file": {"driver": "file", "filename": spare}})  # fmt: skip
        async with running.connect() as vm:
            with pytest.raises(NodeBusy, match="'leak'") as caught:
                await vm.checkpoint_internal("c1")
            assert caught.value.hint == "free it first: blockdev-del leak"
            running.qmp("blockdev-del", {"node-name": "leak"})
            running.qmp("blockdev-add", driver="file", **{"node-name": "bare"}, filename=spare)
            with pytest.raises(NodeBusy, match="'bare'"):
                await vm.checkpoint_internal("c1")
            running.qmp("blockdev-del", {"node-name": "bare"})
            await vm.checkpoint_internal("c1")


async def test_checkpoint_refuses_while_a_job_runs(qemu, images, machine, tmp_path):
    copy = qemu.create(tmp_path / "copy.qcow2")
    with machine(*blockdev("vda", images("base").active)) as running:
        async with running.connect() as vm:
            await vm.checkpoint_internal("c1")
            running.qmp("drive-mirror", {"job-id": "theirs", "device": "vda-node", "target": copy,
                                         "format": "qcow2", "sync": "full", "mode": "existing"})  # fmt: skip
            running.qmp.wait_event("BLOCK_JOB_READY")
            for intent in (CheckpointInternal("c2"), RevertInternal("c1"), DeleteCheckpoint("c1")):
                with traced(vm) as sent, pytest.raises(NodeBusy, match="'theirs'"):
                    await vm.run(await vm.plan(intent))
                assert sent == []
        running.qmp("block-job-cancel", device="theirs")
        running.qmp.wait_event("BLOCK_JOB_COMPLETED")


async def test_revert_that_fails_before_the_disks_move_lets_the_guest_run_on(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint_internal("c1")
            plan = await vm.plan(RevertInternal("c1"))

            perform = vm._target.perform

            async def late(step):
                running.qmp.hmp("delvm c1")
                return await perform(step)

            vm._target.perform = late
            with pytest.raises(CommandFailed, match="does not exist") as caught:
                await vm.run(plan)
            vm._target.perform = perform
        assert (status(running), caught.value.exit_code) == ("running", 4)


async def test_revert_that_fails_half_way_leaves_the_guest_standing_and_says_so(qemu, images, machine):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.checkpoint_internal("c1")
    with machine(*blockdev("vda", made.active), extra=("-m", "96")) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            with pytest.raises(CommandFailed, match="not to be trusted") as caught:
                await vm.revert_internal("c1")
            assert (caught.value.changed, caught.value.exit_code) == (Changed.YES, 4)
            assert "system_reset" in caught.value.hint
            assert status(running) == "restore-vm"
            assert [one.name for one in (await vm.moments()).moments] == ["c1"]
    assert qemu.read(made.active) == content(1)


async def test_checkpoint_without_room_takes_nothing_and_the_guest_runs_on(qemu, images, machine, small):
    place = small("4500k")
    file = qemu.create(place / "vda.qcow2")
    with machine(*blockdev("vda", file)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            running.write("vda", 1, 0, 4 * MIB)
            with pytest.raises(CommandFailed) as caught:
                await vm.checkpoint_internal("c1")
            assert (caught.value.changed, status(running)) == (Changed.NO, "running")
            assert (await vm.moments()).moments == ()
    qemu.check(file)


# -- memory ----------------------------------------------------------------------------------------


async def test_guest_goes_back_ten_times_with_memory_and_both_disks_at_one_count(qemu, tmp_path):
    files = [tmp_path / name for name in ("vda.qcow2", "vdb.qcow2")]
    for file in files:
        qemu.create(file)
    argv = guest_argv(
        qemu.system,
        [GuestDisk(name=file.stem, file=file) for file in files],
        image=find_guest_image(),
        port=tmp_path / "port",
    )
    async with (
        qmpsnap.launch(argv, qemu_img=str(qemu.directory / "qemu-img")) as vm,
        open_guest(tmp_path / "port") as guest,
    ):
        disks = [await guest.device(file.stem) for file in files]

        async def count(number):
            writes = "; ".join(
                f"printf %-512s {number} | dd of={disk} bs=512 oflag=direct conv=notrunc 2> /dev/null"
                for disk in disks
            )
            await guest.run(f"echo {number} > /run/count; {writes}")

        async def counts():
            reads = "; ".join(f"dd if={disk} bs=512 count=1 iflag=direct 2> /dev/null" for disk in disks)
            return (await guest.run(f"cat /run/count; {reads}")).split()

        await count(7)
        taken = await vm.checkpoint_internal("c1")
        assert 0 < taken.standstill_s < taken.elapsed_s
        for number in range(10):
            await count(100 + number)
            assert set(await counts()) == {str(100 + number)}
            await vm.revert_internal("c1")
            assert await counts() == ["7", "7", "7"]
        await vm.delete_checkpoint("c1")
        await guest.poweroff()
    for file in files:
        qemu.check(file)
