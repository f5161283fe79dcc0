"""System checkpoints inside the images (C3, C4): disks' bytes, what is in the way, and failures."""

from __future__ import annotations

import pytest

from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev, drive, listing, messages, throttled, traced, wait_for
from integration.states import unlike_its_checkpoint
from qmpsnap.errors import (
    BadName,
    Busy,
    Changed,
    NotFound,
    NotInChain,
    Refused,
    TargetError,
    TargetExists,
    Unsupported,
)
from qmpsnap.plan.intent import Checkpoint, Delete, Revert

WRITE = (0xA1, 6 * MIB, 64 * KIB)
LATER = (0xA2, 6 * MIB, 32 * KIB)


@pytest.fixture(params=[drive, blockdev], ids=["drive", "blockdev"])
def way(request):
    return request.param


def status(running):
    return running.qmp("query-status")["status"]


RUNS = pytest.mark.parametrize("runs", [False, True], ids=["paused", "running"])
VIAS = pytest.mark.parametrize("via", ["hmp", "jobs"])


@RUNS
@VIAS
async def test_checkpoint_goes_back_ten_times_and_the_guest_stays_as_it_was(
    qemu, images, machine, way, via, runs
):
    one, two = images("base <- s1", folder="a"), images("base", folder="b")
    with machine(*way("vda", one.active), *blockdev("vdb", two.active)) as running:
        if runs:
            running.qmp("cont")
        running.write("vda", *WRITE)
        before = status(running)
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", "internal", via=via))
            with traced(vm) as sent:
                taken = await vm.run(plan)
            assert sent == messages(plan)
            (moment,) = (await vm.moments()).moments
            assert taken.bytes == moment.vm_state_size > 100 * KIB
            assert set(taken.chains) == {"vda", "vdb"}
            assert (taken.standstill_s > 0) is runs
            for number in range(10):
                running.write("vda", number + 1, 6 * MIB, 32 * KIB)
                running.write("vdb", number + 1, 0, 32 * KIB)
                back = await vm.revert("c1", via=via)
                assert (back.op, status(running), back.bytes) == ("revert-internal", before, taken.bytes)
                assert (back.standstill_s > 0) is runs
                running.read("vda", WRITE[0], *WRITE[1:])
            running.write("vda", *LATER)
            gone = await vm.delete("c1", via=via)
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
            await vm.checkpoint("c1", mode="internal")
            (moment,) = (await vm.moments()).moments
            assert (moment.name, moment.kind) == ("c1", "internal")
            assert moment.vm_state_size > 100 * KIB
        running.write("vda", *LATER)
    assert qemu.read_inside(made.active, "c1") == overwritten(content(1), WRITE)


