"""Warns while a machine was started from the wrong files, or has lost the names of its files."""

from __future__ import annotations

import posixpath

from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.wrong_start import WrongStart, recorded_overlays, waiting_overlays, wrong_starts
from qmpsnap.plan.checks.opened import lost_names
from qmpsnap.plan.ownership import ran_here
from qmpsnap.plan.record_places import state_questions
from qmpsnap.run.log import get_logger
from qmpsnap.run.target import Target

_log = get_logger("qmpsnap.run")


class StartCheck:
    """Problems of the files that one machine was started from.

    Args:
        target: The machine.
        state_dir: Where records go when the caller says so, else "".

    Attributes:
        found: The warnings, as of the graph that was read last.
    """

    def __init__(self, target: Target, state_dir: str) -> None:
        self._target = target
        self._state_dir = state_dir
        self._found: tuple[WrongStart, ...] | None = None
        self._lost: tuple[str, ...] = ()
        self.found: tuple[str, ...] = ()

    def ask(self, graph: Graph) -> tuple[Ask, ...]:
        """What `warnings` has to know about the file system; nothing once it has been called."""
        if self._found is not None:
            return ()
        disks = _disks(graph)
        survey = tuple(dict.fromkeys(posixpath.dirname(disk.active.file) for disk in disks))
        return (Ask(files=_chain(disks), survey=survey, records=state_questions(graph, self._state_dir)),)

    async def warnings(self, graph: Graph, *files: Files) -> tuple[str, ...]:
        """A line for each layer whose name is lost, and each disk that writes into a backing file.

        Checked at the first call, and logged once. A problem that is solved meanwhile is no longer listed.
        With the machine off nobody writes, so that such a disk is listed and not logged.

        Args:
            graph: The graph as of now.
            files: The answers to `ask`, when it has been asked already.
        """
        if self._found is None:
            self._found = await self._check(
                graph, *(files or await self._target.look_each(self.ask(graph), graph))
            )
            for line in self._lost:
                _log.warning("layer.name_lost", vm=self._target.name, reason=line)
            for one in self._found if self._target.guest is not None else ():
                _log.warning(
                    "machine.started_below",
                    vm=self._target.name,
                    disk=one.disk,
                    active=one.active,
                    newest=list(one.newest),
                )
        elif self._lost:
            self._lost = lost_names(graph, await self._target.look(Ask(), graph))
        off = self._target.guest is None
        below = self.started_below(graph)
        self.found = self._lost + tuple(one.while_off if off else str(one) for one in below)
        return self.found

    def started_below(self, graph: Graph) -> tuple[WrongStart, ...]:
        """Disks that still have an active layer on which other images stand, as `warnings` has found."""
        return tuple(
            one
            for one in self._found or ()
            if one.disk in graph.disks and graph.disks[one.disk].files[:1] == (one.active,)
        )

    async def _check(self, graph: Graph, files: Files) -> tuple[WrongStart, ...]:
        self._lost = lost_names(graph, files)
        if not files.shared:
            return ()
        here = [record for record in files.records if isinstance(record, IntentRecord)]
        here = [record for record in here if ran_here(record, self._target.process)]
        if overlays := recorded_overlays(graph, files.records):
            ask = Ask(files=(*_chain(_disks(graph)), *overlays), survey=files.looked_in)
            files = await self._target.look(ask, graph)
        return wrong_starts(graph, files, waiting_overlays(graph, here))


def _disks(graph: Graph) -> list[Disk]:
    return [disk for disk in graph.disks.values() if disk.writable and disk.active.file.startswith("/")]


def _chain(disks: list[Disk]) -> tuple[str, ...]:
    return tuple(file for disk in disks for file in disk.files if file.startswith("/"))
