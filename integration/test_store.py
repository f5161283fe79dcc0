"""The store of a checkpoint, made by a helper QEMU: complete under its name, or nothing of it is there."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import anyio
import pytest

from integration.cli import Cli
from integration.helpers import launcher
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import CHEAP, blockdev, listing, throttled
from integration.processes import until_ended
from integration.states import fill, status
from integration.test_kill import give
from qmpsnap.errors import ConnectFailed, JobFailed, MachineDiffers
from qmpsnap.plan.intent import Checkpoint, MakeStore
from qmpsnap.plan.vmstate.store import conversion

WRITE, LATER, LAST = ((number, 6 * MIB, 64 * KIB) for number in (0xA1, 0xA2, 0xA3))
IN_PLACE = "'c1' reverts in place: its memory is in a store"


@pytest.fixture
def two(images):
    return images("base <- s1", folder="a"), images("base", folder="b", base_format="raw")


def disks(two):
    vda, vdb = two
    return (*throttled("vda", vda.active), *blockdev("vdb", vdb.active, "raw"))


async def kept(vm):
    """How each checkpoint reverts, and the last part of the file's name."""
    return {
        moment.name: (moment.mode, Path(moment.vm_state_file).name.removeprefix("base."))
        for moment in (await vm.moments()).moments
    }


def states(running):
    """Names of the files of VM state, complete or not."""
    names = [Path(name).name.removeprefix("base.") for name in listing(running.folder)]
    return [name for name in names if ".memory" in name or ".vmstate" in name]


async def test_background_checkpoint_with_a_store_reverts_in_place_and_elsewhere(qemu, two, machine):
    """A disk under a throttle and a raw one; with other snapshots on top; again and again; then deleted."""
    (vda, _) = two
    with machine(*disks(two)) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        running.write("vdb", *WRITE)
        async with running.connect() as vm:
            vm.launcher = launcher(qemu)
            taken = await vm.checkpoint("c1", mode="background")
            assert taken.notes[-1] == IN_PLACE
            assert 0 < taken.standstill_s < taken.elapsed_s
            assert (await kept(vm), states(running)) == (
                {"c1": ("in-place", "c1.vmstate.qcow2")},
                ["c1.vmstate.qcow2"],
            )
            await vm.snapshot("on-top")
            for _ in range(3):
                for disk in ("vda", "vdb"):
                    running.write(disk, *LATER)
                back = await vm.revert("c1")
                assert status(running) == "running"
                for disk in ("vda", "vdb"):
                    running.read(disk, *WRITE)
            running.write("vda", *LAST)
            async with vm.reverted("c1") as new:
                assert (await new.status()).running
                files = (await new.graph()).chains()
            await vm.delete("c1")
            assert states(running) == []
    then = overwritten(content(2), WRITE)
    assert qemu.read(vda.active) == then
    assert qemu.read(back.active["vda"]) == overwritten(then, LAST)
    assert qemu.read(files["vda"][0]) == then
    for chain in (*back.chains.values(), *files.values()):
        qemu.check_chain(*chain)


async def test_store_that_cannot_be_made_leaves_the_checkpoint_as_it_was(qemu, two, machine, small):
    place = small("300m", "place")
    full = []

    def dies(helper, step, _):
        if step.command == "blockdev-add":
            os.kill(helper.pid, signal.SIGKILL)

    def fills(_, step, __):
        if step.command == "create-store":
            full.append(fill(place, 320 * KIB))

    def fails(_):
        raise FileNotFoundError("no such QEMU")

    cases = [
        (
            launcher(qemu, at=dies),
            ConnectFailed,
            "the helper QEMU ended before the store of 'c1' was complete",
        ),
        (launcher(qemu, at=fills), JobFailed, "No space left on device|Input/output error"),
        (launcher(qemu, "-m", "96"), MachineDiffers, "bytes of memory"),
        (launcher(qemu, "-nosuch"), ConnectFailed, "nosuch"),
        (fails, FileNotFoundError, "no such QEMU"),
    ]
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            done = await vm.checkpoint("c1", mode="background", memory=place / "m", launcher=fails)
            assert done.notes[-1].startswith(
                "'c1' reverts in a new QEMU: the launcher has failed: FileNotFoundError: no such QEMU; "
            )
            before = listing(running.folder)
            for launch, error, text in cases:
                with pytest.raises(error, match=text):
                    await vm.make_store("c1", launcher=launch)
                for file in full:
                    file.unlink(missing_ok=True)
                assert (listing(running.folder), status(running)) == (before, "running")
                assert await vm.jobs.interrupted() == ()
            await vm.make_store("c1", launcher=launcher(qemu))
            assert (await kept(vm))["c1"] == ("in-place", "m.vmstate.qcow2")
            await vm.revert("c1")