async def test_checkpoint_refuses_what_cannot_be_and_sends_nothing(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("disks", inside=True)
            await vm.checkpoint("c1", mode="internal")
            before = listing(tmp_path), running.roots(), await vm.graph()
            with traced(vm) as sent, pytest.raises(BadName, match="valid snapshot name"):
                await vm.checkpoint('c"1', mode="internal")
            assert sent == []
            cases = {
                "existing": (
                    Checkpoint("c1", "internal"),
                    TargetExists,
                    "there already is an .* snapshot 'c1'",
                ),
                "revert missing": (Revert("nope"), NotFound, "'nope'"),
                "delete missing": (Delete("nope"), NotFound, "'nope'"),
                "disks alone": (Revert("disks"), Unsupported, "only disks"),
            }
            for case, (intent, error, text) in cases.items():
                with traced(vm) as sent, pytest.raises(Refused, match=text) as caught:
                    await vm.run(await vm.plan(intent))
                assert (case, type(caught.value), caught.value.changed) == (case, error, Changed.NO)
                assert sent == []
            assert (listing(tmp_path), running.roots(), await vm.graph()) == before
            await vm.snapshot("ex", disks=["vda"])
            with pytest.raises(NotInChain, match="not inside the active layer of vda"):
                await vm.revert("c1")


async def test_checkpoint_names_a_writable_raw_disk_that_is_in_the_way(qemu, images, machine, tmp_path):
    raw = qemu.create(tmp_path / "r.raw", form="raw")
    with machine(*blockdev("vda", images("base").active), *blockdev("vdr", raw, "raw")) as running:
        async with running.connect() as vm:
            for intent in (Checkpoint("c1", "internal"),):
                with (
                    traced(vm) as sent,
                    pytest.raises(Unsupported, match=r"vdr \(.*r\.raw\) is writable and raw") as caught,
                ):
                    await vm.run(await vm.plan(intent))
                assert (sent, "--leave vdr" in caught.value.hint) == ([], True)


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
                    await vm.checkpoint("c1", mode="internal")
                assert "qcow2 image, or read-only" in caught.value.hint
                return
            taken = await vm.checkpoint("c1", mode="internal")
            assert set(taken.chains) == {"vda", "pflash1"}
            await vm.revert("c1")
            await vm.delete("c1")


@RUNS
async def test_checkpoint_under_a_throttle_goes_by_jobs_and_never_by_the_human_monitor(
    qemu, images, machine, runs
):
    made = images("base <- s1")
    with machine(*throttled("vda", made.active)) as running:
        if runs:
            running.qmp("cont")
        before = status(running)
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(Unsupported, match="throttle 'thr'"):
                await vm.checkpoint("c1", mode="internal", via="hmp")
            assert sent == []
            await vm.checkpoint("c1", mode="internal")
            for number in range(3):
                running.write("vda", number + 1, 6 * MIB, 32 * KIB)
                await vm.revert("c1")
                assert status(running) == before
                running.read("vda", 0, 6 * MIB, 32 * KIB)
            with pytest.raises(Unsupported, match="throttle 'thr'"):
                await vm.revert("c1", via="hmp")
            await vm.delete("c1")
            assert (await vm.moments()).moments == ()
    assert qemu.read(made.active) == content(2)
    qemu.check_chain(*made.chain)


@RUNS
async def test_checkpoint_leaves_a_raw_disk_as_it_is(qemu, images, machine, tmp_path, runs):
    made, raw = images("base"), qemu.create(tmp_path / "r.raw", form="raw")
    with machine(*blockdev("vdr", raw, "raw"), *drive("vda", made.active)) as running:
        if runs:
            running.qmp("cont")
        before = status(running)
        async with running.connect() as vm:
            with pytest.raises(Unsupported, match="every writable disk, also vdr"):
                await vm.checkpoint("c1", mode="internal", leave=["vdr"], via="hmp")
            taken = await vm.checkpoint("c1", mode="internal", leave=["vdr"])
            assert (set(taken.chains), taken.notes) == ({"vda"}, ("left out: vdr",))
            running.write("vda", *WRITE)
            running.write("vdr", *LATER)
            with pytest.raises(Unsupported, match="vdr"):
                await vm.revert("c1")
            back = await vm.revert("c1", leave=[raw])
            assert (back.notes[0], status(running)) == ("left out: vdr", before)
            assert any("TCG" in one for one in back.notes) is (before != "running")
            running.read("vda", 0, WRITE[1], LATER[2])
            running.read("vdr", *LATER)
            plan = await vm.plan(Delete("c1"))
            assert [step.command for step in plan.steps][:1] == ["snapshot-delete"]
            await vm.run(plan)
            assert (await vm.moments()).moments == ()
    assert qemu.read(made.active) == content(1)


async def test_revert_leaves_a_disk_that_was_added_later_only_when_it_is_named(qemu, images, machine):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", one.active)) as running:
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="internal")
    with machine(*blockdev("vda", one.active), *blockdev("vdb", two.active)) as running:
        running.write("vdb", *WRITE)
        async with running.connect() as vm:
            with pytest.raises(NotInChain, match="not inside the active layer of vdb") as caught:
                await vm.revert("c1")
            assert "--leave vdb" in caught.value.hint


