"""Follows jobs: by QEMU's events, and by asking query-jobs where events do not suffice.

Waiting is passive. A watch records events as they arrive; when one shows that a goal was
reached, the waiter asks QEMU once and trusts the answer. Nothing is polled but progress,
for which QEMU has no event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from types import MappingProxyType
from typing import Self

import anyio
from msgspec.structs import replace

from qmpsnap.errors import Changed, CommandFailed, JobFailed, JobPaused, LinkLost
from qmpsnap.model.job import ENDED, STAYS, IoStatus, Job, JobStatus
from qmpsnap.model.parse_jobs import JobEvent, parse_jobs
from qmpsnap.model.qapi import heard
from qmpsnap.run.machine import is_preconfig
from qmpsnap.run.progress import Meter, Progress
from qmpsnap.run.session import Session
from qmpsnap.run.session.event import Event

_REASONS = {IoStatus.NOSPACE: "no space", IoStatus.FAILED: "I/O error"}
_STILL = frozenset({JobStatus.PAUSED, JobStatus.STANDBY})
_TURNOVER = ENDED | {JobStatus.CREATED}


class JobMonitor:
    """Follows the jobs of one session; `async with` it.

    It records events of watched jobs only, so it can stay open for the life of a machine.

    Attributes:
        found: The jobs that existed when it was opened, including those that ended while no client
            was connected.
        turnover: How many times since then a job has begun, ended or been dismissed.
    """

    def __init__(self, session: Session) -> None:
        self.found: tuple[Job, ...] = ()
        self.turnover = 0
        self._session = session
        self._watches: dict[str, list[JobWatch]] = {}
        self._heard = 0  # events of jobs
        self._none: int | None = None  # how many of them had come when QEMU was asked and had no job
        self._open = ExitStack()

    async def __aenter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._session.subscribe(self._on_event, lost=self._wake_all))
            self.found = await self.jobs()
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open.close()
        for watch in self._each():
            watch.close()

    async def jobs(self) -> tuple[Job, ...]:
        """Ask QEMU for the jobs of all clients.

        Raises:
            LinkLost: When the link is lost.
            Malformed: When the answer is not what the schema promises.
        """
        heard = self._heard
        try:
            found = parse_jobs(*await self._session.ask(("query-jobs", {}), ("query-block-jobs", {})))
        except CommandFailed as error:
            if not is_preconfig(error):
                raise
            found = ()  # nor could there be any
        self._none = None if found else heard
        return found

    @property
    def idle(self) -> bool:
        """Whether QEMU had no job when it was asked last, and no event of a job has come since.

        QEMU sends one as it creates a job, before its reply to any later command (job.c: job_create).
        """
        return self._heard == self._none and not self._session.lost.is_set()

    @contextmanager
    def watch(self, job_id: str) -> Iterator[JobWatch]:
        """Record the events of a job while the block lasts.

        For a job that is about to be started, open it before the command is sent: the first events arrive
        before the reply. For a job that is running or has ended, its `until_...` methods ask QEMU once. What
        another open watch of the job has recorded is known to this one: the job may have been dismissed.
        """
        watch = JobWatch(job_id, self, self._session)
        watches = self._watches.setdefault(job_id, [])
        if watches:
            watch.take_over(watches[0])
        watches.append(watch)
        try:
            yield watch
        finally:
            watch.close()
            watches.remove(watch)
            if not watches:
                self._watches.pop(job_id, None)

    async def progress(self, job_id: str, interval: float = 1.0) -> AsyncIterator[Progress]:
        """Yield how far a job is, every `interval` seconds, until it has ended or is gone.

        Asks each time: QEMU sends no event for progress.

        Raises:
            LinkLost: When the link is lost.
            Malformed: When the answer is not what the schema promises.
        """
        meter = Meter()
        while True:
            job = next((job for job in await self.jobs() if job.id == job_id), None)
            if job is None:
                return
            yield meter.look(job)
            if job.status in ENDED:
                return
            await anyio.sleep(interval)

    def _on_event(self, event: Event) -> None:
        if event.name.startswith(("JOB_", "BLOCK_JOB_")):
            self._heard += 1
            job = heard(JobEvent, event.data)
            if job is not None:
                self.turnover += event.name == "JOB_STATUS_CHANGE" and job.status in _TURNOVER
                for watch in self._watches.get(job.device or job.id, ()):
                    watch.note(event, job)

    def _wake_all(self) -> None:
        for watch in self._each():
            watch.wake()

    def _each(self) -> list[JobWatch]:
        return [watch for watches in self._watches.values() for watch in watches]


class _Goal(Enum):
    """What a waiter waits for."""

    READY = "ready"
    PENDING = "pending"
    CONCLUDED = "concluded"


_AT: dict[_Goal, frozenset[JobStatus]] = {
    _Goal.READY: frozenset({JobStatus.READY, JobStatus.STANDBY}),
    _Goal.PENDING: frozenset({JobStatus.PENDING}),
    _Goal.CONCLUDED: frozenset(),
}


class JobWatch:
    """The recorded events of one job; made by `JobMonitor.watch`.

    Attributes:
        job_id: The job's name.
        error_count: How many I/O errors it had since the watch was opened.
    """

    def __init__(self, job_id: str, monitor: JobMonitor, session: Session) -> None:
        self.job_id = job_id
        self.error_count = 0
        self._monitor = monitor
        self._session = session
        self._closed = False
        self._changed = anyio.Event()
        self._heard = 0  # relevant events: did one come while an answer was on its way?
        self._status: JobStatus | None = None
        self._times: dict[JobStatus, float] = {}
        self._stopped = False  # an I/O error said that it stops the job
        self._failed = False
        self._error: str | None = None
        self._last = Job(job_id, "", JobStatus.UNDEFINED)

    @property
    def times(self) -> Mapping[JobStatus, float]:
        """QEMU's time of the last change to each state, in seconds since 1970.

        The standstill of a pivot lasts from PENDING to CONCLUDED.
        """
        return MappingProxyType(self._times)

    @property
    def status(self) -> JobStatus | None:
        """The last known state; None before the first event."""
        return self._status

    async def until_ready(self) -> Job:
        """Wait until source and target are in sync; return the job as of then.

        Call it after the reply to the command that starts the job. When cancelled, the job keeps running.

        Raises:
            JobFailed: When it ended, with an error or before it was completed; `changed` is
                UNKNOWN.
            JobPaused: When an I/O error has paused it, as its policy says.
            LinkLost: When the link is lost, whatever the last events said.
        """
        return await self._until(_Goal.READY)

    async def until_pending(self) -> Job:
        """Wait until the job has done its work and waits to be finalized; as `until_ready`.

        Raises:
            JobFailed: When it ended, with an error or because another client finalized it; `changed` is
                UNKNOWN.
            JobPaused: When an I/O error has paused it, as its policy says.
            LinkLost: When the link is lost, whatever the last events said.
        """
        return await self._until(_Goal.PENDING)

    async def until_concluded(self) -> Job:
        """Wait until the job has succeeded; return it, not dismissed yet.

        Call it after the reply to the command that starts the job. When cancelled, the job keeps running.
        A job that another client dismissed is returned if its end was observed here.

        Raises:
            JobFailed: When it failed, was cancelled, or disappeared without an observed end; `changed`
                is UNKNOWN.
            JobPaused: When an I/O error has paused it, as its policy says.
            LinkLost: When the link is lost, whatever the last events said.
        """
        return await self._until(_Goal.CONCLUDED)

    async def until_still(self, moment: float) -> Job | None:
        """Wait until the job makes no more progress by itself; return it, or None once it has ended.

        That is so in one of the states `STAYS`, with no event for `moment` seconds. No event and no field
        distinguishes a requested pause from that of a drain, or a job that passes READY or pending from
        one that stays there: only time does.

        Raises:
            LinkLost: When the link is lost, whatever the last events said.
        """
        while True:
            changed, heard = self._changed, self._heard
            if self._closed:
                raise LinkLost(f"nobody is following job {self.job_id!r} any more", step=self._step)
            if self._session.lost.is_set():
                raise self._lost()
            if self._status in ENDED:
                return None
            if self._status is not None:
                with anyio.move_on_after(moment if self._status in STAYS else None):
                    await changed.wait()
                    continue
            job = await self._ask()
            if heard == self._heard:
                if job is None or (self._status in STAYS and self._status is job.status):
                    return job
                self._status = job.status

    def note(self, event: Event, job: JobEvent) -> None:
        """Record an event of this job (for the monitor)."""
        if event.name == "BLOCK_JOB_ERROR":
            # With the policy `ignore` thousands a second: counted, and nobody is woken.
            self.error_count += 1
            if job.action != "stop":
                return
            self._stopped = True
        self._heard += 1
        match event.name:
            case "BLOCK_JOB_ERROR":
                self.wake()
            case "BLOCK_JOB_COMPLETED":
                self._measure(job)
                if job.error is not None:
                    self._fail(job.error)
            case "BLOCK_JOB_CANCELLED":
                self._measure(job)
                self._fail("Operation canceled")  # QEMU's own text, which query-jobs has
            case "JOB_STATUS_CHANGE":
                if job.status is not None:
                    self._enter(job.status, event.timestamp)
            case _:
                pass

    def take_over(self, earlier: JobWatch) -> None:
        """Know of the job what an earlier watch has recorded (for the monitor)."""
        self._status, self._times, self._last = earlier._status, {**earlier._times}, earlier._last
        self._stopped, self._failed, self._error = earlier._stopped, earlier._failed, earlier._error

    def wake(self) -> None:
        """Let waiters check again (for the monitor)."""
        self._changed.set()
        self._changed = anyio.Event()

    def close(self) -> None:
        """End the waiters, because no more events are recorded (for the monitor)."""
        self._closed = True
        self.wake()

    def _enter(self, status: JobStatus, timestamp: float) -> None:
        if status is JobStatus.CREATED:  # another job under the same name
            self._times.clear()
            self._stopped = self._failed = False
            self._error = None
        self._status = status
        self._times[status] = timestamp
        if status is JobStatus.ABORTING:
            self._failed = True
        self.wake()

    def _fail(self, error: str) -> None:
        self._failed = True
        self._error = error

    def _measure(self, job: JobEvent) -> None:
        if job.offset is not None and job.length is not None and job.speed is not None:
            self._last = replace(
                self._last, offset=job.offset, length=job.length, speed=job.speed, type=job.type
            )

    async def _until(self, goal: _Goal) -> Job:
        if self._status is None:
            await self._learn()
        while True:
            changed, heard = self._changed, self._heard
            if self._closed:
                raise LinkLost(f"nobody is following job {self.job_id!r} any more", step=self._step)
            if self._status in ENDED:
                job = await self._ask()
                if heard == self._heard:
                    return self._judge(goal, job)
            elif self._session.lost.is_set():
                raise self._lost()
            elif self._stopped and self._status in _STILL:
                job = await self._ask()
                if heard == self._heard:
                    if job is not None and job.stopped_by_error:
                        raise self._paused(job)
                    self._stopped = False  # it was resumed meanwhile
                    continue
            elif self._status in _AT[goal]:
                job = await self._ask()
                if heard == self._heard and job is not None and (job.ready or goal is _Goal.PENDING):
                    return job
            if heard == self._heard:
                await changed.wait()

    async def _learn(self) -> None:
        """Ask for a job of which no event has come yet."""
        heard = self._heard
        job = await self._ask()
        if heard != self._heard:
            return
        if job is None:
            raise self._failure("vanished", "it is not in query-jobs, and its end was not observed")
        self._status = job.status
        self._stopped = job.stopped_by_error
        self._failed = job.status is JobStatus.ABORTING

    async def _ask(self) -> Job | None:
        """Ask QEMU for the job; None when QEMU has no such job."""
        try:
            job = next((job for job in await self._monitor.jobs() if job.id == self.job_id), None)
        except LinkLost as error:
            raise self._lost() from error
        if job is not None:
            self._last = job
        return job

    def _judge(self, goal: _Goal, job: Job | None) -> Job:
        """Determine how the job ended: by query-jobs, or by the events if it was dismissed."""
        if job is not None:
            error, failed = job.error, job.error is not None
        else:
            error, failed = self._error, self._failed
            if not failed and JobStatus.CONCLUDED not in self._times:
                raise self._failure("vanished", "it was dismissed, and its end was not observed")
        if failed:
            raise self._failure("failed", error or "QEMU gave no reason")
        if goal is not _Goal.CONCLUDED:
            raise self._failure("failed", "it ended before it was completed")
        return job or replace(self._last, status=JobStatus.CONCLUDED, paused=False, ready=False)

    @property
    def _step(self) -> str:
        return f"waiting for job {self.job_id!r}"

    def _failure(self, what: str, error: str) -> JobFailed:
        return JobFailed(
            f"job {self.job_id!r} {what}: {error}", job_id=self.job_id, error=error, changed=Changed.UNKNOWN
        )

    def _paused(self, job: Job) -> JobPaused:
        assert job.io_status is not None  # noqa: S101 - stopped_by_error says so
        reason = _REASONS[job.io_status]
        return JobPaused(
            f"job {self.job_id!r} is paused: {reason}",
            job_id=self.job_id,
            reason=reason,
            hint=f"fix the cause, then qmpsnap job resume {self.job_id}; or qmpsnap job cancel {self.job_id}",
        )

    def _lost(self) -> LinkLost:
        """Make the error for a lost link, with the job's last known status."""
        said = f"{self._status}: {self._error}" if self._error else f"{self._status or 'nothing'}"
        return self._session.link_lost(self._step, known=f"its last known status is {said!r}")
