"""One run of one plan: forward to its end, or back to where it began.

Used by the executor alone, which keeps it in a task that nothing cancels; so here no await ends
early, and to stop is a wish that is looked at between the steps and in long waits.
"""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial

import anyio

from qmpsnap.errors import (
    Changed,
    CommandFailed,
    Detached,
    GraphMismatch,
    Incomplete,
    JobFailed,
    JobPaused,
    LinkLost,
    QmpsnapError,
    StillNeeded,
)
from qmpsnap.model.files import Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import JobStatus
from qmpsnap.model.step import AddNode, DropNode, Stage, Step
from qmpsnap.plan.checks.disk import refuse_jobs
from qmpsnap.plan.plan import Plan
from qmpsnap.run.both import both
from qmpsnap.run.caller import Caller
from qmpsnap.run.journal import Journal
from qmpsnap.run.log import get_logger
from qmpsnap.run.machine_lock import Hold
from qmpsnap.run.outcome import (
    Done,
    Hooks,
    invalid_now,
    left_nodes,
    mismatch,
    moved_roots,
    outcome,
    same,
    vanished,
    with_stayed,
)
from qmpsnap.run.read_back import check_files, look_back
from qmpsnap.run.retirement import Retirement
from qmpsnap.run.rollback import EndedWell, Rollback, rolled_back
from qmpsnap.run.target import Standstill, Target, Watch, guest_of

_log = get_logger("qmpsnap.run")
_PENDING, _CONCLUDED = JobStatus.PENDING, JobStatus.CONCLUDED


class _Stop(Exception):
    """The caller asked to stop before the point of no return."""


