"""One run of one plan: forward to its end, or back to where it began.

Used by the executor alone, which keeps it in a task that nothing cancels; so here no await ends
early, and to stop is a wish that is looked at between the steps and while a job runs.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from qmpsnap.errors import (
    Changed,
    CommandFailed,
    Detached,
    GraphMismatch,
    Incomplete,
    Interrupted,
    JobFailed,
    JobPaused,
    LinkLost,
    QmpsnapError,
)
from qmpsnap.model.job import JobStatus
from qmpsnap.plan.plan import Stage
from qmpsnap.plan.steps import (
    AdoptJob,
    AwaitJob,
    CancelJob,
    DismissJob,
    FinishRecord,
    RemoveMade,
    RetireFile,
    StartCommit,
    StartStream,
    TakeSnapshots,
    WriteRecord,
)
from qmpsnap.plan.undo import changes, drains, no_way_back, undo, unseen
from qmpsnap.run.caller import Caller
from qmpsnap.run.log import get_logger
from qmpsnap.run.outcome import (
    by_qemu,
    invalid_now,
    made_files,
    mismatch,
    moved_roots,
    outcome,
    same,
    vanished,
)

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.plan import Plan
    from qmpsnap.plan.steps import Step
    from qmpsnap.run.outcome import Done, Hooks
    from qmpsnap.run.target import Target, Watch

__all__ = ["Operation"]

_log = get_logger("qmpsnap.run")
_PENDING, _CONCLUDED = JobStatus.PENDING, JobStatus.CONCLUDED


class _Stop(Exception):
    """The caller asked to stop before the point of no return."""


class _EndedWell(Exception):
    """The job that was to be cancelled had ended with success."""


class Operation:
    """One run of one plan.

    Args:
        target: The machine.
        plan: The plan.
        hooks: What the caller wants to be told.
        seen: The graph when it was read a moment ago, for this very plan.

    Attributes:
        stop: Set by the executor when its caller was cancelled.
    """

    def __init__(self, target: Target, plan: Plan, hooks: Hooks, seen: Graph | None) -> None:
        self._caller = Caller(hooks)
        self.stop = self._caller.stop
        self._target = target
        self._plan = plan
        self._graph = seen
        self._done: list[Step] = list(plan.resumes)
        adopts = any(isinstance(step, AdoptJob) for step in plan.resumes)
        self._sent = adopts  # some QMP command of the plan went out
        self._tried: list[Step] = []  # what was begun; it may have failed
        self._forward = False  # the step that cannot be taken back went out
        self._moved = adopts and plan.op != "mirror"  # a chain, or bytes of a layer, changed
        self._standstill: float | None = None
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
            complaint.add_note(f"{self._plan.op}: done all the same, the chains are {dict(done.chains)}")
            raise complaint
        return done

    async def _run(self) -> Done:
        started = time.monotonic()
        await self._check_before()
        with self._target.watch(self._plan.job_id) as watch:
            try:
                await self._there_or_back(watch)
            except LinkLost as error:
                await self._look_after_loss(error)
                raise
        if self._plan.vanished:
            raise vanished(self._plan)
        return self._result(time.monotonic() - started)

    async def _there_or_back(self, watch: Watch) -> None:
        try:
            await self._stages(self._plan.stages, watch)
        except _Stop:
            await self._back_or_on(None, watch)
        except (LinkLost, JobPaused, Detached, GraphMismatch, Incomplete):
            raise
        except QmpsnapError as error:
            await self._back_or_on(error, watch)

    def _result(self, elapsed: float) -> Done:
        plan, graph = self._plan, self._graph or self._plan.before
        _log.info("operation.done", vm=self._target.name, op=plan.op, elapsed=round(elapsed, 4))
        return replace(
            outcome(plan, graph), standstill_s=self._standstill, elapsed_s=elapsed, bytes=self._bytes
        )

    async def _check_before(self) -> None:
        if self._graph is None:
            self._graph = await self._target.graph()
        found = self._graph.chains(*self._plan.disks)
        if not same(self._plan, self._graph):
            raise GraphMismatch(
                "the chains, or the snapshots inside, are not those that the plan was made on",
                expected=self._plan.chains_before,
                found=found,
                changed=Changed.NO,
                hint="plan again",
            )

    # -- forward -----------------------------------------------------------------------------------

    async def _stages(self, stages: tuple[Stage, ...], watch: Watch) -> None:
        for stage in stages:
            if stage.tidy:
                await self._tidy(stage)
                continue
            for steps in stage.groups:
                if self.stop.is_set() and not self._forward:
                    raise _Stop
                if len(steps) > 1:
                    await self._side_by_side(steps)
                elif isinstance(steps[0], AwaitJob):
                    await self._wait(steps[0], watch)
                else:
                    await self._perform(steps[0])
            if stage.verify:
                await self._verify()

    async def _perform(self, step: Step) -> None:
        self._sent |= step.on == "qmp"
        self._forward |= no_way_back(step)
        self._tried.append(step)
        started = time.monotonic()
        try:
            seconds = await self._target.perform(step)
        except CommandFailed as error:
            self._forward = False  # QEMU said no: it is as it was before, unless it says otherwise
            self._moved |= error.changed is Changed.YES
            raise
        self._done.append(step)
        self._moved |= changes(step)
        if drains(step):
            self._standstill = seconds
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

    async def _wait(self, step: AwaitJob, watch: Watch) -> None:
        try:
            job = await self._caller.wait(step, watch, self._target, may_leave=not self._forward)
        except LinkLost:
            raise
        except QmpsnapError as error:
            self._say(error)
            raise
        if job is None:
            raise _Stop if self.stop.is_set() else self._detached(step.job_id)
        self._done.append(step)
        self._forward |= step.until == "concluded"
        self._bytes = max(self._bytes, job.offset)
        times = watch.times
        if step.until == "concluded" and self._plan.moves and {_PENDING, _CONCLUDED} <= set(times):
            self._standstill = max(0.0, times[_CONCLUDED] - times[_PENDING])

    def _detached(self, job_id: str) -> Detached:
        error = Detached(
            f"left job {job_id} running",
            job_id=job_id,
            hint=f"qmpsnap job wait {job_id} brings it to its end, qmpsnap job cancel {job_id} stops it",
        )
        self._say(error)
        return error

    async def _verify(self) -> None:
        plan = self._plan
        self._graph = await self._target.graph()
        found = self._graph.chains(*plan.disks)
        self._moved |= not same(plan, self._graph)
        problem = mismatch(plan, self._graph)
        if problem:
            error = GraphMismatch(
                f"the graph is not the predicted one: {problem}",
                expected=plan.chains_after,
                found=found,
                hint="look: qmpsnap chain, and for what is left qmpsnap jobs",
            )
            self._say(error)
            raise error
        if plan.moves:
            await self._caller.tell_pivot(moved_roots(plan, self._graph))

    async def _tidy(self, stage: Stage) -> None:
        """Put away what the operation leaves: each step is tried, the record goes last or stays."""
        failed: list[tuple[Step, QmpsnapError]] = []
        for step in stage.steps:
            if isinstance(step, FinishRecord) and any(isinstance(one, RetireFile) for one, _ in failed):
                continue
            try:
                await self._perform(step)
            except LinkLost:
                raise
            except QmpsnapError as error:
                failed.append((step, error))
        if failed:
            reasons = "; ".join(f"{step.command} {step.arguments}: {error}" for step, error in failed)
            raise Incomplete(
                f"{self._plan.op} is done, but not all could be put away: {reasons}",
                done=[step.command for step in self._done],
                remaining=[f"{step.command} {step.arguments}" for step, _ in failed],
                hint=self._later,
                invalid=invalid_now(self._plan, [step for step, _ in failed]),
            ) from failed[0][1]

    # -- backward ----------------------------------------------------------------------------------

    @property
    def _later(self) -> str:
        """How what is left of the operation is brought to its end, or ""."""
        named = self._plan.job_id or (self._plan.record.record.id if self._plan.record else "")
        return f"qmpsnap job wait {named} brings it to its end" if named else ""

    def _say(self, error: QmpsnapError) -> None:
        """Let the error say what became of the layers."""
        error.changed = Changed.YES if self._moved else Changed.NO
        error.invalid = self._plan.invalid_if_stopped if self._moved else ()

    async def _back_or_on(self, error: QmpsnapError | None, watch: Watch) -> None:
        """Take back what was done and raise; or go on to the end when the job had ended well."""
        try:
            left = await self._take_back(watch)
        except _EndedWell:
            await self._on(watch)
            return
        if error is None:
            error = Interrupted("stopped as asked, and what was done is undone")
        graph = await self._look() if self._sent else self._graph
        if graph is not None:
            self._graph = graph
            self._moved |= not same(self._plan, graph)
        self._say(error)
        if graph is None and not self._moved:
            error.changed = Changed.UNKNOWN
        if not self._moved:
            left += by_qemu(self._tried)
        error.left = (*error.left, *left)
        raise error

    async def _on(self, watch: Watch) -> None:
        """Bring an operation to its end whose job had ended well before it could be stopped."""
        self._forward = True
        for step in self._plan.steps:
            if isinstance(step, DismissJob):
                with suppress(CommandFailed):  # somebody else did
                    await self._perform(step)
        await self._verify()
        stages = self._plan.stages
        early = [step for stage in stages if not stage.tidy for step in stage.steps]
        late = [step for step in early if isinstance(step, FinishRecord) and step not in self._done]
        await self._tidy(Stage("put the record away", tuple(late), tidy=True))
        await self._stages(tuple(stage for stage in stages if stage.tidy), watch)

    async def _take_back(self, watch: Watch) -> tuple[str, ...]:
        """Undo in reverse; return what has to stay."""
        left: list[str] = []
        if any(isinstance(step, TakeSnapshots) for step in self._done):
            return ()  # it stands, and its record is left for whoever finishes it
        held: frozenset[str] | None = None if self._sent else frozenset()
        for done in reversed(self._done):
            if isinstance(done, WriteRecord) and self._moved and self._plan.invalid_if_stopped:
                continue  # the one place that says which files hold no moment any more
            for step in undo(done):
                if isinstance(step, RemoveMade):
                    held = await self._held(made_files(self._done)) if held is None else held
                    if step.file in held:
                        left.append(f"{step.file} (QEMU may have it open)")
                        continue
                await self._undo_step(step, watch, left)
        return tuple(left)

    async def _undo_step(self, step: Step, watch: Watch, left: list[str]) -> None:
        try:
            if isinstance(step, AwaitJob):
                await watch.until_concluded()
                raise _EndedWell
            await self._target.perform(step)
        except LinkLost:
            raise
        except (JobFailed, JobPaused):
            pass  # cancelled, or failed before: concluded either way
        except CommandFailed as error:
            if not isinstance(step, CancelJob | DismissJob):  # it had ended, or is gone: as was wanted
                left.append(f"{step.command} {step.arguments}: {error.desc}")
        except QmpsnapError as error:
            left.append(f"{step.command} {step.arguments}: {error}")

    async def _look(self) -> Graph | None:
        """The graph as of now; None when it cannot be read although QEMU answers."""
        try:
            return await self._target.graph()
        except LinkLost:
            raise
        except QmpsnapError as error:
            _log.warning("graph.unreadable", vm=self._target.name, reason=str(error))
            return None

    async def _held(self, files: tuple[str, ...]) -> frozenset[str]:
        """Which of the files QEMU has in its graph, as read now; all when it cannot be read."""
        graph = await self._look()
        return frozenset(files if graph is None else (node.file for node in graph.nodes.values()))

    async def _look_after_loss(self, error: LinkLost) -> None:
        """Connect once more and say what is known; files stay, be they in use or not."""
        made = made_files(self._done)
        if not self._sent:
            error.changed, error.left = Changed.NO, made
            return
        writes = any(isinstance(step, StartStream | StartCommit) for step in self._tried)
        error.changed = Changed.YES if self._moved else Changed.UNKNOWN
        error.invalid = self._plan.invalid_if_stopped if self._moved or writes else ()
        error.left = tuple(f"{file} (QEMU may have it open)" for file in made)
        error.hint = f"connect again and look: qmpsnap chain, qmpsnap jobs; {self._later}".removesuffix("; ")
        if not await self._target.relink() or any(map(unseen, self._tried)):
            return
        try:
            graph = await self._target.graph()
            alive = any(job.id == self._plan.job_id for job in await self._target.jobs())
        except QmpsnapError:
            return
        held = {node.file for node in graph.nodes.values()}
        error.left = tuple(file for file in made if file not in held)
        self._moved |= not same(self._plan, graph) or (alive and writes)
        if self._moved or not alive:
            self._say(error)
