"""A client that died between a load that failed and its `cont`, and QEMU that died between two disks."""

from __future__ import annotations

import pytest

from integration.known_images import KIB, MIB, content
from integration.machines import blockdev, wait_for
from integration.states import unlike_its_checkpoint
from integration.test_kill import end
from qmpsnap.errors import Changed, JobFailed
from qmpsnap.plan.intent import Checkpoint, Revert

WRITE = (0xA1, 6 * MIB, 64 * KIB)
RUNS = pytest.mark.parametrize("runs", [False, True], ids=["paused", "running"])
VIAS = pytest.mark.parametrize("via", ["hmp", "jobs"])


def status(running):
    return running.qmp("query-status")["status"]


async def write_down(vm, intent):
    """Do what is done before the one step that changes something; return that step."""
    plan = await vm.plan(intent)
    await vm._target.perform(plan.steps[0])
    return plan.steps[1]


def send(running, step):
    """Do the step as QEMU does it for a client that is gone."""
    running.qmp(step.command, step.arguments)
    wait_for(
        lambda: all(job["status"] == "concluded" for job in running.qmp("query-jobs")), "the end of the job"
    )


@RUNS
@VIAS
async def test_guest_that_a_failed_load_left_standing_for_nothing_runs_on(images, machine, via, runs):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        if runs:
            running.qmp("cont")
        before = status(running)
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="internal")
            step = await write_down(vm, Revert("c1", via=via))
        running.qmp.hmp("delvm c1")
        send(running, step)
        assert status(running) == ("restore-vm" if runs else before)
        async with running.connect() as vm:
            result = await end(vm)
            if via == "jobs":
                assert (type(result), result.changed) == (JobFailed, Changed.NO)
            else:  # a guest that was paused before shows nothing
                assert (result.ended, result.changed) == (
                    ("rolled-back", False) if runs else ("unknown", True)
                )
            assert (status(running), await vm.jobs.interrupted(), await vm.jobs.list()) == (before, (), ())


@VIAS
async def test_guest_that_a_load_left_half_way_is_left_standing_and_that_is_said(images, machine, qemu, via):
    made = images("base")
    with unlike_its_checkpoint(machine, made.active) as running:
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            step = await write_down(vm, Revert("c1", via=via))
        send(running, step)
        async with running.connect() as vm:
            failed = await end(vm)
            assert failed.changed is Changed.YES
            assert "cannot be trusted" in failed.message + failed.hint
            assert (status(running), await vm.jobs.interrupted(), await vm.jobs.list()) == (
                "restore-vm",
                (),
                (),
            )
    assert qemu.read(made.active) == content(1)


async def test_guest_that_somebody_paused_after_the_client_died_stays_paused(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="internal")
            send(running, await write_down(vm, Revert("c1")))
        running.qmp("stop")
        running.qmp.hmp("delvm c1")
        async with running.connect() as vm:
            assert (await end(vm)).ended == "unknown"
            assert (status(running), await vm.jobs.interrupted()) == ("paused", ())


@pytest.mark.parametrize("on", [(), ("vda",), ("vdb",), ("vda", "vdb")], ids="+".join)
async def test_checkpoint_on_some_disks_alone_is_taken_from_those(images, machine, qemu, on):
    made = {name: images("base", folder=name) for name in ("vda", "vdb")}
    disks = sum((blockdev(name, one.active) for name, one in made.items()), ())
    with machine(*disks) as running:
        async with running.connect() as vm:
            await write_down(vm, Checkpoint("c1", "internal"))
        running.kill()
    for name in on:  # as QEMU leaves it that is killed between two disks
        qemu.img("snapshot", "-c", "c1", made[name].active)
    with machine(*disks) as running:
        async with running.connect() as vm:
            assert (await end(vm)).ended == ("finished" if len(on) == 2 else "rolled-back")
            listed = {disk for one in (await vm.moments()).moments for disk in one.disks}
            assert listed == (set(on) if len(on) == 2 else set())
            assert await vm.jobs.interrupted() == ()
    for one in made.values():
        qemu.check(one.active)
        assert qemu.read(one.active) == content(1)
