from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from qmpsnap.errors import JobFailed, LinkLost, Malformed, MigrationFailed, QmpsnapError
from qmpsnap.plan.commands.jobs import await_job
from qmpsnap.plan.commands.migration import await_migration
from qmpsnap.plan.intent import Commit, Snapshot
from qmpsnap.run.caller import Caller
from qmpsnap.run.executor import Executor
from qmpsnap.run.outcome import Hooks
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.each import each
from tests.plan.scenes import planned

if TYPE_CHECKING:
    from qmpsnap.model.job import Job
    from qmpsnap.model.step import Step

pytestmark = pytest.mark.timeout(60)
TWO = graph(vda="base <- s1*")
PLAN = planned(Commit("vda"), TWO)
READY = await_job(PLAN.job_id, "ready")


async def started(*, hold: bool) -> FakeTarget:
    fake = FakeTarget(TWO)
    fake.hold = hold
    assert PLAN.start is not None
    await fake.perform(PLAN.start)
    return fake


async def waited(fake: FakeTarget, hooks: Hooks, *, may_leave: bool = True) -> Job | None:
    with fake.watch(READY.job_id) as watch:
        return await Caller(hooks).wait(READY, watch, fake, may_leave=may_leave)


async def test_caller_waits_for_the_job() -> None:
    job = await waited(await started(hold=False), Hooks())
    assert job is not None
    assert job.ready


def wishing(wish: str) -> Hooks:
    event = anyio.Event()
    event.set()
    return Hooks(cancel=event) if wish == "cancel" else Hooks(detach=event)


@each("wish", ["cancel", "detach"])
async def test_caller_wishes_to_stop_or_to_leave(wish: str) -> None:
    assert await waited(await started(hold=True), wishing(wish)) is None


@each("wish", ["cancel", "detach"])
async def test_caller_cannot_leave_when_there_is_no_way_back(wish: str) -> None:
    assert await waited(await started(hold=False), wishing(wish), may_leave=False) is not None


async def test_caller_learns_why_the_job_ended() -> None:
    fake = FakeTarget(TWO)
    fake.job_error = "No space left on device"
    assert PLAN.start is not None
    await fake.perform(PLAN.start)
    with pytest.raises(JobFailed, match="No space left"):
        await waited(fake, Hooks())


async def test_caller_gets_the_lost_link_as_such_when_progress_is_asked_for() -> None:
    fake = await started(hold=True)
    fake.fail("await-job", LinkLost("gone"))
    with pytest.raises(LinkLost):
        await waited(fake, Hooks(progress=lambda _: None, interval=0))


async def test_caller_goes_on_when_progress_cannot_be_asked_for() -> None:
    fake = await started(hold=False)

    def broken(_: object) -> None:
        raise Malformed("no progress")

    assert await waited(fake, Hooks(progress=broken)) is not None


async def test_caller_counts_what_a_call_back_raises_as_the_wish_to_stop() -> None:
    fake = await started(hold=True)
    complaint = ZeroDivisionError()

    def raising(_: object) -> None:
        raise complaint

    caller = Caller(Hooks(progress=raising, on_pivot=raising))
    with fake.watch(READY.job_id) as watch:
        assert await caller.wait(READY, watch, fake, may_leave=True) is None
    await caller.tell_pivot({})
    assert caller.complaint is complaint
    assert caller.stop.is_set()


WAIT = await_migration("saved")


async def test_caller_waits_for_a_migration() -> None:
    fake = FakeTarget(TWO)
    assert await Caller(Hooks()).wait_migration(WAIT, fake)
    assert fake.performed == [WAIT]


async def test_caller_wishes_to_stop_while_memory_is_written() -> None:
    assert not await Caller(wishing("cancel")).wait_migration(WAIT, Endless(TWO))


async def test_caller_cannot_stop_a_migration_that_would_hang_the_guest() -> None:
    step = await_migration("kept", may_stop=False)
    assert await Caller(wishing("cancel")).wait_migration(step, FakeTarget(TWO))


@pytest.mark.parametrize("error", [MigrationFailed("no", error="no"), LinkLost("gone")])
async def test_caller_learns_why_a_migration_ended(error: QmpsnapError) -> None:
    fake = FakeTarget(TWO)
    fake.fail(WAIT, error)
    with pytest.raises(type(error)):
        await Caller(Hooks()).wait_migration(WAIT, fake)


async def test_caller_hears_how_much_memory_has_moved_and_may_complain() -> None:
    complaint = ZeroDivisionError()

    def raising(_: object) -> None:
        raise complaint

    caller = Caller(Hooks(progress=raising, interval=0))
    await caller.wait_migration(WAIT, Endless(TWO))
    assert caller.complaint is complaint


class Endless(FakeTarget):
    """A target whose migrations never end by themselves."""

    async def perform(self, step: Step) -> float:
        if step.command == "await-migration":
            await anyio.sleep_forever()
        return await super().perform(step)


async def test_caller_is_told_of_each_step_before_it_is_done_and_waited_for() -> None:
    told: list[str] = []
    fake = FakeTarget(TWO)

    async def before(step: Step) -> None:
        await anyio.lowlevel.checkpoint()
        told.append(step.command)
        assert step not in fake.performed

    await Executor(fake).run(planned(Snapshot("n1"), TWO), Hooks(before=before))
    assert told == ["write-record", "create-overlay", "transaction"]


async def test_caller_that_fails_before_a_step_has_the_operation_rolled_back() -> None:
    def before(step: Step) -> None:
        if step.command == "transaction":
            raise ZeroDivisionError

    fake = FakeTarget(TWO)
    files = set(fake.files.names)
    with pytest.raises(ZeroDivisionError):
        await Executor(fake).run(planned(Snapshot("n1"), TWO), Hooks(before=before))
    assert (fake.state, set(fake.files.names)) == (TWO, files)