@VIAS
async def test_checkpoint_refuses_where_qemu_has_given_its_images_up(qemu, images, machine, tmp_path, via):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="internal")
            await vm.snapshot("disks", inside=True)
            running.qmp("migrate", uri=f"exec:cat > {tmp_path / 'memory'}")
            wait_for(lambda: status(running) == "postmigrate", "the migration")  # it is completed before
            for intent in (Checkpoint("c2", "internal", via=via), Revert("c1", via=via),
                           Delete("c1", via=via), Delete("c1"), Delete("disks")):  # fmt: skip
                with traced(vm) as sent, pytest.raises(Unsupported, match="deactivated its images") as caught:
                    await vm.run(await vm.plan(intent))
                assert sent == []
                assert "resume it first: qmpsnap cont --after-migration resumes" in caught.value.hint
            running.qmp("cont")
            await vm.checkpoint("c2", mode="internal", via=via)
    (tmp_path / "memory").unlink()


@VIAS
async def test_checkpoint_waits_for_a_job_when_it_is_asked_to_and_not_for_one_that_is_ready(
    qemu, images, machine, tmp_path, via
):
    copy = qemu.create(tmp_path / "copy.qcow2")
    with machine(*blockdev("vda", images("base <- s1").active)) as running:
        async with running.connect() as vm:
            running.qmp("block-stream", {"job-id": "theirs", "device": "vda-node", "speed": 1024})
            with pytest.raises(Busy, match="'theirs'"):
                await vm.checkpoint("c1", mode="internal", via=via)
            running.qmp("block-job-set-speed", device="theirs", speed=MIB)
            taken = await vm.checkpoint("c1", mode="internal", via=via, wait=True)
            assert taken.bytes
            assert running.qmp("query-jobs") == []
            running.qmp("drive-mirror", {"job-id": "theirs", "device": "vda-node", "target": copy,
                                         "format": "qcow2", "sync": "full", "mode": "existing"})  # fmt: skip
            with pytest.raises(Busy, match="'theirs'"):
                await vm.checkpoint("c2", mode="internal", via=via, wait=True)
        running.qmp("block-job-cancel", device="theirs")
        running.qmp.wait_event("BLOCK_JOB_COMPLETED")


async def test_checkpoint_names_a_node_without_use_that_is_in_the_way(qemu, images, machine, tmp_path):
    made, spare = images("base <- s1"), qemu.create(tmp_path / "spare.qcow2")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("blockdev-add", {"driver": "qcow2", "node-name": "leak",
                                     "file": {"driver": "file", "filename": spare}})  # fmt: skip
        async with running.connect() as vm:
            with pytest.raises(Busy, match="'leak'") as caught:
                await vm.checkpoint("c1", mode="internal")
            assert caught.value.hint == (
                'remove it first (qmpsnap qmp blockdev-del \'{"node-name": "leak"}\'), '
                "or use jobs: --via jobs"
            )
            await vm.checkpoint("by-jobs", mode="internal", via="jobs")
            assert running.qmp("query-jobs") == []
            running.qmp("blockdev-del", {"node-name": "leak"})
            running.qmp("blockdev-add", driver="file", **{"node-name": "bare"}, filename=spare)
            with pytest.raises(Busy, match="'bare'"):
                await vm.checkpoint("c1", mode="internal")
            running.qmp("blockdev-del", {"node-name": "bare"})
            await vm.checkpoint("c1", mode="internal")


