"""The guest of a running QEMU."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from qmpsnap.model.graph import Graph
from qmpsnap.model.machine import Machine, Status
from qmpsnap.model.parse_machine import Build
from qmpsnap.run.host import Host
from qmpsnap.run.machine import read_build, read_machine, read_status, run_state
from qmpsnap.run.migration import Migrations
from qmpsnap.run.session import Session
from qmpsnap.run.standstill import Stops
from qmpsnap.run.target import Progress


class LiveGuest:
    """The guest of a running QEMU, behind one session.

    Args:
        session: The link.
        migrations: The migrations of that QEMU.
        host: Writes the files of VM state.
    """

    def __init__(self, session: Session, migrations: Migrations, host: Host) -> None:
        self._session = session
        self._migrations = migrations
        self._host = host
        self._build: Build | None = None

    async def machine(self, graph: Graph, *, occupied: bool = False) -> Machine:
        """What the machine is beyond its disks, now; what cannot change is asked once."""
        if self._build is None:
            self._build = await read_build(self._session)
        return await read_machine(self._session, graph, self._build, occupied=occupied)

    async def status(self) -> Status:
        """Whether the guest runs, and whether it migrates, now."""
        return await read_status(self._session)

    async def run_state(self) -> str:
        """QEMU's run state, now. QAPI: query-status (run-state.json)."""
        return await run_state(self._session)

    @contextmanager
    def stops(self) -> Iterator[Stops]:
        """Listen to how long the guest is paused."""
        stops = Stops()
        with self._session.subscribe(stops.note):
            yield stops

    @property
    def state_bytes(self) -> int:
        """Bytes of the file of VM state that was written last."""
        return self._host.state_bytes

    def memory_progress(self, interval: float) -> AsyncIterator[Progress]:
        """Ask how much of the VM state has moved again and again, until it has."""
        return self._migrations.progress(interval)
