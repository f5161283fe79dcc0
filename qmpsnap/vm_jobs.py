"""The part of a VM that speaks of jobs: progress, verbs, and what an earlier client left."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from qmpsnap.errors import Busy, Changed, ForeignJob, Interrupted, NotFound
from qmpsnap.model.arguments import Speed, Text, check, number, refuse
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import command
from qmpsnap.model.job import ENDED, STAYS, JobStatus, parse_job_id
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan import ownership, resume
from qmpsnap.plan.scene import Scene
from qmpsnap.run.outcome import Done, Hooks, check_hooks
from qmpsnap.run.parallel import both

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from qmpsnap.model.features import Features
    from qmpsnap.model.files import Files
    from qmpsnap.model.job import Job
    from qmpsnap.model.machine import Machine
    from qmpsnap.plan.intent import Intent
    from qmpsnap.plan.plan import Plan
    from qmpsnap.run.executor import Executor
    from qmpsnap.run.target import Progress, Target

__all__ = ["JobVerbs"]

# Seconds. QEMU pauses a job for a drain, and lets it pass READY and pending, in far less; while it drains it
# answers nobody.
_MOMENT = 2.0


class JobVerbs:
    """Jobs of one machine; a part of VM."""

    _target: Target
    _executor: Executor
    _state_dir: str

    if TYPE_CHECKING:

        async def plan(self, intent: Intent) -> Plan:
            """See `VM.plan`."""

    async def jobs(self) -> tuple[Job, ...]:
        """Every job that QEMU has, of any client, as of now; a concluded one with its error.

        QAPI: query-jobs (job.json), query-block-jobs (block-core.json).
        """
        return await self._target.jobs()

    async def job(self, job_id: str, *, foreign: bool = True) -> Job:
        """One job, as of now.

        Args:
            job_id: The job.
            foreign: Whether it may be somebody else's.

        Raises:
            NotFound: When there is no job of that id.
            ForeignJob: When it is not ours, and `foreign` is False.
        """
        _check(job_id, foreign=foreign)
        for job in await self._target.jobs():
            if job.id == job_id:
                if not job.mine and not foreign:
                    raise ForeignJob(
                        f"job {job_id!r} belongs to another client ({job.type})",
                        job_id=job_id,
                        hint="use --foreign (foreign=True) to act on it nevertheless",
                    )
                return job
        raise NotFound(f"there is no job {job_id!r}", hint="qmpsnap jobs lists what there is")

    async def interrupted(
        self, graph: Graph | None = None, *, live: bool = False
    ) -> tuple[IntentRecord, ...]:
        """Records of operations whose client went away, and of files that hold no moment any more.

        Those of other machines, which may lie in the same place, are left out. Empty where QEMU's files are
        not visible from here.

        Args:
            graph: The graph when it was read a moment ago; None: it is read.
            live: Whether operations are told too whose client is at work yet.
        """
        if not isinstance(graph, Graph | None):
            refuse("graph", graph, "give a graph that graph() returned")
        check("live", live, bool)
        graph = graph or await self._target.graph()
        files = await self._target.look(resume.ask(graph, state_dir=self._state_dir), graph)
        # One that lies in two places is one.
        found = {record.id: record for record in files.records if isinstance(record, IntentRecord)}.values()
        seen = {record.id for record in found if ownership.stands_here(record, graph, files.records)}
        process = ""
        if len(seen) < len(found):
            seen |= {job.id for job in await self._target.jobs()}
            if any(record.was and record.was.process for record in found if record.id not in seen):
                process = (await self._target.machine(graph)).process
        ours = (record for record in found if record.id in seen or ownership.ran_here(record, process))
        return tuple(record for record in ours if live or not record.live)

    def progress(self, job_id: str, *, interval: float = 1.0) -> AsyncIterator[Progress]:
        """How far a job is, again and again until it ends; asks QEMU each `interval` seconds."""
        _check(job_id)
        number("interval", interval, zero=True)
        return self._target.progress(job_id, interval)

    async def when_idle(self, intent: Intent) -> Plan:
        """Plan as soon as no job is in the way any more, of whichever client.

        Waits for one job after the other, without a limit, and plans again; nothing is sent. A job that
        does not end by itself is waited for some seconds at most, also when it comes to that meanwhile: one
        that stands at READY or at pending and whose client is not at work, or that is paused, by an error
        or as asked.

        Args:
            intent: What is wanted.

        Raises:
            Busy: When such a job is in the way, with what brings it on; or something that is no job.
            Refused: What `plan` raises.
            LinkLost: When the link goes.
        """
        waited: set[str] = set()
        while True:
            try:
                return await self.plan(intent)
            except Busy as busy:
                if not busy.job_id or busy.job_id in waited:
                    raise
                await self._until_ended(busy.job_id, busy)
                waited.add(busy.job_id)

    async def _until_ended(self, job_id: str, busy: Busy) -> None:
        """Wait for the job's end, which it is not asked for; refuse once it is clear that it will not end."""
        with self._target.watch(job_id) as watch:
            while await watch.until_still(_MOMENT) is not None:
                jobs = {job.id: job for job in await self._target.jobs()}
                job = jobs.get(job_id)
                if job is None or job.status not in STAYS:
                    continue
                if job.status is JobStatus.WAITING and (other := _held_up_by(jobs.values())) is not None:
                    await self._until_ended(other.id, busy)
                elif not await self._is_attended(job) and await self._stands(job):
                    raise Busy(
                        f"job {job.id!r} ({job.type}, {job.status.value}) does not end by itself",
                        node=busy.node,
                        job_id=job.id,
                        hint=_brings_it_on(job),
                    ) from busy

    async def _is_attended(self, job: Job) -> bool:
        """Whether a client of ours is at work on the job and brings it on; it may have layers to flush yet.

        No event tells that such a client went: this is asked once each moment.
        """
        if not job.mine or job.status in {JobStatus.PAUSED, JobStatus.STANDBY}:
            return False
        if self._executor.holds(job.id):
            return True
        return any(one.live and one.id == job.id for one in await self.interrupted(live=True))

    async def _stands(self, job: Job) -> bool:
        """Whether the job stands yet where it stood: its client may have brought it on while we looked."""
        return any(one.id == job.id and one.status is job.status for one in await self._target.jobs())

    async def plan_rest(self, job_id: str) -> Plan:
        """What is left of an operation of ours whose client went away.

        Raises:
            NotFound: When there is neither a job nor a record of that id, or the record is of another
                machine.
            Busy: When its client is at work yet.
        """
        _check(job_id)
        if self._executor.holds(job_id):
            raise Busy(f"the operation of {job_id!r} is running in this process", node="", job_id=job_id)
        graph = await self._target.graph()
        files = await self._target.look(resume.ask(graph, state_dir=self._state_dir), graph)
        records = tuple(one for one in files.records if isinstance(one, IntentRecord) and one.id == job_id)
        question = resume.ask(graph, records=records, state_dir=self._state_dir)
        files = await self._target.look(question, graph)
        machine = await self._target.machine(graph) if any(one.was for one in records) else None
        jobs, features = await both(self._target.jobs, self._target.features)
        return resume.plan(job_id, self._seen(graph, files, jobs, features, machine))

    async def job_wait(self, job_id: str, *, foreign: bool = False, hooks: Hooks | None = None) -> Done | Job:
        """Wait for a job and finish what was left of its operation: pivot, dismissal, files.

        Cancelled, it takes the operation back as the operation's own call would have: **the job is
        cancelled too**. To leave it running, set `hooks.detach`. A job that is not ours, or whose client is
        at work, is only waited for, and runs on.

        Args:
            job_id: The job, or the operation whose record is left.
            foreign: Whether a job that is not ours may be waited for; it is not completed, nor dismissed.
            hooks: What the caller wants to be told.

        Returns:
            The operation's result; of a job that is not ours, or whose client is at work yet, the job as it
            ended.

        Raises:
            NotFound: When there is neither a job nor a record of that id.
            ForeignJob: When the job is not ours.
            JobFailed: When it ended with an error, or vanished.
            JobPaused: When an I/O error paused it.
            Busy: When its client is at work yet, and there is no job to wait for.
        """
        _check(job_id, foreign=foreign)
        check_hooks(hooks)
        if parse_job_id(job_id) is None:
            await self.job(job_id, foreign=foreign)
            with self._target.watch(job_id) as watch:
                return await watch.until_concluded()
        try:
            plan = await self.plan_rest(job_id)
        except Busy:
            if all(job.id != job_id for job in await self._target.jobs()):
                raise
            with self._target.watch(job_id) as watch:  # its client does the rest
                return await watch.until_concluded()
        return await self._executor.run(plan, hooks, seen=plan.before)

    async def job_pause(self, job_id: str, *, foreign: bool = False) -> None:
        """Pause a job until it is resumed. QAPI: job-pause."""
        await self._verb("job-pause", job_id, foreign=foreign)

    async def job_resume(self, job_id: str, *, foreign: bool = False) -> None:
        """Resume a job that was paused by a user or by an I/O error. QAPI: job-resume."""
        await self._verb("job-resume", job_id, foreign=foreign)

    async def job_speed(self, job_id: str, speed: int, *, foreign: bool = False) -> None:
        """Limit a block job to `speed` bytes/s; 0: no limit. QAPI: block-job-set-speed."""
        check("speed", speed, Speed)
        await self.job(job_id, foreign=foreign)
        await self._executor.command("block-job-set-speed", {"device": job_id, "speed": speed})

    async def job_cancel(self, job_id: str, *, foreign: bool = False) -> Done | None:
        """Stop a job, wait for its end, and clear away what its operation leaves.

        A job that had ended well meanwhile is finished instead; the result says so by its chains.
        One that is not ours is told to stop, and not waited for.

        Returns:
            What was changed, and which files hold no moment any more; None for a job that is not ours, and
            for one whose client is at work yet: that clears away.

        Raises:
            NotFound: When there is neither a job nor a record of that id.
            Busy: When its client is at work yet, and there is no job to stop.
            ForeignJob: When the job is not ours.

        QAPI: job-cancel, job-dismiss (job.json).
        """
        _check(job_id, foreign=foreign)
        if parse_job_id(job_id) is None:
            await self._verb("job-cancel", job_id, foreign=foreign)
            return None
        try:
            plan = await self.plan_rest(job_id)
        except Busy:
            if all(job.id != job_id for job in await self._target.jobs()):
                raise
            await self._verb("job-cancel", job_id, foreign=foreign)
            return None
        hooks = Hooks(cancel=anyio.Event())
        hooks.cancel.set()  # type: ignore[union-attr]
        try:
            return await self._executor.run(plan, hooks, seen=plan.before)
        except Interrupted as stopped:
            graph = await self._target.graph()
            return Done(
                op=plan.op,
                chains=graph.chains(*plan.disks),
                left=stopped.left,
                invalid=stopped.invalid,
                notes=(stopped.message,),
                job_id=job_id,
                changed=stopped.changed is not Changed.NO,
            )

    async def _verb(self, command: str, job_id: str, *, foreign: bool) -> None:
        await self.job(job_id, foreign=foreign)
        await self._executor.command(command, {"id": job_id})

    def _seen(
        self,
        graph: Graph,
        files: Files,
        jobs: tuple[Job, ...],
        features: Features,
        machine: Machine | None = None,
    ) -> Scene:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        return Scene(graph, files, jobs, features, now, self._state_dir, machine)


def _check(job_id: str, *, foreign: bool = False) -> None:
    check("job_id", job_id, Text)
    check("foreign", foreign, bool)


def _held_up_by(jobs: Iterable[Job]) -> Job | None:
    """The job that one which is WAITING waits for, as far as QEMU tells; rather one that moves."""
    others = [job for job in jobs if job.status is not JobStatus.WAITING and job.status not in ENDED]
    return min(others, key=lambda job: job.status in STAYS, default=None)


def _brings_it_on(job: Job) -> str:
    """What lets a job go on that stands still."""
    named = (job.id,) if job.mine else (job.id, "--foreign")
    if job.status in {JobStatus.PAUSED, JobStatus.STANDBY}:
        on = f"{command('job', 'resume', *named)} resumes it"
    elif job.mine:
        on = f"{command('job', 'wait', *named)} finishes it"
    else:
        on = f"its client has to {'finalize' if job.status is JobStatus.PENDING else 'complete'} it"
    return f"{on}, {command('job', 'cancel', *named)} stops it"
