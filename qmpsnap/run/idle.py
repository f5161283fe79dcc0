"""Waits until no job prevents a plan any more; sends nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from qmpsnap.errors import Busy
from qmpsnap.model.hints import command
from qmpsnap.model.job import ENDED, STAYS, Job, JobStatus
from qmpsnap.plan.plan import Plan
from qmpsnap.run.executor import Executor
from qmpsnap.run.planning import Planning
from qmpsnap.run.target import Target

# Seconds. QEMU pauses a job for a drain, and lets it pass READY and pending, in far less; while it drains it
# answers nobody.
_MOMENT = 2.0


class Idle:
    """Waits for the jobs of one machine, whichever client started them.

    Args:
        target: The machine.
        executor: Knows which jobs belong to operations here.
        planning: Knows which clients are at work.
    """

    def __init__(self, target: Target, executor: Executor, planning: Planning) -> None:
        self._target = target
        self._executor = executor
        self._planning = planning

    async def plan(self, make: Callable[[], Awaitable[Plan]]) -> Plan:
        """Plan as soon as no job prevents it; see `VM.when_idle`."""
        waited: set[str] = set()
        while True:
            try:
                return await make()
            except Busy as busy:
                if not busy.job_id or busy.job_id in waited:
                    raise
                await self._until_ended(busy.job_id, busy)
                waited.add(busy.job_id)

    async def _until_ended(self, job_id: str, busy: Busy) -> None:
        """Wait for the job to end by itself; refuse once it is clear that it will not."""
        with self._target.watch(job_id) as watch:
            while await watch.until_still(_MOMENT) is not None:
                jobs = {job.id: job for job in await self._target.jobs()}
                job = jobs.get(job_id)
                if job is None or job.status not in STAYS:
                    continue
                if job.status is JobStatus.WAITING and (other := _held_up_by(jobs.values())) is not None:
                    await self._until_ended(other.id, busy)
                elif not await self._is_attended(job) and await self._is_unchanged(job):
                    raise Busy(
                        f"job {job.id!r} ({job.type}, {job.status.value}) does not end by itself",
                        node=busy.node,
                        job_id=job.id,
                        hint=_way_on(job),
                    ) from busy

    async def _is_attended(self, job: Job) -> bool:
        """Whether a client of ours is working on the job, and will let it go on.

        No event tells that such a client has gone, so this is asked again and again.
        """
        if not job.mine or job.status in {JobStatus.PAUSED, JobStatus.STANDBY}:
            return False
        if self._executor.holds(job.id):
            return True
        records = await self._planning.interrupted(None, live=True)
        return any(record.live and record.id == job.id for record in records)

    async def _is_unchanged(self, job: Job) -> bool:
        """Whether the job's status is unchanged: its client may have let it go on meanwhile."""
        return any((other.id, other.status) == (job.id, job.status) for other in await self._target.jobs())


def _held_up_by(jobs: Iterable[Job]) -> Job | None:
    """The job that a WAITING one waits for, as far as QEMU tells; rather one that is not stuck itself."""
    others = [job for job in jobs if job.status is not JobStatus.WAITING and job.status not in ENDED]
    return min(others, key=lambda job: job.status in STAYS, default=None)


def _way_on(job: Job) -> str:
    """What lets a stuck job go on."""
    named = (job.id,) if job.mine else (job.id, "--foreign")
    if job.status in {JobStatus.PAUSED, JobStatus.STANDBY}:
        on = f"{command('job', 'resume', *named)} resumes it"
    elif job.mine:
        on = f"{command('job', 'wait', *named)} finishes it"
    else:
        on = f"its client has to {'finalize' if job.status is JobStatus.PENDING else 'complete'} it"
    return f"{on}, {command('job', 'cancel', *named)} stops it"
