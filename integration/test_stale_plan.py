"""A plan that is kept, and run after something has changed: refused before anything is sent (two QEMUs)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from integration.known_images import content
from integration.machines import blockdev, listing, traced, wait_for
from qmpsnap import Hooks
from qmpsnap.errors import Busy, Changed, CommandFailed, FileMoved, Incomplete, StillNeeded
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Delete,
    Mirror,
    Revert,
    Save,
    Snapshot,
    Stream,
)

VERBS = {
    "snapshot": lambda _: Snapshot("n1"),
    "snapshot-internal": lambda _: Snapshot("n1", inside=True),
    "stream": lambda _: Stream("vda"),
    "commit": lambda _: Commit("vda", discard_internal=True),
    "commit between": lambda _: Commit("vda", top="s1", base="base"),
    "mirror": lambda folder: Mirror("vda", str(folder / "copy.qcow2"), "finish"),
    "checkpoint": lambda _: Checkpoint("n1"),
    "checkpoint in place": lambda _: Checkpoint("n1", "in-place"),
    "checkpoint internal": lambda _: Checkpoint("n1", "internal"),
    "save": lambda folder: Save(str(folder / "memory")),
    "revert": lambda _: Revert("kept"),
    "delete": lambda _: Delete("inside"),
}
CHAIN = "base <- s1 <- s2"


async def planned(vm, running, folder):
    """A plan of each verb, on a machine that has snapshots of both kinds."""
    running.qmp("cont")
    await vm.snapshot("kept")
    await vm.snapshot("inside", inside=True)
    return {name: await vm.plan(intent(folder)) for name, intent in VERBS.items()}


async def refuses_all(vm, running, plans, error, text):
    """Demand that each plan is refused by that error, and that nothing is sent, made or changed."""
    before = listing(running.folder), running.roots()
    for name, plan in plans.items():
        with traced(vm) as sent, pytest.raises(error, match=text) as caught:
            await vm.run(plan)
        assert (name, caught.value.changed, sent) == (name, Changed.NO, [])
        assert caught.value.hint
    assert (listing(running.folder), running.roots()) == before


async def test_plan_is_refused_once_a_migration_has_begun(images, machine, tmp_path):
    disks = blockdev("vda", images(CHAIN).active)
    with machine(*disks, "-incoming", f"unix:{tmp_path / 'way'}") as there, machine(*disks) as here:
        async with here.connect() as vm:
            plans = await planned(vm, here, tmp_path)
            here.qmp("migrate-set-parameters", {"max-bandwidth": 20_000})
            os.kill(there.pid, signal.SIGSTOP)  # it reads nothing: the migration does not end
            here.qmp("migrate", uri=f"unix:{tmp_path / 'way'}")
            wait_for(lambda: here.qmp("query-migrate").get("status") == "active", "the migration")
            await refuses_all(vm, here, plans, Busy, "a migration is running")
        there.kill()


@pytest.mark.parametrize("replaced", [False, True], ids=["moved", "replaced"])
async def test_plan_is_refused_once_a_layer_was_moved_or_replaced(images, machine, tmp_path, replaced):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            plans = await planned(vm, running, tmp_path)
            file, other = Path(made.files[1]), tmp_path / "elsewhere"
            file.rename(other)
            if replaced:
                file.write_bytes(other.read_bytes())
            del plans["delete"], plans["mirror"]  # these name no layer, and read what QEMU has open
            await refuses_all(vm, running, plans, FileMoved, "is not the file|was moved")
            other.rename(file)
            await vm.run(plans["snapshot"])


async def test_commit_is_refused_once_another_image_is_backed_by_its_base(qemu, images, machine, tmp_path):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            plans = {name: await vm.plan(VERBS[name](tmp_path)) for name in ("commit", "commit between")}
            other = qemu.create(tmp_path / "other.qcow2", backing=made.files[0])
            await refuses_all(vm, running, plans, StillNeeded, "other.qcow2")
            assert qemu.read(other) == content(1)
            Path(other).unlink()
            assert (await vm.run(plans["commit between"])).chains["vda"][1:] == (made.files[0],)


@pytest.mark.parametrize("folded", ["rename", "remove"])
async def test_commit_puts_no_file_away_on_which_an_image_was_made_meanwhile(
    qemu, images, machine, tmp_path, folded
):
    made = images(CHAIN)
    base, top, active = made.files
    with machine(*blockdev("vda", active)) as running:
        async with running.connect() as vm:
            perform = vm._target.perform

            async def based_on(step):
                if step.command == "job-dismiss":
                    qemu.create(tmp_path / "other.qcow2", backing=top)
                return await perform(step)

            vm._target.perform = based_on
            with pytest.raises(Incomplete, match=f"{top} is still needed.*other.qcow2") as caught:
                await vm.commit("vda", top="s1", base="base", folded=folded)
            vm._target.perform = perform
            assert (caught.value.changed, caught.value.invalid) == (Changed.YES, (top,))
            assert (await vm.graph()).chains()["vda"] == (active, base)
            assert qemu.read(tmp_path / "other.qcow2") == content(2)
            (record,) = await vm.jobs.interrupted()
            with pytest.raises(Incomplete, match="is still needed"):
                await vm.jobs.wait(record.id)
            (tmp_path / "other.qcow2").unlink()
            await vm.jobs.wait(record.id)
            assert await vm.jobs.interrupted() == ()
    assert [Path(top).exists(), Path(f"{top}.invalid").exists()] == [False, folded == "rename"]
    assert qemu.read(active) == content(3)


async def test_overlay_that_a_client_left_stays_when_an_image_was_made_on_it(qemu, images, machine, tmp_path):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            plan = await vm.plan(Snapshot("n1"))
            for step in plan.stages[0].steps:  # and then it went away
                await vm._target.perform(step)
        (overlay,) = (step.makes for step in plan.steps if step.makes)
        other = qemu.create(tmp_path / "other.qcow2", backing=overlay)
        async with running.connect() as vm:
            (record,) = await vm.jobs.interrupted()
            with pytest.raises(Incomplete, match=f"{overlay} is still needed.*other.qcow2"):
                await vm.jobs.wait(record.id)
            assert await vm.jobs.interrupted() == ()
    assert qemu.read(other) == content(1)


@pytest.mark.parametrize("mode", ["stop", "background", "in-place"])
async def test_guest_that_is_paused_before_the_checkpoint_pauses_it_stays_paused(machine, images, mode):
    """By another client, in the time in which the files are made and the disks are flushed."""
    made = images("base <- s1")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")

        def before(step):
            if step.command == "stop":
                running.qmp("stop")

        async with running.connect() as vm:
            files, chains = listing(running.folder), (await vm.graph()).chains()
            plan = await vm.plan(Checkpoint("c1", mode))
            with pytest.raises(
                CommandFailed, match="paused already when it was to be paused: paused"
            ) as caught:
                await vm.run(plan, Hooks(before=before))
            assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
            assert running.qmp("query-status")["status"] == "paused"
            assert (listing(running.folder), (await vm.graph()).chains()) == (files, chains)
            assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
            await vm.checkpoint("c1", mode="stop" if mode == "background" else mode)
        assert running.qmp("query-status")["status"] in {"paused", "postmigrate"}
