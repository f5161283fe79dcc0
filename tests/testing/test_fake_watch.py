from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.model.job import STAYS, Job, JobStatus
from qmpsnap.plan.commands.jobs import await_job
from qmpsnap.testing.fake_watch import FakeWatch
from tests.each import each

if TYPE_CHECKING:
    from qmpsnap.model.step import Step


class EndOfTest(Exception):
    pass


async def nobody_waits(step: Step) -> Job:
    raise AssertionError(step)


async def nothing() -> tuple[Job, ...]:
    return ()


async def never() -> None:
    raise AssertionError("there is nothing to wait for")


async def test_fake_watch_asks_the_target_for_each_wait() -> None:
    asked: list[Step] = []

    async def wait(step: Step) -> Job:
        asked.append(step)
        return Job("j", "commit", JobStatus.READY)

    watch = FakeWatch(wait, "j", nothing, never)
    assert (await watch.until_ready()).id == "j"
    await watch.until_pending()
    await watch.until_concluded()
    assert asked == [await_job("j", "ready"), await_job("j", "pending"), await_job("j", "concluded")]
    assert watch.times[JobStatus.CONCLUDED] - watch.times[JobStatus.PENDING] == 0.25


@each("status", JobStatus)
async def test_fake_watch_waits_until_the_job_is_paused_or_has_ended(status: JobStatus) -> None:
    answers = [Job("j", "commit", JobStatus.RUNNING), Job("j", "commit", status)]
    waited: list[Job] = []

    async def jobs() -> tuple[Job, ...]:
        return (answers[0], Job("other", "backup", JobStatus.PAUSED))

    async def changed() -> None:
        waited.append(answers.pop(0))
        if not answers:
            raise EndOfTest

    moves = status in {JobStatus.UNDEFINED, JobStatus.CREATED, JobStatus.RUNNING, JobStatus.ABORTING}
    try:
        found = await FakeWatch(nobody_waits, "j", jobs, changed).until_still(2)
    except EndOfTest:
        assert moves
    else:
        assert (found, len(waited), moves) == (answers[0] if status in STAYS else None, 1, False)
