"""Checks, right before a file is renamed or removed, that nothing has come to need it since the plan."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from qmpsnap.errors import InvalidTarget, QmpsnapError, StillNeeded
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.step import DropNode, Step
from qmpsnap.plan.checks.place import images_on
from qmpsnap.plan.intent import Commit
from qmpsnap.run.cleanup import NotTheLayer
from qmpsnap.run.journal import Journal
from qmpsnap.run.os_errors import reason
from qmpsnap.run.target import Target

_PUT_AWAY = frozenset({"retire-file", "remove-orphan"})


class Retirement:
    """Checks the files that one run of a plan renames or removes; surveys the images once, before the first.

    Args:
        target: The machine.
        journal: The progress of the operation, with the graph that was read last.
    """

    def __init__(self, target: Target, journal: Journal) -> None:
        self._target = target
        self._journal = journal
        self._files: Files | None = None

    async def refuse(self, step: Step, undone: Sequence[Step]) -> None:
        """Refuse a step that renames or removes a file that is needed; accept every other step.

        Args:
            step: The step.
            undone: Steps of the cleanup that have failed.

        Raises:
            StillNeeded: When an image has become backed by the file since the operation began.
            InvalidTarget: When the file is to be removed, and its node could not be closed.
        """
        graph = self._journal.graph
        if step.command not in _PUT_AWAY or graph is None:
            return
        file = step.arguments["file"]
        still_open = [failure.effect.node for failure in undone if isinstance(failure.effect, DropNode)]
        if step.arguments.get("policy") == "remove" and any(
            graph.nodes[node].file == file for node in still_open if node in graph.nodes
        ):
            raise InvalidTarget(f"{file} is still open in QEMU; it stays", file=file)
        if self._files is None:
            self._files = await self._target.look(self._ask(), graph)
        by = images_on(graph, self._files, (file,), without=self._expected)
        if by:
            raise StillNeeded(
                f"{file} is still needed: it has become the backing file of {', '.join(by)}",
                by=by,
            )

    def stays(self, step: Step, error: QmpsnapError) -> bool:
        """Whether the step has failed because the file is not the merged layer; note it in the journal then.

        Such a file stays for good, because no later attempt could prove that it is the layer.
        """
        if not isinstance(error.__cause__, NotTheLayer):
            return False
        self._journal.stayed.append((step, reason(error.__cause__)))
        return True

    def _ask(self) -> Ask:
        """Ask what is backed by the files, in the directories of the chains and among QEMU's open images."""
        graph, plan = self._journal.graph or self._journal.plan.before, self._journal.plan
        opened = (node.file for node in graph.nodes.values() if node.backing)
        chains = (file for files in (*plan.chains_before.values(), *self._retired) for file in files)
        layers, others = ([file for file in files if file.startswith("/")] for files in (chains, opened))
        look_in = plan.intent.look_in if isinstance(plan.intent, Commit) else ()
        return Ask(files=(*layers, *others), survey=(*map(posixpath.dirname, layers), *look_in))

    @property
    def _retired(self) -> tuple[tuple[str, ...], ...]:
        """For each file that is renamed or removed: its name, and its new name."""
        steps = (step.arguments for step in self._journal.plan.steps if step.command in _PUT_AWAY)
        return tuple((step["file"], step.get("to") or step["file"]) for step in steps)

    @property
    def _expected(self) -> tuple[str, ...]:
        """Files that may be backed by such a file: they are renamed or removed, too, or are invalid."""
        plan = self._journal.plan
        return (*(name for names in self._retired for name in names), *plan.invalid, *plan.invalid_if_stopped)
