from __future__ import annotations

from qmpsnap.model.job import Job, JobStatus
from qmpsnap.plan.steps import AwaitJob
from qmpsnap.testing.fake_watch import FakeWatch


async def test_fake_watch_asks_the_target_for_each_wait() -> None:
    asked: list[AwaitJob] = []

    async def wait(step: AwaitJob) -> Job:
        asked.append(step)
        return Job("j", "commit", JobStatus.READY)

    watch = FakeWatch(wait, "j")
    assert (await watch.until_ready()).id == "j"
    await watch.until_pending()
    await watch.until_concluded()
    assert asked == [AwaitJob("j", "ready"), AwaitJob("j", "pending"), AwaitJob("j", "concluded")]
    assert watch.times[JobStatus.CONCLUDED] - watch.times[JobStatus.PENDING] == 0.25