async def test_checkpoint_refuses_while_a_job_runs(qemu, images, machine, tmp_path):
    copy = qemu.create(tmp_path / "copy.qcow2")
    with machine(*blockdev("vda", images("base").active)) as running:
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="internal")
            running.qmp("drive-mirror", {"job-id": "theirs", "device": "vda-node", "target": copy,
                                         "format": "qcow2", "sync": "full", "mode": "existing"})  # fmt: skip
            running.qmp.wait_event("BLOCK_JOB_READY")
            for intent in (Checkpoint("c2", "internal"), Revert("c1"), Delete("c1")):
                with traced(vm) as sent, pytest.raises(Busy, match="'theirs'"):
                    await vm.run(await vm.plan(intent))
                assert sent == []
        running.qmp("block-job-cancel", device="theirs")
        running.qmp.wait_event("BLOCK_JOB_COMPLETED")


@RUNS
@VIAS
async def test_revert_that_fails_before_the_disks_move_leaves_the_guest_as_it_was(images, machine, via, runs):
    with machine(*blockdev("vda", images("base").active)) as running:
        if runs:
            running.qmp("cont")
        before = status(running)
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="internal")
            plan = await vm.plan(Revert("c1", via=via))

            perform = vm._target.perform

            async def late(step):
                if step.way in {"loadvm", "snapshot-load"}:
                    running.qmp.hmp("delvm c1")
                return await perform(step)

            vm._target.perform = late
            with pytest.raises(TargetError, match="does not exist") as caught:
                await vm.run(plan)
            vm._target.perform = perform
            assert caught.value.changed is Changed.YES  # somebody else did: the checkpoint is gone
            assert await vm.jobs.interrupted() == ()
        assert (status(running), caught.value.exit_code) == (before, 4)


@VIAS
async def test_revert_that_fails_half_way_leaves_the_guest_standing_and_says_so(qemu, images, machine, via):
    made = images("base")
    with unlike_its_checkpoint(machine, made.active) as running:
        async with running.connect() as vm:
            await vm.checkpoint("c2", mode="internal")
            running.write("vda", *WRITE)
            with pytest.raises(TargetError) as caught:
                await vm.revert("c1", via=via)
            assert (caught.value.changed, caught.value.exit_code) == (Changed.YES, 4)
            assert "cannot be trusted" in caught.value.message + caught.value.hint
            assert "system_reset" in caught.value.hint
            assert status(running) == "restore-vm"
            assert [one.name for one in (await vm.moments()).moments] == ["c1", "c2"]
            assert await vm.jobs.interrupted() == ()
            await vm.revert("c2", via=via)
            assert status(running) == "running"
    assert qemu.read(made.active) == content(1)


@VIAS
async def test_checkpoint_without_room_takes_nothing_and_the_guest_runs_on(qemu, machine, small, via):
    place = small("4500k")
    file = qemu.create(place / "vda.qcow2")
    with machine(*blockdev("vda", file)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            running.write("vda", 1, 0, 4 * MIB)
            with pytest.raises(TargetError) as caught:
                await vm.checkpoint("c1", mode="internal", via=via)
            assert (caught.value.changed, status(running)) == (Changed.NO, "running")
            assert (await vm.moments()).moments == ()
    qemu.check(file)


@VIAS
async def test_checkpoint_is_refused_when_a_job_begins_after_the_look_at_jobs(
    qemu, images, machine, tmp_path, via
):
    copy, made = qemu.create(tmp_path / "copy.qcow2"), images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            look_each = vm._target.look_each

            async def begun(asks, graph):
                if not running.qmp("query-jobs"):
                    names = {"job-id": "theirs", "device": "vda-node", "target": copy}
                    running.qmp("drive-mirror", names, format="qcow2", sync="full", mode="existing")
                return await look_each(asks, graph)

            vm._target.look_each = begun
            with traced(vm) as sent, pytest.raises(Busy, match="'theirs'") as caught:
                await vm.checkpoint("c1", mode="internal", via=via)
            assert (caught.value.changed, sent) == (Changed.NO, [])
        running.qmp.wait_event("BLOCK_JOB_READY")
        running.qmp("block-job-cancel", device="theirs")
        running.qmp.wait_event("BLOCK_JOB_COMPLETED")
    assert [qemu.inside(made.active), qemu.inside(copy)] == [[], []]