async def test_store_is_complete_or_not_there_when_its_call_is_cancelled(qemu, two, machine):
    """Before the helper writes it as after a failure; from then on it is finished."""
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            vm.launcher = None
            await vm.checkpoint("c1", mode="background")
            for command, whole in (
                ("migrate-incoming", False),
                ("create-store", False),
                ("snapshot-save", True),
            ):
                with anyio.CancelScope() as scope:

                    def cancels(_, step, __, command=command, scope=scope):
                        if step.command == command:
                            scope.cancel()

                    await vm.make_store("c1", launcher=launcher(qemu, at=cancels))
                assert scope.cancelled_caught
                assert states(running) == ["c1.vmstate.qcow2" if whole else "c1.memory"]
                assert await vm.jobs.interrupted() == ()
            await vm.revert("c1")


async def test_killed_client_leaves_a_valid_checkpoint_and_the_next_call_its_store(
    qemu, two, machine, tmp_path, everything
):
    """kill -9 after every second step, on other QEMUs than the first every fifth; the helper dies, too."""
    step = 1 if everything else 2 if qemu.short == "7.2" else 5
    found = []
    with machine(*disks(two)) as running:
        running.qmp("cont")
        for point in range(step - 1, 40, step):
            name = f"c{point}"
            running.write("vda", point + 1, 6 * MIB, 64 * KIB)
            async with running.connect() as vm:
                await vm.checkpoint(name, mode="background")
            ended = give(socket=running.socket, qemu=qemu.version, store=name, point=point)
            until_ended(running, tmp_path)
            async with running.connect() as vm:
                mode, file = (await kept(vm))[name]
                assert file in states(running)
                left = await vm.jobs.interrupted()
                assert {record.op for record in left} <= {"store"}
                if mode == "background" and len(found) % 4 == 3:
                    await vm.delete(name)
                    for record in left:
                        await vm.jobs.wait(record.id)
                    assert states(running) == []
                    found.append("deleted")
                    continue
                if mode == "background":
                    await vm.make_store(name, launcher=launcher(qemu))
                for record in await vm.jobs.interrupted():
                    await vm.jobs.wait(record.id)
                assert states(running) == [f"{name}.vmstate.qcow2"]
                running.write("vda", 0xEE, 6 * MIB, 64 * KIB)
                await vm.revert(name)
                running.read("vda", point + 1, 6 * MIB, 64 * KIB)
                await vm.delete(name)
            if ended == 0:
                break
            assert ended == -9
            found.append(mode)
    assert len(found) * step > 12
    assert "background" in found
    assert "in-place" in found or step > 2


async def test_conversion_is_planned_as_n_shows_it_before_the_checkpoint(two, machine):
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", "background", store=True))
            shown = str(conversion(plan))
            await vm.run(plan)
            assert str(await vm.plan(MakeStore("c1"))) == shown


_SCRIPT = """#!/bin/sh
exec qemu-system-x86_64 {cheap} \\
    -blockdev "qcow2,node-name=a,file.driver=file,file.filename=$QMPSNAP_DISK_vda" \\
    -device virtio-blk-pci,drive=a,id=vda "$@"
"""


def test_command_line_makes_a_store_by_a_script_that_starts_a_helper(images, machine, tmp_path):
    script = tmp_path / "start vm1"
    script.write_text(_SCRIPT.format(cheap=shlex.join(CHEAP)))
    script.chmod(0o700)
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        command, launches = Cli(running), ("--launcher", f"'{script}'")
        plan = command("--json", "checkpoint", "c1", "--mode", "background", *launches, "-n").json["plan"]
        assert [step["command"] for step in plan["then"]] == [
            *("start-helper", "write-record", "create-store"),
            *("blockdev-add", "snapshot-save", "await-job", "job-dismiss", "blockdev-del"),
            *("seal-store", "keep-store", "finish-record"),
        ]
        assert "'c1' reverts in place" in command("checkpoint", "c1", "--mode", "background", *launches).out
        taken = command("checkpoint", "c2", "--mode", "background")
        assert "qmpsnap checkpoint --convert c2 --launcher COMMAND" in taken.out
        refused = command("revert", "c2")
        assert (refused.code, "--convert c2 --launcher COMMAND" in refused.err) == (3, True)
        planned = command("checkpoint", "--convert", "c2", *launches, "-n")
        assert [word for word in ("create-store", "snapshot-save", "keep-store") if word in planned.out] == [
            *("create-store", "snapshot-save", "keep-store")
        ]
        assert states(running) == ["c1.vmstate.qcow2", "c2.memory"]
        made = command("--json", "checkpoint", "--convert", "c2", *launches)
        assert (made.code, made.json["op"], made.json["changed"]) == (0, "store", True)
        assert states(running) == ["c1.vmstate.qcow2", "c2.vmstate.qcow2"]
        assert command("revert", "c2").code == 0
