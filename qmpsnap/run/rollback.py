"""The way back of an operation: what was done is taken back, or it is said what has to stay.

Used by the operation alone, in the task that nothing cancels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import (
    Changed,
    CommandFailed,
    Interrupted,
    JobFailed,
    JobPaused,
    LinkLost,
    QmpsnapError,
)
from qmpsnap.model.hints import RUNS_AGAIN, command
from qmpsnap.plan.steps import (
    AwaitJob,
    AwaitMigration,
    CancelJob,
    CheckRoots,
    DismissJob,
    FinishRecord,
    ReleaseFile,
    RemoveMade,
    SetDrive,
    StartCommit,
    StartStream,
    StopGuest,
    TakeSnapshots,
)
from qmpsnap.plan.undo import needs_record, taking_back, unseen
from qmpsnap.run.log import get_logger
from qmpsnap.run.outcome import by_qemu, made_files, same

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.steps import Step
    from qmpsnap.run.journal import Journal
    from qmpsnap.run.target import Target, Watch

__all__ = ["EndedWell", "Rollback"]

_log = get_logger("qmpsnap.run")


class EndedWell(Exception):
    """The job that was to be cancelled had ended with success."""


class Rollback:
    """Takes one operation back.

    Args:
        target: The machine.
        journal: How far the operation has come.
    """

    def __init__(self, target: Target, journal: Journal) -> None:
        self._target = target
        self._journal = journal

    async def go(self, error: QmpsnapError | None, watch: Watch) -> QmpsnapError:
        """Take back what was done; return the error, or that it was stopped as requested, with what is left.

        Raises:
            EndedWell: When the job that was to be cancelled had ended with success: there is but the way on.
            LinkLost: When the link goes meanwhile.
        """
        journal = self._journal
        left = await self._take_back(watch)
        graph = await self._look() if journal.sent else journal.graph
        if graph is not None:
            journal.graph = graph
            journal.moved |= not same(journal.plan, graph)
        unknown = graph is None and not journal.moved
        if error is None:
            error = Interrupted(_stopped(moved=journal.moved, unknown=unknown))
        journal.say(error)
        if unknown:
            error.changed = Changed.UNKNOWN
        if not journal.moved:
            left += by_qemu(journal.tried)
        error.left = (*error.left, *left, *self._overlays())
        if journal.loaded and journal.plan.moves:
            error.hint = error.hint or "disks and memory are reverted, and the guest is paused: qmpsnap cont"
        if StopGuest(ran=False) in journal.done and AwaitMigration("saved") in journal.done:
            error.hint = error.hint or f"the machine is paused in the state postmigrate: {RUNS_AGAIN}"
        return error

    def _overlays(self) -> tuple[str, ...]:
        """Overlays that stay in their chains although no moment has them, each with what folds it."""
        plan = self._journal.plan
        taken = next((one for one in self._journal.done if isinstance(one, TakeSnapshots)), None)
        if taken is None or plan.op != "checkpoint":
            return ()
        return tuple(
            f"{one.file} (the guest writes to it: "
            f"{command('commit', one.disk, '--top', one.file, '--base', one.backing)} folds it)"
            for one in taken.overlays
        )

    async def _take_back(self, watch: Watch) -> tuple[str, ...]:
        """Undo in reverse; return what has to stay."""
        left: list[str] = []
        owed = False  # whether something stays to be done that the record alone tells of
        journal = self._journal
        held: frozenset[str] | None = None if journal.sent else frozenset()
        keeps = journal.moved and journal.plan.invalid_if_stopped
        for step in taking_back(await self._happened(), loaded=journal.loaded):
            if isinstance(step, FinishRecord) and (keeps or owed):
                for repeated in journal.plan.repeats if keeps else ():
                    await self._undo_step(repeated, watch, left)
                continue  # the one place that says which files hold no moment any more, or what is to be done
            if isinstance(step, RemoveMade):
                held = await self._held(made_files(journal.done)) if held is None else held
                if step.file in held:
                    left.append(f"{step.file} (QEMU may have it open)")
                    continue
            known = len(left)
            await self._undo_step(step, watch, left)
            owed |= needs_record(step) and len(left) > known
        if owed and journal.later:
            left.append(journal.later)
        return tuple(left)

    async def _happened(self) -> list[Step]:
        """What was done, without roots that a device did not take: to set the one that it has kills QEMU."""
        journal = self._journal
        if not any(isinstance(step, CheckRoots) and step not in journal.done for step in journal.tried):
            return journal.done
        graph = await self._look()
        if graph is None:  # which ones were taken is not known: they stay
            return [step for step in journal.done if not isinstance(step, SetDrive)]
        return [
            step
            for step in journal.done
            if not isinstance(step, SetDrive) or graph.disks[step.root.disk].files[:1] == (step.root.file,)
        ]

    async def _undo_step(self, step: Step, watch: Watch, left: list[str]) -> None:
        try:
            if isinstance(step, AwaitJob):
                await watch.until_concluded()
                raise EndedWell
            await self._target.perform(step)
        except LinkLost:
            raise
        except (JobFailed, JobPaused):
            pass  # cancelled, or failed before: concluded either way
        except CommandFailed as error:
            # it had ended, or is gone: as was wanted
            if not isinstance(step, CancelJob | DismissJob | ReleaseFile):
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

    async def after_loss(self, error: LinkLost) -> None:
        """Connect once more and let the error say what is known; files stay, be they in use or not."""
        journal, plan = self._journal, self._journal.plan
        made = made_files(journal.done)
        if not journal.sent:
            error.changed, error.left = Changed.NO, made
            return
        writes = any(isinstance(step, StartStream | StartCommit) for step in journal.tried)
        error.changed = Changed.YES if journal.moved else Changed.UNKNOWN
        error.invalid = plan.invalid_if_stopped if journal.moved or writes else ()
        error.left = tuple(f"{file} (QEMU may have it open)" for file in made)
        error.hint = (
            f"reconnect, then check with qmpsnap chain and qmpsnap jobs; {journal.later}".removesuffix("; ")
        )
        if not await self._target.relink() or any(map(unseen, journal.tried)):
            return
        try:
            graph = await self._target.graph()
            alive = any(job.id == plan.job_id for job in await self._target.jobs())
        except QmpsnapError:
            return
        held = {node.file for node in graph.nodes.values()}
        error.left = tuple(file for file in made if file not in held)
        journal.moved |= not same(plan, graph) or (alive and writes)
        if journal.moved or not alive:
            journal.say(error)


def _stopped(*, moved: bool, unknown: bool) -> str:
    """What is said of an operation that the caller has stopped; `changed` says the same to programs."""
    if unknown:
        return "stopped as requested; it is not known whether everything was rolled back"
    if moved:
        return "stopped as requested, but not everything could be rolled back"
    return "stopped as requested, and rolled back"