class Operation:
    """One run of one plan.

    Args:
        target: The machine.
        plan: The plan.
        hooks: What the caller wants to be told.
        seen: The graph when it was read a moment ago, for this very plan.
        hold: Keeps other clients away; given while a job copies.
        fresh: Whether the plan was made just now: the chains are those that it was made on.

    Attributes:
        stop: Set by the executor when its caller was cancelled.
    """

    def __init__(
        self, target: Target, plan: Plan, hooks: Hooks, seen: Graph | None, hold: Hold, *, fresh: bool = False
    ) -> None:
        self._caller = Caller(hooks)
        self.stop = self._caller.stop
        self._target = target
        self._plan = plan
        self._journal = Journal(plan, seen)
        self._hold = hold
        self._fresh = fresh
        self._drained: float | None = None
        self._bytes = 0

    async def run(self) -> Done:
        """Run the plan; see `Executor.run`. What a call-back raised is raised when all is in order."""
        try:
            done = await self._run()
        except QmpsnapError as error:
            if (complaint := self._caller.complaint) is None:
                raise
            complaint.add_note(f"{self._plan.op}: {error}")
            raise complaint from error
        if (complaint := self._caller.complaint) is not None:
            complaint.add_note(f"{self._plan.op}: done nevertheless, the chains are {dict(done.chains)}")
            raise complaint
        return done

    async def _run(self) -> Done:
        started = time.monotonic()
        await self._check_before()
        done = not any(stage.verify for stage in self._plan.stages) and not self._plan.vanished
        if self._plan.intent is None and done:
            # The rest of what an earlier run had done.
            await self._check_files(self._journal.graph or self._plan.before)
        guest = self._target.guest
        stops = guest.stops() if guest is not None else nullcontext()
        with self._target.watch(self._plan.job_id) as watch, stops as standstill:
            try:
                await self._there_or_back(watch)
            except LinkLost as error:
                await Rollback(self._target, self._journal).after_loss(error)
                raise
            if self._plan.vanished:
                raise vanished(self._plan)
            await self._look_at_what_is_left()
            return self._result(time.monotonic() - started, standstill)

    async def _there_or_back(self, watch: Watch) -> None:
        try:
            await self._stages(self._plan.stages, watch)
        except _Stop:
            await self._back_or_on(None, watch)
        except (LinkLost, JobPaused, Detached, GraphMismatch, Incomplete):
            raise
        except QmpsnapError as error:
            await self._back_or_on(error, watch)

    async def _back_or_on(self, error: QmpsnapError | None, watch: Watch) -> None:
        """Take back what was done and raise; or go on to the end when the job had ended well."""
        plan, journal = self._plan, self._journal
        try:
            undone = await Rollback(self._target, journal).go(watch)
        except EndedWell:
            await self._on(watch)
            return
        if undone.graph is not None and isinstance(error, StillNeeded):
            journal.graph = undone.graph  # others have changed the chain, as was found before anything moved
        elif undone.graph is not None:
            journal.look(undone.graph)
        error = rolled_back(error, undone, journal)
        if journal.loaded and plan.moves and journal.graph is not None:
            error.left = (*error.left, *await self._stay())
            await self._caller.tell_pivot(moved_roots(plan, journal.graph))
        raise error

    async def _stay(self) -> tuple[str, ...]:
        """Keep where the disks are when the memory could not be loaded there; return what is left.

        What the guest wrote until then is not removed, also where that was wanted.
        """
        stores = [step for step in self._journal.done if isinstance(step.effect, AddNode) and step.restores]
        closed = [back for step in stores for back in step.undo]
        steps = tuple(
            step
            for stage in self._plan.stages
            for step in stage.steps
            if stage.tidy and step.command != "retire-file" and step not in closed
        )
        try:
            await self._tidy(Stage("record where the disks are", steps, tidy=True))
        except Incomplete as error:
            return error.remaining
        return ()

    async def _look_at_what_is_left(self) -> None:
        """Read the graph again where nodes of others may have gone with those of ours that were put away."""
        journal = self._journal
        last = self._plan.stages[-1:]
        freed = any(isinstance(step.effect, DropNode) for stage in last for step in stage.steps)
        if freed and journal.graph is not None and left_nodes(self._plan, journal.graph):
            with suppress(QmpsnapError):  # all is done
                journal.graph = await self._target.graph()

    def _result(self, elapsed: float, stops: Standstill | None) -> Done:
        plan, graph = self._plan, self._journal.graph or self._plan.before
        _log.info("operation.done", vm=self._target.name, op=plan.op, elapsed=round(elapsed, 4))
        standstill = self._drained if self._target.guest is not None else None
        steps = self._journal.done
        if any(step.pauses for step in steps):
            paused = any(
                step.undo and (step.command == "stop" or step.kind == "stop-for-load") for step in steps
            )
            stays = paused and not any(step.command == "cont" for step in steps)  # from then on
            standstill = None if stays or stops is None else stops.seconds or 0.0
        size = self._bytes or self._journal.state_bytes or plan.state_bytes
        done = with_stayed(outcome(plan, graph), plan, self._journal.stayed)
        return replace(done, standstill_s=standstill, elapsed_s=elapsed, bytes=size)

    async def _check_before(self) -> None:
        """Refuse what cannot be done any more, or is another thing by now, since the plan was made."""
        journal = self._journal
        if journal.graph is None:
            journal.graph = await self._target.graph()
        if self._plan.excludes_jobs:
            refuse_jobs(await self._target.jobs(after_graph=True))
        found = journal.graph.chains(*self._plan.disks)
        planned = self._plan.run_state
        if planned and planned != (now := await guest_of(self._target).run_state()):
            raise GraphMismatch(
                f"the machine is {now}, it was {planned} when the plan was made",
                expected=self._plan.chains_before,
                found=found,
                changed=Changed.NO,
                hint="make a new plan",
            )
        if not self._fresh and not same(self._plan, journal.graph):
            raise GraphMismatch(
                "the chains, or their internal snapshots, have changed since the plan was made",
                expected=self._plan.chains_before,
                found=found,
                changed=Changed.NO,
                hint="make a new plan",
            )

    async def _stages(self, stages: tuple[Stage, ...], watch: Watch) -> None:
        for stage in stages:
            if stage.tidy:
                await self._tidy(stage)
                continue
            for steps in stage.groups:
                for step in steps:
                    await self._caller.tell_step(step)
                if self.stop.is_set() and not self._journal.forward:
                    raise _Stop
                if len(steps) > 1:
                    await self._side_by_side(steps)
                elif steps[0].command == "await-job":
                    await self._wait(steps[0], watch)
                elif steps[0].command == "await-migration":
                    await self._wait_migration(steps[0])
                else:
                    await self._perform(steps[0])
            if stage.verify:
                await self._verify()

    async def _perform(self, step: Step) -> None:
        journal = self._journal
        journal.begin(step)
        started = time.monotonic()
        try:
            seconds = await self._target.perform(step)
        except CommandFailed as error:
            journal.refuse(error)
            for recovery in step.on_failure if error.changed is not Changed.YES else ():
                await self._target.perform(recovery)
            raise
        journal.end(step)
        if step.command in {"seal-memory", "seal-store"}:
            self._bytes = guest_of(self._target).state_bytes
        if step.drains:
            self._drained = seconds
        elapsed = round(time.monotonic() - started, 4)
        _log.info("step.done", vm=self._target.name, op=self._plan.op, step=step.command, elapsed=elapsed)

    async def _side_by_side(self, steps: tuple[Step, ...]) -> None:
        errors: list[QmpsnapError] = []

        async def one(step: Step) -> None:
            try:
                await self._perform(step)
            except QmpsnapError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for step in steps:
                group.start_soon(one, step)
        if errors:
            raise errors[0]

    async def _wait(self, step: Step, watch: Watch) -> None:
        journal, state_job, may_leave = self._journal, self._journal.state_job, not self._journal.forward
        quiet = state_job is not None
        wait = partial(self._caller.wait, step, watch, self._target, may_leave=may_leave, quiet=quiet)
        try:
            copies = may_leave and self._plan.can_be_left
            job = await (self._hold.given_for(wait) if copies else wait())
        except LinkLost:
            raise
        except JobFailed as error:
            journal.fail_job(error)
            journal.say(error)
            raise
        except QmpsnapError as error:
            journal.say(error)
            raise
        if job is None:
            stops = self.stop.is_set() or not self._target.outlives_us
            raise _Stop if stops else self._detached(step.job_id)
        journal.loaded |= state_job is not None and state_job.loads
        journal.end(step)
        until = step.arguments["until"]
        journal.forward |= until == "concluded"
        if journal.copies:  # others count no bytes
            self._bytes = max(self._bytes, job.offset)
        times = watch.times
        if until == "concluded" and self._plan.moves and {_PENDING, _CONCLUDED} <= set(times):
            self._drained = max(0.0, times[_CONCLUDED] - times[_PENDING])

    async def _wait_migration(self, step: Step) -> None:
        """Wait for a migration; where QEMU bears it, the caller may stop it, whatever else is done."""
        self._journal.begin(step)
        if not await self._caller.wait_migration(step, self._target):
            raise _Stop
        self._journal.end(step)

    def _detached(self, job_id: str) -> Detached:
        error = Detached(
            f"left job {job_id} running",
            job_id=job_id,
            hint=f"qmpsnap job wait {job_id} finishes it, qmpsnap job cancel {job_id} stops it",
        )
        self._journal.say(error)
        return error

    async def _verify(self) -> None:
        plan, journal = self._plan, self._journal
        files = None
        if plan.after is None:
            graph = await self._target.graph()
        else:  # what is to be looked at is known
            look = partial(look_back, self._target, plan, plan.after)
            graph, files = await both(self._target.graph, look)
        journal.look(graph)
        found = graph.chains(*plan.disks)
        problem = mismatch(plan, graph)
        if problem:
            error = GraphMismatch(
                f"the graph is not the predicted one: {problem}",
                expected=plan.chains_after,
                found=found,
                hint="qmpsnap chain shows the chains, qmpsnap jobs what is left",
            )
            journal.say(error)
            raise error
        if plan.moves:
            await self._caller.tell_pivot(moved_roots(plan, graph))
        await self._check_files(graph, files)

    async def _check_files(self, graph: Graph, files: Files | None = None) -> None:
        """Check that what the operation wrote leads to the files that QEMU has open."""
        if files is None:
            files = await look_back(self._target, self._plan, graph)
        try:
            check_files(self._plan, graph, files)
        except Incomplete as error:
            self._journal.say(error)
            error.changed = Changed.YES
            raise

    async def _tidy(self, stage: Stage) -> None:
        """Put away what the operation leaves: each step is tried, the record goes last or stays."""
        failed: list[tuple[Step, QmpsnapError]] = []
        retirement = Retirement(self._target, self._journal)
        for step in stage.steps:
            undone = [one for one, _ in failed]
            if step.command in {"finish-record", "keep-moment"} and any(failure.owed for failure in undone):
                continue  # who ends what is left learns from it what that is
            try:
                await retirement.refuse(step, undone)
                await self._perform(step)
            except LinkLost:
                raise
            except QmpsnapError as error:
                if not retirement.stays(step, error):
                    failed.append((step, error))
        if failed:
            reasons = "; ".join(f"{step}: {error}" for step, error in failed)
            raise Incomplete(
                f"{self._plan.op} is done, but the cleanup is incomplete: {reasons}",
                done=[step.command for step in self._journal.done],
                remaining=[str(step) for step, _ in failed],
                hint=self._journal.later,
                invalid=invalid_now(self._plan, [step for step, _ in (*failed, *self._journal.stayed)]),
            ) from failed[0][1]

    async def _on(self, watch: Watch) -> None:
        """Bring an operation to its end whose job had ended well before it could be stopped."""
        for step in self._plan.steps:
            if step.way in {"flush", "job-dismiss"}:
                with suppress(CommandFailed):  # somebody else dismissed it; a layer left with the job
                    await self._perform(step)
        self._journal.forward = True
        await self._verify()
        stages = self._plan.stages
        early = [step for stage in stages if not stage.tidy for step in stage.steps]
        late = [step for step in early if step.command == "finish-record" and step not in self._journal.done]
        await self._tidy(Stage("remove the record", tuple(late), tidy=True))
        await self._stages(tuple(stage for stage in stages if stage.tidy), watch)
