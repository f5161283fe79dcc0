"""Checkpoints and saves that go wrong: no room at run time, cancelled, side by side, QEMU killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import SOON, blockdev, listing, traced, wait_for
from integration.states import MODES, fill, opened, settings, status
from qmpsnap.errors import (
    Busy,
    Changed,
    GraphMismatch,
    Interrupted,
    InvalidTarget,
    JobFailed,
    LinkLost,
    MigrationFailed,
)
from qmpsnap.plan.intent import Checkpoint, Save
from qmpsnap.run import migration

WRITE = (0xA1, 6 * MIB, 64 * KIB)
SLOW = 100_000  # bytes/s, for a stream of more than a megabyte
LARGE = ("-m", "512")


@pytest.fixture
def two(images):
    return images("base <- s1", folder="a"), images("base", folder="b", base_format="raw")


def disks(two):
    vda, vdb = two
    return (*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw"))


def slowed(vm, at=None):
    """Let QEMU write memory slowly; call `at` when a wait for that begins."""
    perform = vm._target.perform

    async def slowly(step):
        if step.arguments.get("max-bandwidth", 0) > 1 << 50:
            step = replace(step, arguments={"max-bandwidth": SLOW})
        if (
            at is not None
            and step.command == "await-migration"
            and step.arguments["until"] in {"saved", "kept"}
        ):
            at()
        return await perform(step)

    vm._target.perform = slowly


def state(running):
    return listing(running.folder), settings(running), status(running), opened(running)


# -- no room at run time ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stop", "in-place"])
async def test_checkpoint_without_room_leaves_nothing_and_the_guest_runs_on(two, machine, small, mode):
    place = small("100m", "place")
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            chains = (await vm.graph()).chains()
            plan = await vm.plan(Checkpoint("c1", mode, f"{place}/memory"))
            filler = fill(place, 320 * KIB)
            before = state(running)
            with pytest.raises((MigrationFailed, JobFailed)) as caught:
                await vm.run(plan)
            assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
            assert state(running) == before
            assert (await vm.graph()).chains() == chains
            assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
            running.write("vda", *WRITE)
            filler.unlink()
            await vm.checkpoint("c1", mode=mode, memory=place / "memory")
            assert status(running) == "running"


async def test_background_without_room_names_the_overlays_that_stay(qemu, two, machine, small):
    place = small("300m", "place")
    vda, vdb = two
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", "background", f"{place}/memory"))
            filler = fill(place, 320 * KIB)
            before = state(running)
            if qemu.short == "7.2":  # where a failure would hang the guest: the room is taken beforehand
                with traced(vm) as sent, pytest.raises(InvalidTarget, match="no space left") as refused:
                    await vm.run(plan)
                assert (sent, refused.value.changed, state(running)) == ([], Changed.NO, before)
                assert await vm.jobs.interrupted() == ()
                return
            with pytest.raises(MigrationFailed) as caught:
                await vm.run(plan)
            chains = (await vm.graph()).chains()
            assert chains == plan.chains_after
            assert caught.value.changed is Changed.YES
            assert [line.split(" (")[0] for line in caught.value.left] == [
                files[0] for files in chains.values()
            ]
            assert (state(running)[1:], opened(running)) == (before[1:], [])
            assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
            assert listing(place) == ["filler"]
            running.write("vda", *WRITE)
            for disk, files in chains.items():
                await vm.commit(disk, top=files[0], base=files[1])
            assert (await vm.graph()).chains() == {"vda": vda.chain, "vdb": vdb.chain}
            filler.unlink()
    assert qemu.read(vda.active) == overwritten(content(2), WRITE)


# -- cancelled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["task", "hook"])
@pytest.mark.parametrize("intent", ["checkpoint", "save"])
async def test_cancel_while_memory_is_written_leaves_nothing_and_the_guest_runs_on(
    qemu, two, machine, how, intent
):
    vda, vdb = two
    with machine(*disks(two), extra=LARGE) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            file = f"{running.folder}/memory"
            before = state(running)
            plan = await vm.plan(Checkpoint("c1", "stop", file) if intent == "checkpoint" else Save(file))
            begun, stop = anyio.Event(), anyio.Event()
            slowed(vm, begun.set)
            task = asyncio.create_task(vm.run(plan, qmpsnap.Hooks(cancel=stop)))
            await begun.wait()
            wait_for(lambda: running.qmp("query-migrate").get("status") == "active")
            if how == "task":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                stop.set()
                with pytest.raises(Interrupted) as caught:
                    await task
                assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
            assert state(running) == before
            assert (await vm.graph()).chains() == {"vda": vda.chain, "vdb": vdb.chain}
            assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
            del vm._target.perform
            await vm.checkpoint("c1", memory=file)
            assert status(running) == "running"
    assert qemu.read(vda.active) == overwritten(content(2), WRITE)


@pytest.mark.parametrize("how", ["task", "hook"])
async def test_cancel_of_a_background_checkpoint_leaves_overlays_that_are_named(qemu, two, machine, how):
    with machine(*disks(two), extra=LARGE) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            before = settings(running)
            stop = anyio.Event()
            begun = anyio.Event()
            slowed(vm, begun.set)
            plan = await vm.plan(Checkpoint("c1", "background"))
            task = asyncio.create_task(vm.run(plan, qmpsnap.Hooks(cancel=stop)))
            await begun.wait()
            task.cancel() if how == "task" else stop.set()
            if qemu.short == "7.2":  # it would hang the guest, so it is brought to its end
                if how == "hook":
                    assert (await task).chains == plan.chains_after
                else:
                    with pytest.raises(asyncio.CancelledError):
                        await task
                (moment,) = (await vm.moments()).moments
                assert moment.mode == "background"
                assert (status(running), settings(running), opened(running)) == ("running", before, [])
                return
            if how == "hook":
                with pytest.raises(Interrupted) as caught:
                    await task
                assert caught.value.changed is Changed.YES
                left = caught.value.left
            else:
                with pytest.raises(asyncio.CancelledError) as cancelled:
                    await task
                left = [note.partition(": ")[2] for note in cancelled.value.__notes__]
            chains = (await vm.graph()).chains()
            assert chains == plan.chains_after
            assert [line.split(" (")[0] for line in left] == [files[0] for files in chains.values()]
            assert (status(running), settings(running), opened(running)) == ("running", before, [])
            assert not [name for name in listing(running.folder) if "memory" in name]
            assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
            del vm._target.perform
            for disk, files in chains.items():
                await vm.commit(disk, top=files[0], base=files[1])
            await vm.checkpoint("c1", mode="background")
            assert status(running) == "running"


@pytest.mark.parametrize("early", [False, True])
async def test_cancelled_background_checkpoints_close_no_descriptor_of_qemu(
    qemu, two, machine, early, monkeypatch
):
    """Cancelled before the first page is written, QEMU 10.0 and 11.1 close their descriptor 0."""
    if early:
        monkeypatch.setattr(migration, "_BEGINNING", -1)
    with machine(*disks(two)) as running:
        running.qmp("cont")
        stdin = Path(f"/proc/{running.process.pid}/fd/0")
        async with running.connect() as vm:
            for number in range(4):
                stop = anyio.Event()
                perform = vm._target.perform

                async def cancels(step, perform=perform, stop=stop):
                    if step.command == "migrate":
                        stop.set()
                    return await perform(step)

                vm._target.perform = cancels
                plan = await vm.plan(Checkpoint(f"c{number}", "background"))
                with contextlib.suppress(Interrupted):  # 7.2 is not interrupted, it would hang the guest
                    await vm.run(plan, qmpsnap.Hooks(cancel=stop))
                del vm._target.perform
                assert (str(stdin.readlink()), status(running)) == ("/dev/null", "running")
            running.write("vda", *WRITE)
            active = (await vm.graph()).disks["vda"].files[0]
    assert qemu.read(active) == overwritten(content(2), WRITE)


# -- two at once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_two_checkpoints_at_once_on_one_vm_are_taken_one_by_one(two, machine, mode):
    with machine(*disks(two)) as running:
        running.qmp("cont")
        before = settings(running)
        async with running.connect() as vm:
            await asyncio.gather(vm.checkpoint("c1", mode=mode), vm.checkpoint("c2", mode=mode))
            assert (status(running), settings(running), opened(running)) == ("running", before, [])
            names = [one.name for one in (await vm.moments()).moments]
            assert sorted(names) == ["c1", "c2"]
            chain = (await vm.graph()).chains()["vda"]
            assert qmpsnap.draw(chain) == f"[base] <- [s1] <- [base.{names[0]}] <- [base.{names[1]}*]"
            assert await vm.jobs.interrupted() == ()


@pytest.mark.parametrize("mode", ["stop", "background"])
async def test_second_client_is_refused_while_memory_is_written(two, machine, mode, tmp_path):
    place = tmp_path / "other"
    other = ("-qmp", f"unix:{place},server=on,wait=off")
    with machine(*disks(two), extra=(*LARGE, *other)) as running:
        running.qmp("cont")
        async with running.connect() as vm, qmpsnap.connect(str(place)) as theirs:
            early = await theirs.plan(Checkpoint("c2", "in-place"))
            begun = anyio.Event()
            slowed(vm, begun.set)
            task = asyncio.create_task(vm.checkpoint("c1", mode=mode))
            await begun.wait()
            wait_for(lambda: running.qmp("query-migrate").get("status") == "active")
            for what in MODES:
                with traced(theirs) as sent, pytest.raises(Busy, match="migration is running"):
                    await theirs.run(await theirs.plan(Checkpoint("c2", what)))
                assert sent == []
            running.qmp("migrate-set-parameters", {"max-bandwidth": 1 << 40})
            done = await task
            with pytest.raises(GraphMismatch):
                await theirs.run(early)
            assert (await theirs.graph()).chains() == done.chains
            assert [one.name for one in (await theirs.moments()).moments] == ["c1"]
            assert (status(running), opened(running)) == ("running", [])
            await theirs.checkpoint("c2", mode=mode)


# -- QEMU is killed --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stop", "background"])
async def test_killed_qemu_is_told_soon_and_the_next_start_clears_up(qemu, two, machine, mode, tmp_path):
    vda, vdb = two
    with machine(*disks(two), extra=LARGE) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            begun = anyio.Event()
            slowed(vm, begun.set)
            plan = await vm.plan(Checkpoint("c1", mode))
            task = asyncio.create_task(vm.run(plan))
            await begun.wait()
            wait_for(lambda: running.qmp("query-migrate").get("status") == "active")
            running.kill()
            killed = time.monotonic()
            with pytest.raises(LinkLost) as caught:
                await task
            assert time.monotonic() - killed < SOON
            assert any(".memory." in one and ".partial" in one for one in caught.value.left)
    active = {"vda": vda.active, "vdb": vdb.active}
    if mode == "background":
        active = {disk: files[0] for disk, files in plan.chains_after.items()}
    forms = {"vdb": "raw"} if mode == "stop" else {}
    again = [blockdev(disk, file, forms.get(disk, "qcow2")) for disk, file in active.items()]
    with machine(*sum(again, ())) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            (record,) = await vm.jobs.interrupted()
            assert (await vm.moments()).moments == ()
            done = await vm.jobs.wait(record.id)
            assert len(done.left) == (2 if mode == "background" else 0)  # this QEMU was started on overlays
            for node in ["vda-node", "vdb-node"][: len(done.left)]:
                running.qmp("blockdev-del", {"node-name": node})
            assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
            assert not [name for name in listing(tmp_path) if "memory" in name]
            assert (await vm.graph()).chains() == plan.chains_before
            overlays = [file for files in plan.chains_after.values() for file in files[:1]]
            assert [os.path.exists(file) for file in overlays] == [False] * 2  # noqa: PTH110
            await vm.checkpoint("c1", mode=mode)
    assert qemu.read(vda.active) == overwritten(content(2), WRITE)
