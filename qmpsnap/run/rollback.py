"""The rollback of an operation: what was done is undone, or it is reported what has to stay.

Used by the operation alone, in the task that nothing cancels.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from qmpsnap.errors import Changed, CommandFailed, Interrupted, JobFailed, JobPaused, LinkLost, QmpsnapError
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import RUNS_AGAIN, command
from qmpsnap.model.step import MoveRoot, Step
from qmpsnap.plan.effect import overlays
from qmpsnap.plan.rollback import taking_back
from qmpsnap.run.journal import Journal
from qmpsnap.run.log import get_logger
from qmpsnap.run.outcome import by_qemu, made_files, same
from qmpsnap.run.target import Target, Watch

_log = get_logger("qmpsnap.run")
_GONE_ALREADY = frozenset({"job-cancel", "job-dismiss", "release-file"})  # refused when it is gone: as wanted


class EndedWell(Exception):
    """The job that was to be cancelled had ended with success."""


class Undone(Struct, frozen=True):
    """The result of a rollback.

    Attributes:
        left: What had to stay, for people.
        graph: The graph as read afterwards; None when it could not be read.
    """

    left: tuple[str, ...]
    graph: Graph | None


class Rollback:
    """Rolls one operation back. It reads the journal, and writes nothing into it.

    Args:
        target: The machine.
        journal: How far the operation has come.
    """

    def __init__(self, target: Target, journal: Journal) -> None:
        self._target = target
        self._journal = journal

    async def go(self, watch: Watch) -> Undone:
        """Undo what was done.

        Raises:
            EndedWell: When the job that was to be cancelled had succeeded: the operation has to go on.
            LinkLost: When the link is lost meanwhile.
        """
        journal = self._journal
        left = await self._take_back(watch)
        graph = await self._look() if journal.sent else journal.graph
        if not journal.moved and (graph is None or same(journal.plan, graph)):
            left += by_qemu(journal.tried)
        return Undone((*left, *self._overlays()), graph)

    def _overlays(self) -> tuple[str, ...]:
        """Overlays that stay in their chains although no moment has them, each with what commits it."""
        if self._journal.plan.op != "checkpoint":
            return ()
        return tuple(
            f"{overlay.file} (the guest writes to it: "
            f"{command('commit', overlay.disk, '--top', overlay.file, '--base', overlay.backing)} folds it)"
            for overlay in overlays(self._journal.done)
        )

    async def _take_back(self, watch: Watch) -> tuple[str, ...]:
        """Undo in reverse; return what has to stay."""
        left: list[str] = []
        owed = False  # whether something stays to be done that the record alone tells of
        journal = self._journal
        held: frozenset[str] | None = None if journal.sent else frozenset()
        keeps = journal.moved and journal.plan.invalid_if_stopped
        for step in taking_back(await self._happened(), loaded=journal.loaded):
            if step.command == "finish-record" and (keeps or owed):
                for repeated in journal.plan.repeats if keeps else ():
                    await self._undo_step(repeated, watch, left)
                continue  # the one place that says which files hold no moment any more, or what is to be done
            if step.command == "remove-file":
                held = await self._held(made_files(journal.done)) if held is None else held
                if step.arguments["file"] in held:
                    left.append(f"{step.arguments['file']} (QEMU may have it open)")
                    continue
            before = len(left)
            await self._undo_step(step, watch, left)
            if step.command == "blockdev-del":
                held = None  # it may have freed one of them
            owed |= step.owed and len(left) > before
        if owed and journal.later:
            left.append(journal.later)
        return tuple(left)

    async def _happened(self) -> list[Step]:
        """What was done, without roots that a device did not take: setting the one it has would kill QEMU."""
        journal = self._journal
        if not any(step.command == "check-roots" and step not in journal.done for step in journal.tried):
            return journal.done
        graph = await self._look()
        if graph is None:  # which ones were taken is not known: they stay
            return [step for step in journal.done if step.command != "qom-set"]
        return [
            step
            for step in journal.done
            if step.command != "qom-set"
            or not isinstance(step.effect, MoveRoot)
            or graph.disks[step.effect.root.disk].files[:1] == (step.effect.root.file,)
        ]

    async def _undo_step(self, step: Step, watch: Watch, left: list[str]) -> None:
        try:
            if step.command == "await-job":
                await watch.until_concluded()
                raise EndedWell
            await self._target.perform(step)
        except LinkLost:
            raise
        except (JobFailed, JobPaused):
            pass  # cancelled, or failed before: concluded either way
        except CommandFailed as error:
            if step.way not in _GONE_ALREADY:
                left.append(f"{step}: {error.desc}")
        except QmpsnapError as error:
            left.append(f"{step}: {error}")

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
        """Reconnect, and let the error say what is known; files stay, whether in use or not."""
        journal, plan = self._journal, self._journal.plan
        made = made_files(journal.done)
        if not journal.sent:
            error.changed, error.left = Changed.NO, made
            return
        writes = any(step.command in {"block-stream", "block-commit"} for step in journal.tried)
        error.changed = Changed.YES if journal.moved else Changed.UNKNOWN
        error.invalid = plan.invalid_if_stopped if journal.moved or writes else ()
        error.left = tuple(f"{file} (QEMU may have it open)" for file in made)
        error.hint = (
            f"reconnect, then check with qmpsnap chain and qmpsnap jobs; {journal.later}".removesuffix("; ")
        )
        if not await self._target.relink() or any(step.unseen for step in journal.tried):
            return
        try:
            graph, jobs = await self._target.graph_with_jobs()
            alive = any(job.id == plan.job_id for job in jobs)
        except QmpsnapError:
            return
        held = {node.file for node in graph.nodes.values()}
        error.left = tuple(file for file in made if file not in held)
        moved = journal.moved or not same(plan, graph) or (alive and writes)
        if moved or not alive:
            journal.say(error, moved=moved)


def rolled_back(error: QmpsnapError | None, undone: Undone, journal: Journal) -> QmpsnapError:
    """The error, or that the operation was stopped as requested, with the result of the rollback.

    Args:
        error: Why it was rolled back; None: the caller asked for it.
        undone: The result of the rollback.
        journal: How far the operation has come, with the graph after the rollback.
    """
    unknown = undone.graph is None and not journal.moved
    if error is None:
        error = Interrupted(_stopped(moved=journal.moved, unknown=unknown))
    journal.say(error)
    if unknown:
        error.changed = Changed.UNKNOWN
    error.left = (*error.left, *undone.left)
    if journal.loaded and journal.plan.moves:
        error.hint = error.hint or "disks and memory are reverted, and the guest is paused: qmpsnap cont"
    if any(step.command == "stop" and not step.undo for step in journal.done) and _saved(journal.done):
        error.hint = error.hint or f"the machine is paused in the state postmigrate: {RUNS_AGAIN}"
    return error


def _saved(steps: Iterable[Step]) -> bool:
    """Whether VM state was saved completely by a guest that was paused for it."""
    return any(step.command == "await-migration" and step.arguments["until"] == "saved" for step in steps)


def _stopped(*, moved: bool, unknown: bool) -> str:
    """The message for an operation that the caller has stopped; `changed` says the same to programs."""
    if unknown:
        return "stopped as requested; it is not known whether everything was rolled back"
    if moved:
        return "stopped as requested, but not everything could be rolled back"
    return "stopped as requested, and rolled back"
