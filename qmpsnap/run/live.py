"""A running QEMU, as a target."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

import anyio

from qmpsnap.errors import Malformed
from qmpsnap.model.graph import Graph
from qmpsnap.model.parse import (
    FDSET,
    GRAPH_QUERIES,
    GraphMoved,
    GraphReplies,
    odd_names,
    parse_fdsets,
    parse_graph,
)
from qmpsnap.plan.checks.disk import refuse_migrated
from qmpsnap.run.descriptors import real_names, working_directory
from qmpsnap.run.disk import in_thread
from qmpsnap.run.guest import LiveGuest
from qmpsnap.run.log import get_logger
from qmpsnap.run.migration import Migrations
from qmpsnap.run.session_target import SessionTarget

_log = get_logger("qmpsnap.run")
_GRAPH_TRIES = 20


class LiveTarget(SessionTarget):
    """A running QEMU behind one session; enter it before use."""

    _cwd = ""
    guest: LiveGuest

    async def _open(self, stack: AsyncExitStack) -> None:
        await super()._open(stack)
        self._cwd = working_directory(self.session.peer_pid) if self.session.is_unix else ""

    def _guest_of(self, migrations: Migrations) -> LiveGuest:
        return LiveGuest(self.session, migrations, self._host)

    async def graph(self) -> Graph:
        """Read the block graph: three queries, joined; asked again when it moved in between.

        Raises:
            LinkLost: When the link is lost.
            Malformed: When the answers cannot be joined.
            Busy: When somebody's concluded stream job would make the question crash this QEMU.
        """
        await self._concluded.check()
        for attempt in range(_GRAPH_TRIES):
            replies = GraphReplies.read(*await self.session.ask(*GRAPH_QUERIES))
            try:
                graph = parse_graph(replies, cwd=self._cwd, real=await self._real_names(replies))
            except GraphMoved as moved:
                _log.debug("graph.moved", vm=self._name, node=str(moved), attempt=attempt)
                await anyio.sleep(0.01 * attempt)
            else:
                self._host.graph = graph
                return graph
        raise Malformed("QEMU's block graph kept changing while it was read", hint="try again")

    async def _real_names(self, replies: GraphReplies) -> Mapping[str, str]:
        """Paths of the files that QEMU has open under names that mean nothing outside of it."""
        names, pid = odd_names(replies), self._local_pid
        if not names or pid is None:
            return {}
        sets: Mapping[str, tuple[int, ...]] = {}
        if any(name.startswith(FDSET) for name in names):
            sets = parse_fdsets(await self.session.query("query-fdsets"))
        return await in_thread(partial(real_names, pid, names, self._cwd, sets))

    async def refuse_migrated(self) -> None:
        """Raise while QEMU has handed its images to another QEMU, or is about to.

        Raises:
            Unsupported: When its VM state was saved or sent away, or is still to come in.
            Busy: When a migration is running.
        """
        refuse_migrated(await self.guest.status())
