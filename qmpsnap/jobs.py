"""The jobs of a machine: what is running, and what an earlier client left unfinished."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial

import anyio

from qmpsnap.errors import Busy, Changed, ForeignJob, Interrupted, JobFailed, NotFound
from qmpsnap.model.arguments import Speed, Text, check, number, refuse
from qmpsnap.model.backup import RunningBackup, is_backup_moment
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import command
from qmpsnap.model.interrupted import LeftBehind
from qmpsnap.model.job import VERBS, Job, JobVerb, parse_job_id
from qmpsnap.model.job_place import JobPlace, job_places
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.plan import Plan
from qmpsnap.run.executor import Executor
from qmpsnap.run.log import get_logger
from qmpsnap.run.outcome import Done, Hooks, check_hooks, mismatch, outcome
from qmpsnap.run.planning import Planning
from qmpsnap.run.target import Progress, Target, Watch

_log = get_logger("qmpsnap.run")
_MOMENT = 0.5  # seconds between two looks whether another client is still at work


class Jobs:
    """The jobs of one machine, as `VM.jobs`.

    Args:
        target: The machine.
        executor: Runs plans on it.
        planning: Makes plans for it.
    """

    def __init__(self, target: Target, executor: Executor, planning: Planning) -> None:
        self._target = target
        self._executor = executor
        self._planning = planning

    async def list(self) -> tuple[Job, ...]:
        """Every job that QEMU has, of any client, as of now; a concluded job with its error.

        QAPI: query-jobs (job.json), query-block-jobs (block-core.json).
        """
        return await self._target.jobs()

    async def get(self, job_id: str, *, foreign: bool = True) -> Job:
        """One job, as of now.

        Args:
            job_id: The job.
            foreign: Whether it may be another client's.

        Raises:
            NotFound: When there is no job of that id.
            Busy: When it is a backup that a client is making, which is no job.
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
        if is_backup_moment(job_id):
            await self._refuse_backup(job_id)
        raise NotFound(f"there is no job {job_id!r}", hint="qmpsnap jobs lists what there is")

    async def backups(self, graph: Graph | None = None) -> tuple[RunningBackup, ...]:
        """The backups of the machine that clients are making, in this process or another on the host.

        Such a backup is no job: nobody but its client can end it. Empty if QEMU's files are not visible.

        Args:
            graph: The graph, if it has just been read; None: it is read.
        """
        if not isinstance(graph, Graph | None):
            refuse("graph", graph, "give a graph that graph() returned")
        return await self._planning.backups(graph)

    async def places(self, graph: Graph | None = None) -> Mapping[str, JobPlace]:
        """The disk of each job, the file that it writes, and when its operation began; by job id.

        Operations of ours that have no job are included. What is not known is "": QEMU does not report when
        another client's job began.

        Args:
            graph: The graph, if it has just been read; None: it is read.

        QAPI: x-debug-query-block-graph (block-core.json), if this QEMU has it.
        """
        if not isinstance(graph, Graph | None):
            refuse("graph", graph, "give a graph that graph() returned")
        graph = graph or await self._target.graph()
        records = await self._planning.interrupted(graph, live=True)
        return job_places(graph, await self._target.block_graph(), records)

    async def interrupted(
        self, graph: Graph | None = None, *, live: bool = False
    ) -> tuple[IntentRecord, ...]:
        """Records of operations whose client is gone, and of files that no longer hold their moment.

        Records of other machines in the same directories are left out. Empty if QEMU's files are not visible.
        What a fork has left is the checkpoint that it has taken for itself; `live` leaves it out.

        Args:
            graph: The graph, if it has just been read; None: it is read.
            live: Whether to include operations whose client is still at work.
        """
        if not isinstance(graph, Graph | None):
            refuse("graph", graph, "give a graph that graph() returned")
        check("live", live, bool)
        return await self._planning.interrupted(graph, live=live)

    async def left_behind(self, graph: Graph | None = None) -> tuple[LeftBehind, ...]:
        """Images beside layers of the machine that a killed process has left; `remedy` removes them.

        It was making a template, or had forked the machine. What `interrupted` returns is left out.

        Args:
            graph: The graph, if it has just been read; None: it is read.
        """
        if not isinstance(graph, Graph | None):
            refuse("graph", graph, "give a graph that graph() returned")
        return await self._planning.left_behind(graph)

    def progress(self, job_id: str, *, interval: float = 1.0) -> AsyncIterator[Progress]:
        """Yield how far a job is, until it ends; asks QEMU every `interval` seconds."""
        _check(job_id)
        number("interval", interval, zero=True)
        return self._target.progress(job_id, interval)

    async def plan(self, job_id: str) -> Plan:
        """What is left of an operation of ours whose client is gone.

        Raises:
            NotFound: When there is neither a job nor a record of that id, or the record belongs to another
                machine.
            Busy: When its client is still at work.
        """
        _check(job_id)
        if self._executor.holds(job_id):
            raise Busy(f"the operation of {job_id!r} is running in this process", node="", job_id=job_id)
        return await self._planning.resume(job_id)

    async def wait(self, job_id: str, *, foreign: bool = False, hooks: Hooks | None = None) -> Done | Job:
        """Wait for a job and finish what is left of its operation: pivot, dismissal, files.

        Cancelled, it rolls the operation back as the operation's own call would have: **the job is cancelled
        too**. To leave it running, set `hooks.detach`. A job that is not ours, or whose client is still at
        work, is only waited for, and keeps running. If that client of ours goes, its operation is finished
        here. Of two that wait for one interrupted operation, one finishes it, and the other waits.

        Args:
            job_id: The job, or the operation that left a record.
            foreign: Whether a job that is not ours may be waited for; it is neither completed nor dismissed.
            hooks: What the caller wants to be told.

        Returns:
            The operation's result, with a note where another client has finished it meanwhile; for a job that
            is not ours, or whose client was at work from the beginning, the job as it ended.

        Raises:
            NotFound: When there is neither a job nor a record of that id.
            ForeignJob: When the job is not ours.
            JobFailed: When it ended with an error, or vanished, or another client has cancelled it meanwhile.
            JobPaused: When an I/O error paused it.
            Busy: When its client is still at work, and there is no job to wait for, as for a backup.
            Interrupted: When `hooks.cancel` or `hooks.detach` was set while another client was at work.
        """
        _check(job_id, foreign=foreign)
        check_hooks(hooks)
        if parse_job_id(job_id) is None:
            with self._target.watch(job_id) as watch:  # it may end as soon as we have looked
                await self.get(job_id, foreign=foreign)
                return await watch.until_concluded()
        return await self._finish(job_id, hooks or Hooks())

    async def pause(self, job_id: str, *, foreign: bool = False) -> None:
        """Pause a job until it is resumed. QAPI: job-pause."""
        await self._taking(JobVerb.PAUSE, job_id, foreign=foreign)
        await self._target.execute("job-pause", {"id": job_id})

    async def resume(self, job_id: str, *, foreign: bool = False) -> None:
        """Resume a job that was paused by a user or by an I/O error. QAPI: job-resume."""
        await self._taking(JobVerb.RESUME, job_id, foreign=foreign)
        await self._target.execute("job-resume", {"id": job_id})

    async def set_speed(self, job_id: str, speed: int, *, foreign: bool = False) -> None:
        """Limit a block job to `speed` bytes/s; 0: no limit. QAPI: block-job-set-speed."""
        check("speed", speed, Speed)
        await self._taking(JobVerb.SET_SPEED, job_id, foreign=foreign)
        await self._target.execute("block-job-set-speed", {"device": job_id, "speed": speed})

    async def cancel(self, job_id: str, *, foreign: bool = False) -> Done | None:
        """Cancel a job, wait for its end, and clean up after its operation.

        If the job has completed meanwhile, the operation is finished instead; the result's chains show it. A
        job that is not ours is only asked to stop, and not waited for. What a killed client has left
        without a job is finished or taken back, as `wait` does it: there is nothing to cancel.

        Returns:
            What was changed, and which files no longer hold their moment; None for a job that is not ours,
            and for
            one whose client is still at work: that client cleans up.

        Raises:
            NotFound: When there is neither a job nor a record of that id.
            Busy: When its client is still at work, and there is no job to stop.
            ForeignJob: When the job is not ours.

        QAPI: job-cancel, job-dismiss (job.json).
        """
        _check(job_id, foreign=foreign)
        with self._target.watch(job_id) as watch:  # another client may end it before we look again
            while True:
                plan = await self._rest(job_id, foreign=foreign)
                if plan is None:
                    await self._target.execute("job-cancel", {"id": job_id})
                    return None
                stop = anyio.Event()
                if plan.resumes:  # else there is one way only, and the plan is that
                    stop.set()
                try:
                    resume = partial(self._planning.resume, job_id)
                    return await self._executor.do(resume, Hooks(cancel=stop))
                except Interrupted as stopped:
                    return await self._cancelled(plan, stopped)
                except NotFound:
                    return await self._finished_by_another(plan, watch)
                except Busy as busy:
                    if busy.job_id != job_id:
                        raise

    async def finish(self, plan: Plan, hooks: Hooks | None = None) -> Done:
        """Run a plan of `plan`, as `wait` does.

        Where another client has finished the operation meanwhile, the result's notes say so, and nothing was
        changed by this call.

        Raises:
            JobFailed: Also when another client has cancelled the operation.
        """
        if not isinstance(plan, Plan) or not plan.finishes:
            refuse("plan", plan, "give a plan that jobs.plan() returned")
        check_hooks(hooks)
        done = await self._finish(plan.finishes, hooks or Hooks(), plan)
        assert isinstance(done, Done)  # noqa: S101 - the plan is known
        return done

    async def _finish(self, job_id: str, hooks: Hooks, known: Plan | None = None) -> Done | Job:
        """Finish what is left of an operation of ours; or wait while another client does.

        Args:
            job_id: The job, or the operation that left a record.
            hooks: What the caller wants to be told.
            known: What was left of it a moment ago; None: not known.
        """
        ended: Job | None = None
        told = False
        with self._target.watch(job_id) as watch:  # another client may end it before we look again
            while True:
                try:
                    known = await self.plan(job_id)
                    return await self._executor.do(partial(self._planning.resume, job_id), hooks)
                except NotFound:
                    if known is not None:
                        return await self._finished_by_another(known, watch)
                    if ended is None:
                        raise
                    return ended
                except Busy as busy:
                    if busy.job_id != job_id:
                        raise
                    has_job = any(job.id == job_id for job in await self._target.jobs())
                    if not has_job and known is None and ended is None:
                        raise
                    if not told:
                        _log.info("operation.left_to_another", vm=self._target.name, job_id=job_id)
                        told = True
                    ended = await self._until_ended(watch, hooks, has_job=has_job) or ended

    async def _until_ended(self, watch: Watch, hooks: Hooks, *, has_job: bool) -> Job | None:
        """Wait until a job has ended that another client finishes, or for a moment; None: it has not ended.

        No event tells that the other client has gone. So the caller looks again and again.
        """
        with anyio.move_on_after(_MOMENT):
            if has_job:
                return await watch.until_concluded()
            await anyio.sleep_forever()
        if any(event is not None and event.is_set() for event in (hooks.cancel, hooks.detach)):
            raise Interrupted("not waited for any longer; another client is finishing the operation")
        return None

    async def _finished_by_another(self, plan: Plan, watch: Watch) -> Done:
        """The result of an operation that another client has finished since the plan was made."""
        problem = plan.vanished
        if plan.job_id == plan.finishes and plan.expect == plan.began:  # no chain shows how it has ended
            try:
                await watch.until_concluded()
            except JobFailed as failed:
                problem = failed.error
        graph = await self._target.graph()
        if problem := problem or mismatch(plan, graph):
            raise JobFailed(
                f"another client has ended {plan.finishes}, and not as it was to end: {problem}",
                job_id=plan.job_id,
                error=problem,
                changed=Changed.YES if plan.invalid_if_stopped else Changed.NO,
                invalid=plan.invalid_if_stopped,
            )
        done = outcome(plan, graph)
        return replace(done, changed=False, notes=(*done.notes, "another client has finished it"))

    async def _cancelled(self, plan: Plan, stopped: Interrupted) -> Done:
        """The result of a cancellation."""
        graph = await self._target.graph()
        return Done(
            op=plan.op,
            chains=graph.chains(*plan.disks),
            left=stopped.left,
            invalid=stopped.invalid,
            notes=(stopped.message,),
            job_id=plan.finishes,
            changed=stopped.changed is not Changed.NO,
            ended="cancelled",
        )

    async def _refuse_backup(self, name: str) -> None:
        """Refuse to act on a backup that is running."""
        for backup in await self.backups():
            if backup.id == name:
                who = backup.process or "another process"
                raise Busy(
                    f"{name} is no job: {who} is making that backup of {', '.join(backup.disks)}",
                    node="",
                    job_id="",
                    hint=backup.ends,
                )

    async def _rest(self, job_id: str, *, foreign: bool) -> Plan | None:
        """What is left of an operation of ours; None if there is a job that another client finishes."""
        if parse_job_id(job_id) is None:
            await self.get(job_id, foreign=foreign)
            return None
        try:
            return await self.plan(job_id)
        except Busy:
            if all(job.id != job_id for job in await self._target.jobs()):
                raise
            return None

    async def _taking(self, verb: JobVerb, job_id: str, *, foreign: bool) -> None:
        """Refuse what QEMU does not take in the job's state."""
        job = await self.get(job_id, foreign=foreign)
        if job.status not in VERBS[verb]:
            raise Busy(
                f"job {job_id!r} no longer copies anything: it is {job.status}",
                node="",
                job_id=job_id,
                hint=f"finish it: {command('job', 'wait', job_id)}" if job.mine else "",
            )


def _check(job_id: str, *, foreign: bool = False) -> None:
    check("job_id", job_id, Text)
    check("foreign", foreign, bool)
