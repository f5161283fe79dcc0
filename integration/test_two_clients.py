"""Two clients of one machine at once, each with a monitor of its own: one waits until the other is done."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.cli import records
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev
from qmpsnap.errors import Busy, Changed, Detached, JobFailed, LinkLost, NotFound
from qmpsnap.run import machine_lock

LATER = (0xA1, 5 * MIB, 64 * KIB)
NEWEST = (0xA2, 6 * MIB, 64 * KIB)


@pytest.fixture
def until_it_waits(monkeypatch):
    """Begin a call of the second client; return its task once it waits for the first, stands or has ended."""
    waiting = anyio.Event()
    sleep = anyio.sleep

    async def observed(seconds):
        if seconds == machine_lock._AGAIN:
            waiting.set()
        await sleep(seconds)

    async def begin(call, stands=None):
        task = asyncio.create_task(call)
        waits = [asyncio.create_task(event.wait()) for event in (waiting, stands) if event is not None]
        await asyncio.wait({task, *waits}, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return task

    monkeypatch.setattr(machine_lock, "_AGAIN", 0.0123)  # nobody else sleeps as long
    monkeypatch.setattr(anyio, "sleep", observed)
    return begin


@pytest.fixture
def two(images, machine, temporary):
    """A machine with vda on an image of known content, and snapshots m1 and m2, each before a write."""
    made = images("base")
    second = Path(temporary) / "second"

    @asynccontextmanager
    async def run():
        with machine(*blockdev("vda", made.active), "-qmp", f"unix:{second},server=on,wait=off") as running:
            async with running.connect() as one, qmpsnap.connect(str(second), name="second") as other:
                await one.snapshot("m1")
                running.write("vda", *LATER)
                await one.snapshot("m2")
                running.write("vda", *NEWEST)
                yield running, one, other

    return run


def at(command, do):
    """Hooks that call `do` once, just before the first step of that command."""
    done = []

    async def before(step):
        if step.command == command and not done:
            done.append(step)
            await do()

    return qmpsnap.Hooks(before=before)


async def test_revert_puts_no_overlay_on_a_layer_to_which_a_delete_is_about_to_write(
    qemu, two, until_it_waits
):
    async with two() as (running, one, other):
        tasks, stands, deleted = [], anyio.Event(), anyio.Event()

        async def stand():
            """Its overlay is on the layer now, and the guest not yet on the overlay."""
            stands.set()
            await deleted.wait()

        async def revert():
            tasks.append(await until_it_waits(other.revert("m1", hooks=at("stop", stand)), stands))

        done = await one.delete("m1", hooks=at("write-record", revert))
        deleted.set()
        with pytest.raises((Busy, NotFound), match=r"held by job|there is no snapshot 'm1'|is running"):
            await tasks[0]
        assert [moment.name for moment in (await one.moments()).moments] == ["m2"]
        running.quit()
    assert qemu.read(done.chains["vda"][0]) == overwritten(content(1), LATER, NEWEST)


async def test_snapshots_of_two_clients_are_both_taken(qemu, two, until_it_waits):
    async with two() as (running, one, other):
        tasks = []

        async def snapshot():
            tasks.append(await until_it_waits(other.snapshot("b")))

        await one.snapshot("a", hooks=at("transaction", snapshot))
        second = await tasks[0]
        assert [moment.name for moment in (await one.moments()).moments] == ["m1", "m2", "a", "b"]
        running.quit()
    assert qemu.read(second.chains["vda"][0]) == overwritten(content(1), LATER, NEWEST)


async def test_second_of_two_backups_is_refused_before_it_has_changed_anything(two, tmp_path, until_it_waits):
    async with two() as (_, one, other):
        tasks = []

        async def backup():
            tasks.append(await until_it_waits(other.backup(tmp_path / "second")))

        done = await one.backup(tmp_path / "first", hooks=at("transaction", backup))
        with pytest.raises(Busy, match=r"another backup of vda is running|held by job"):
            await tasks[0]
        assert done.backup.disks.keys() == {"vda"}
        assert not (tmp_path / "second").exists()


async def left_running(vm, *, mirror_to=None):
    """Begin a commit, or a mirror that leaves the disk where it is; leave its job running, return its id."""
    detach = anyio.Event()
    hooks = qmpsnap.Hooks(progress=lambda _: detach.set(), interval=0.01, detach=detach)
    begin = vm.commit if mirror_to is None else partial(vm.mirror, target=mirror_to, ending="finish")
    with pytest.raises(Detached) as left:
        await begin("vda", speed=KIB, hooks=hooks)
    return left.value.job_id


async def until_claimed(vm):
    """Wait until another client has begun to finish what `left_running` left."""
    with anyio.fail_after(60):
        while await vm.jobs.interrupted():
            await anyio.sleep(0.01)


@pytest.mark.parametrize("kind", ["commit", "mirror"])
async def test_of_two_that_wait_for_one_operation_one_finishes_it_and_the_other_says_so(
    qemu, two, tmp_path, kind
):
    target = tmp_path / "copy.qcow2" if kind == "mirror" else None
    async with two() as (running, one, other):
        before = (await one.graph()).chains()
        job_id = await left_running(one, mirror_to=target)
        plans = [await vm.jobs.plan(job_id) for vm in (one, other)]
        runs = [asyncio.create_task(vm.run(plan)) for vm, plan in zip((one, other), plans, strict=True)]
        await one.jobs.set_speed(job_id, 0)
        ended = await asyncio.gather(*runs)
        chains = (await one.graph()).chains()
        assert chains == (before if target else {"vda": before["vda"][-1:]})
        assert [done.chains for done in ended] == [chains] * 2
        assert sorted((done.changed, "another client has finished it" in done.notes) for done in ended) == [
            (False, True),
            (True, False),
        ]
        if kind == "commit":  # begun after all has ended: the chain shows that it is done
            assert (await other.run(plans[1])).chains == chains
        else:
            with pytest.raises(
                JobFailed, match=r"another client has ended .* end was not observed"
            ) as failed:
                await other.run(plans[1])
            assert failed.value.changed is Changed.NO
        assert await one.jobs.interrupted() == ()
        running.quit()
    assert qemu.read(target or chains["vda"][0]) == overwritten(content(1), LATER, NEWEST)


async def test_who_waits_for_another_client_goes_on_when_that_one_leaves_and_is_told_when_it_cancels(
    qemu, two, leftovers
):
    async with two() as (running, one, other):
        before = (await one.graph()).chains()
        job_id = await left_running(one)
        leaves = anyio.Event()
        first = asyncio.create_task(one.jobs.wait(job_id, hooks=qmpsnap.Hooks(detach=leaves)))
        await until_claimed(other)
        second = asyncio.create_task(other.jobs.wait(job_id))
        leaves.set()
        with pytest.raises(Detached):
            await first
        await until_claimed(one)  # by the second one
        assert await one.jobs.cancel(job_id) is None  # the one that has it cleans up
        with pytest.raises(JobFailed, match="cancel") as failed:
            await second
        assert failed.value.invalid == before["vda"][1:]
        assert (await one.graph()).chains() == before
        leftovers.allow(*records(running))  # it says that the layers below are invalid
        running.quit()
    assert qemu.read(before["vda"][0]) == overwritten(content(1), LATER, NEWEST)


async def test_what_a_running_backup_needs_is_refused_and_the_rest_is_done(qemu, two, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{qemu.directory}:{os.environ['PATH']}")
    meanwhile, done = (0xA3, 7 * MIB, 64 * KIB), []
    async with two() as (running, one, other):
        before = (await one.graph()).chains()["vda"]

        async def during(progress):
            if done or progress.job.type != "backup":
                return
            done.append(None)
            running.write("vda", *meanwhile)
            for intent in (
                qmpsnap.Delete("m1"),
                qmpsnap.Delete("m2"),
                qmpsnap.Commit("vda"),
                qmpsnap.Stream("vda"),
                qmpsnap.Revert("m1"),
                qmpsnap.Mirror("vda", str(tmp_path / "copy.qcow2"), ending="pivot"),
                qmpsnap.Snapshot("inside", inside=True),
            ):
                with pytest.raises(Busy, match=r"a backup of vda is running \(backup-") as refused:
                    await other.do(intent)
                assert refused.value.changed is Changed.NO
            done.append(await other.snapshot("n"))

        hooks = qmpsnap.Hooks(during, interval=0.01)
        backup = await one.backup(tmp_path / "backups", speed=MIB, hooks=hooks)
        active = done[1].chains["vda"][0]
        assert backup.chains == {"vda": (active, *before)}
        assert [moment.name for moment in (await one.moments()).moments] == ["m1", "m2", "n"]
        await other.delete("m1")
        running.quit()
    assert qemu.read(backup.files["vda"]) == overwritten(content(1), LATER, NEWEST)
    assert qemu.read(active) == overwritten(content(1), LATER, NEWEST, meanwhile)


async def test_backup_whose_qemu_is_gone_keeps_its_layers_from_being_changed(
    qemu, two, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", f"{qemu.directory}:{os.environ['PATH']}")
    refused = []
    async with two() as (running, one, _):

        async def during(progress):
            if refused or progress.job.type != "backup":
                return
            active = (await one.graph()).chains()["vda"][0]
            running.quit()
            async with qmpsnap.offline(vda=active) as off:
                for call in (off.commit("vda"), off.delete("m1")):
                    with pytest.raises(Busy, match="a backup of vda is running") as busy:
                        await call
                    refused.append(busy.value)

        with pytest.raises(LinkLost, match="the backup is complete"):
            await one.backup(tmp_path / "backups", speed=MIB, hooks=qmpsnap.Hooks(during, interval=0.01))
    assert len(refused) == 2
    (backup,) = await qmpsnap.list_backups(tmp_path / "backups")
    file = tmp_path / "backups" / backup.id / "vda.qcow2"
    assert qemu.read(file) == overwritten(content(1), LATER, NEWEST)
