"""The watch over one job of a fake target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from qmpsnap.model.job import ENDED, STAYS, Job, JobStatus
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.jobs import await_job

__all__ = ["FakeWatch"]


class FakeWatch:
    """What the fake knows of a job's event times; it waits by the target.

    Args:
        wait: The target's wait.
        job_id: The job.
        jobs: The target's jobs, as of now.
        changed: Waits until one of them changes.
    """

    def __init__(
        self,
        wait: Callable[[Step], Awaitable[Job]],
        job_id: str,
        jobs: Callable[[], Awaitable[tuple[Job, ...]]],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self.times: Mapping[JobStatus, float] = MappingProxyType(
            {JobStatus.PENDING: 100.0, JobStatus.CONCLUDED: 100.25}
        )
        self._wait, self._job_id = wait, job_id
        self._jobs, self._changed = jobs, changed

    async def until_ready(self) -> Job:
        """Wait until the job can be completed."""
        return await self._wait(await_job(self._job_id, "ready"))

    async def until_pending(self) -> Job:
        """Wait until the job can be finalized."""
        return await self._wait(await_job(self._job_id, "pending"))

    async def until_concluded(self) -> Job:
        """Wait until the job has ended."""
        return await self._wait(await_job(self._job_id, "concluded"))

    async def until_still(self, moment: float) -> Job | None:  # noqa: ARG002 - of the Protocol
        """Wait until the job waits for somebody, or has ended."""
        while True:
            job = next((job for job in await self._jobs() if job.id == self._job_id), None)
            if job is None or job.status in ENDED:
                return None
            if job.status in STAYS:
                return job
            await self._changed()
