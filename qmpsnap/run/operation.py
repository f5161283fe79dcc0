"""One run of one plan: forward to its end, or back to where it began.

Used by the executor alone, which keeps it in a task that nothing cancels; so here no await ends
early, and to stop is a wish that is looked at between the steps and while a job runs.
"""

from __future__ import annotations

import time
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
from qmpsnap.plan.steps import (
    AdoptJob,
    AwaitJob,
    CancelJob,
    CreateOverlay,
    CreatePlaceholder,
    DismissJob,
    FinishRecord,
    RemoveMade,
    RetireFile,
    StartCommit,
    StartStream,
    TakeSnapshots,
    WriteRecord,
)
from qmpsnap.plan.undo import no_way_back, undo
from qmpsnap.run.log import get_logger
from qmpsnap.run.outcome import Done, left_nodes, mismatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmpsnap.model.graph import Graph
    from qmpsnap.model.job import Job
    from qmpsnap.plan.plan import Plan, Stage
    from qmpsnap.plan.steps import Step
    from qmpsnap.run.outcome import Hooks
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
        self.stop = hooks.cancel or anyio.Event()
        self._target = target
        self._plan = plan
        self._hooks = hooks
        self._graph = seen
        self._done: list[Step] = list(plan.resumes)
        adopts = any(isinstance(step, AdoptJob) for step in plan.resumes)
        self._sent = adopts  # some QMP command of the plan went out
        self._forward = False  # the step that cannot be taken back went out
        self._moved = adopts and plan.op != "mirror"  # a chain, or bytes of a layer, changed
        self._standstill: float | None = None
        self._bytes = 0

    async def run(self) -> Done:
        """Run the plan; see `Executor.run`."""
        started = time.monotonic()
        await self._check_before()
        with self._target.watch(self._plan.job_id) as watch:
            try:
                await self._stages(self._plan.stages, watch)
            except _Stop:
                await self._back_or_on(None, watch)
            except LinkLost as error:
                await self._look_after_loss(error)
                raise
            except (JobPaused, Detached, GraphMismatch, Incomplete):
                raise
            except QmpsnapError as error:
                await self._back_or_on(error, watch)
        if self._plan.vanished:
            raise JobFailed(
                self._plan.vanished,
                job_id=self._plan.job_id,
                error="vanished",
                changed=Changed.YES if self._plan.invalid else Changed.UNKNOWN,
                invalid=self._plan.invalid,
            )
        return self._result(time.monotonic() - started)

    def _result(self, elapsed: float) -> Done:
        plan, graph = self._plan, self._graph or self._plan.before
        _log.info("operation.done", vm=self._target.name, op=plan.op, elapsed=round(elapsed, 4))
        return Done(
            op=plan.op,
            chains=graph.chains(*plan.disks),
            active={disk: graph.disks[disk].active.file for disk in plan.moves},
            standstill_s=self._standstill,
            elapsed_s=elapsed,
            bytes=self._bytes,
            left=left_nodes(plan, graph),
            invalid=plan.invalid,
            notes=plan.notes,
            job_id=plan.job_id,
        )

    async def _check_before(self) -> None:
        if self._graph is None:
            self._graph = await self._target.graph()
        found = self._graph.chains(*self._plan.disks)
        if found != self._plan.chains_before:
            raise GraphMismatch(
                "the chains are not those that the plan was made on",
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
            for steps in _together(stage.steps):
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
        started = time.monotonic()
        try:
            seconds = await self._target.perform(step)
        except CommandFailed:
            self._forward = False  # QEMU said no: it is as it was before
            raise
        self._done.append(step)
        self._moved |= isinstance(step, TakeSnapshots | StartStream | StartCommit)
        if isinstance(step, TakeSnapshots):
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
        """Wait for the job, or for the caller's wish to stop or to leave, whichever is first."""
        result: list[Job] = []
        failure: list[QmpsnapError] = []

        async def job(scope: anyio.CancelScope) -> None:
            try:
                result.append(
                    await (watch.until_ready() if step.until == "ready" else watch.until_concluded())
                )
            except QmpsnapError as error:
                failure.append(error)
            scope.cancel()

        async def wish(event: anyio.Event, scope: anyio.CancelScope) -> None:
            await event.wait()
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(job, group.cancel_scope)
            if self._hooks.progress is not None:
                group.start_soon(self._report, step.job_id)
            if not self._forward:
                group.start_soon(wish, self.stop, group.cancel_scope)
                if self._hooks.detach is not None:
                    group.start_soon(wish, self._hooks.detach, group.cancel_scope)
        if failure:
            error = failure[0]
            if not isinstance(error, LinkLost):
                self._say(error)
            raise error
        if not result:
            raise _Stop if self.stop.is_set() else self._detached(step.job_id)
        self._done.append(step)
        self._bytes = max(self._bytes, result[0].offset)
        times = watch.times
        if step.until == "concluded" and self._plan.moves and {_PENDING, _CONCLUDED} <= set(times):
            self._standstill = max(0.0, times[_CONCLUDED] - times[_PENDING])

    async def _report(self, job_id: str) -> None:
        async for progress in self._target.progress(job_id, self._hooks.interval):
            await self._hooks.tell(progress)

    def _detached(self, job_id: str) -> Detached:
        return Detached(
            f"left job {job_id} running",
            job_id=job_id,
            hint=f"job wait {job_id} brings it to its end, job cancel {job_id} stops it",
            invalid=self._plan.invalid_if_stopped,
        )

    async def _verify(self) -> None:
        plan = self._plan
        self._graph = await self._target.graph()
        problem = mismatch(plan, self._graph)
        if problem:
            raise GraphMismatch(
                f"the graph is not the predicted one: {problem}",
                expected=plan.chains_after,
                found=self._graph.chains(*plan.disks),
                hint="look at it with chain, and at what is left with jobs",
            )
        self._moved |= bool(plan.moves)
        if plan.moves:
            await self._hooks.tell_pivot({disk: self._graph.disks[disk].active.file for disk in plan.moves})

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
                invalid=self._plan.invalid,
            ) from failed[0][1]

    # -- backward ----------------------------------------------------------------------------------

    def _say(self, error: QmpsnapError) -> None:
        """Let the error say what became of the layers."""
        error.changed = Changed.YES if self._moved else Changed.NO
        error.invalid = self._plan.invalid_if_stopped if self._moved else ()

    async def _back_or_on(self, error: QmpsnapError | None, watch: Watch) -> None:
        """Take back what was done and raise; or go on to the end when the job had ended well."""
        try:
            left = await self._take_back(watch)
            if self._sent:
                self._graph = await self._target.graph()
                self._moved |= self._graph.chains(*self._plan.disks) != self._plan.chains_before
        except _EndedWell:
            self._forward = True
            await self._verify()
            await self._stages(tuple(stage for stage in self._plan.stages if stage.tidy), watch)
            return
        except LinkLost as lost:
            await self._look_after_loss(lost)
            raise lost from error
        if error is None:
            error = Interrupted("stopped as asked, and what was done is undone")
        self._say(error)
        error.left = (*error.left, *left)
        raise error

    async def _take_back(self, watch: Watch) -> tuple[str, ...]:
        """Undo in reverse; return what has to stay."""
        left: list[str] = []
        held: frozenset[str] | None = None if self._sent else frozenset()
        for done in reversed(self._done):
            if isinstance(done, WriteRecord) and self._moved and self._plan.invalid_if_stopped:
                continue  # the one place that says which files hold no moment any more
            for step in undo(done):
                if isinstance(step, RemoveMade):
                    held = await self._held() if held is None else held
                    if step.file in held:
                        left.append(step.file)
                        continue
                await self._undo_step(step, watch, left)
        for step in self._plan.steps:
            if isinstance(step, TakeSnapshots) and self._sent:
                left += [
                    f"{one.file} (perhaps, made by QEMU)" for one in step.overlays if one.made_by == "qemu"
                ]
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

    async def _held(self) -> frozenset[str]:
        """Files that QEMU has in its graph, as read now."""
        graph = await self._target.graph()
        return frozenset(node.file for node in graph.nodes.values())

    async def _look_after_loss(self, error: LinkLost) -> None:
        """Connect once more and say what is known; files stay unless the graph shows them free."""
        made = [step.file for step in self._done if isinstance(step, CreateOverlay | CreatePlaceholder)]
        job_id = self._plan.job_id
        error.invalid = self._plan.invalid_if_stopped if self._moved else ()
        error.left = tuple(made)
        if not self._sent:
            error.changed = Changed.NO
            return
        error.changed = Changed.YES if self._moved and self._plan.op != "snapshot" else Changed.UNKNOWN
        error.hint = f"connect again and look: chain, jobs{f', job wait {job_id}' if job_id else ''}"
        if not await self._target.relink():
            return
        try:
            graph = await self._target.graph()
            alive = any(job.id == job_id for job in await self._target.jobs())
        except QmpsnapError:
            return
        found = graph.chains(*self._plan.disks)
        if found == self._plan.chains_after and found != self._plan.chains_before:
            error.changed = Changed.YES
        elif found == self._plan.chains_before and not alive and not self._moved:
            error.changed = Changed.NO


def _together(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    """Overlays are made side by side; everything else one after the other."""
    run: list[Step] = []
    for step in steps:
        if isinstance(step, CreateOverlay):
            run.append(step)
            continue
        if run:
            yield tuple(run)
            run = []
        yield (step,)
    if run:
        yield tuple(run)
