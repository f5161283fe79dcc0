"""Whose a record is, and whether its client is gone: two machines on one base, and two clients of one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.known_images import KIB
from integration.machines import blockdev
from qmpsnap.errors import Busy, NotFound, TargetExists
from qmpsnap.plan.commands.records import keep_moment
from qmpsnap.plan.intent import Checkpoint, Revert, Snapshot

DIED = 9  # exit status of a client that ends at once
WRITE = (0xE7, 0, 64 * KIB)


async def left_before(running, intent, kind):
    """Leave what a client leaves that dies before its first step of that kind; return the record."""
    pid = os.fork()
    if pid == 0:
        try:
            anyio.run(_until, running.socket, intent, kind)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == DIED
    async with running.connect() as vm:
        (record,) = await vm.jobs.interrupted()
    return record


async def _until(socket, intent, kind):
    async with qmpsnap.connect(socket) as vm:
        perform = vm._target.perform

        async def at(step):
            if step.command == kind:
                os._exit(DIED)
            return await perform(step)

        vm._target.perform = at
        await vm.run(await vm.plan(intent))


@pytest.fixture
def clones(qemu, images, machine, tmp_path):
    base = images("base").active
    return [
        machine(*blockdev("vda", qemu.create(tmp_path / f"{name}.qcow2", backing=str(base)))) for name in "ab"
    ]


def there(running):
    return sorted(str(path) for path in running.folder.rglob("*") if path.suffix in {".qcow2", ".json"})


@pytest.mark.parametrize(
    ("intent", "kind"),
    [
        (Snapshot("s1"), "keep-moment"),
        (Checkpoint("c1", "in-place"), "keep-moment"),
        (Checkpoint("c1", "in-place"), "create-overlay"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
async def test_record_of_a_machine_on_the_same_base_is_not_touched(clones, intent, kind):
    with clones[0] as first, clones[1] as second:
        record = await left_before(first, intent, kind)
        before = there(first)
        async with second.connect() as vm:
            assert await vm.jobs.interrupted() == ()
            with pytest.raises(NotFound, match="another machine"):
                await vm.jobs.wait(record.id)
        assert there(first) == before
        async with first.connect() as vm:
            await vm.jobs.wait(record.id)
            assert await vm.jobs.interrupted() == ()
            (moment,) = (await vm.moments()).moments if kind == "keep-moment" else (None,)
            assert moment is None or moment.name == intent.name


async def test_guest_that_ran_on_after_a_revert_is_not_loaded_again(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
        record = await left_before(running, Revert("c1"), "finish-record")
        running.write("vda", *WRITE)
        running.qmp("stop")
        async with running.connect() as vm:
            done = await vm.jobs.wait(record.id)
            assert any("no memory is loaded" in note for note in done.notes)
            assert await vm.jobs.interrupted() == ()
        assert running.qmp("query-status")["status"] == "paused"
        running.read("vda", *WRITE)


async def test_revert_under_a_later_checkpoint_keeps_its_branch(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
        record = await left_before(running, Revert("c1"), "keep-branch")
        async with running.connect() as vm:
            await vm.checkpoint("c2", mode="in-place")
            chains = (await vm.graph()).chains()
            await vm.jobs.wait(record.id)
            assert (await vm.graph()).chains() == chains
            assert [one.name for one in (await vm.moments()).moments] == ["c1", "c2"]


async def test_intent_beside_its_moment_goes_alone_also_when_another_moment_is_current(images, machine):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.checkpoint("c0", mode="in-place")
            plan = await vm.plan(Checkpoint("c1", "in-place"))
            place = Path(plan.steps[0].arguments["directory"])
            await vm._target.perform(plan.steps[0])
            (intent,) = place.glob("intent-*")
            shutil.copy(intent, running.folder / "kept")
            await vm._target.perform(keep_moment(str(place), plan.record.id, "c1"))
            for one in place.glob("moment-c1-*"):
                one.unlink()
            vm._target.release_records({plan.record.id})
            await vm.checkpoint("c1", mode="in-place")
            (moment,) = place.glob("moment-c1-*")
            record_id = moment.name.removeprefix("moment-c1-").partition(".")[0]
            text = (running.folder / "kept").read_text().replace(plan.record.id, record_id)
            (place / f"intent-{record_id}.json").write_text(text)
            (running.folder / "kept").unlink()
            await vm.revert("c0")
            before = there(running)
            await vm.jobs.wait(record_id)
            assert there(running) == [one for one in before if "intent-" not in one]
            assert [one.name for one in (await vm.moments()).moments] == ["c0", "c1"]


async def test_second_attempt_under_a_name_waits_for_the_end_of_the_first(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        record = await left_before(running, Checkpoint("c1", "in-place"), "create-overlay")
        async with running.connect() as vm:
            with pytest.raises(TargetExists) as caught:
                await vm.checkpoint("c1", mode="in-place")
            assert f"qmpsnap job wait {record.id}" in caught.value.hint
            await vm.jobs.wait(record.id)
            await vm.checkpoint("c1", mode="in-place")


async def test_operation_whose_client_is_at_work_is_not_offered(images, machine, qemu, tmp_path):
    second = str(tmp_path / "second")
    options = {"extra": ("-qmp", f"unix:{second},server=on,wait=off")}
    with machine(*blockdev("vda", images("base").active), **options) as running:
        reached, go_on = anyio.Event(), anyio.Event()
        async with (
            running.connect() as vm,
            qmpsnap.connect(second) as other,
        ):
            perform = vm._target.perform

            async def slowly(step):
                if step.command == "seal-store":
                    reached.set()
                    await go_on.wait()
                return await perform(step)

            vm._target.perform = slowly
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(vm.run, await vm.plan(Checkpoint("c1", "in-place")))
                await reached.wait()
                assert await other.jobs.interrupted() == ()
                (record,) = await other.jobs.interrupted(live=True)
                for end in (other.jobs.wait, other.jobs.cancel):
                    with pytest.raises(Busy, match="its client is still at work"):
                        await end(record.id)
                go_on.set()
            assert await other.jobs.interrupted(live=True) == ()
            assert [one.name for one in (await other.moments()).moments] == ["c1"]
