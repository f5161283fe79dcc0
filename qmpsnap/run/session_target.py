"""The common part of live and offline targets: a process that has images open, behind one QMP session.

Subclasses know how to read the graph, and whether there is a guest.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    contextmanager,
    suppress,
)
from functools import partial
from typing import Self

import anyio
from msgspec.structs import replace

from qmpsnap.errors import (
    CommandFailed,
    Malformed,
    QmpsnapError,
)
from qmpsnap.model.disk_renames import with_current_names
from qmpsnap.model.features import CommandInfo, Features
from qmpsnap.model.files import Ask, Files, open_names
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import Job
from qmpsnap.model.job_place import BlockGraph
from qmpsnap.model.qapi import read
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Step
from qmpsnap.run import survey
from qmpsnap.run.both import both
from qmpsnap.run.catalog import Catalog
from qmpsnap.run.current_operation import CURRENT_OPERATION
from qmpsnap.run.descriptors import Opened, identity, open_files
from qmpsnap.run.disk import in_thread
from qmpsnap.run.file_limit import LOOK, require_room
from qmpsnap.run.guest import LiveGuest
from qmpsnap.run.host import Host
from qmpsnap.run.images import Images
from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.log import get_logger
from qmpsnap.run.migration import Migrations
from qmpsnap.run.peer_access import barred
from qmpsnap.run.performer import Performer
from qmpsnap.run.process_paths import same_directory
from qmpsnap.run.query_guard import QueryGuard
from qmpsnap.run.record_reading import ReadBefore
from qmpsnap.run.session import Event, Session
from qmpsnap.run.target import Progress, Watch

_log = get_logger("qmpsnap.run")
_ASKS = "query-"  # prefix of commands that change nothing
_TRIES = 20
_RELINK_LIMIT = 0.5  # seconds; a caller that waits gets its error within a second


class SessionTarget(ABC):
    """A process that has images open, behind one session; enter it before use.

    Args:
        link: Makes a session; called again after the link was lost, if `again` is true.
        again: Whether `link` can make a second session (it cannot with a socket that the caller gave).
        shared_fs: Whether our file system is QEMU's; None: determine it for each disk.
        images: Creates and inspects image files.
        name: The machine's name in errors and logs.
        address: The address of its monitor as text; "" if it has none, or none that is known.
    """

    def __init__(
        self,
        link: Callable[[], AbstractAsyncContextManager[Session]],
        *,
        again: bool,
        shared_fs: bool | None,
        images: Images,
        name: str,
        address: str = "",
    ) -> None:
        self._link = link
        self._again = again
        self._shared_fs = shared_fs
        self._catalog = Catalog()
        self._host = Host(images, self._catalog)
        self._name = name
        self._address = address
        self._stack = AsyncExitStack()
        self._relinking = anyio.Lock()
        self._read_before = ReadBefore()
        self._unread: set[str] = set()  # unreadable records that were logged
        self._given_up: set[int] = set()  # operations whose commands nobody waits for any more
        self._features: Features
        self.guest: LiveGuest | None = None
        self._concluded: QueryGuard
        self._performer: Performer
        self.session: Session
        self.monitor: JobMonitor

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._catalog.let_go()
        await self._stack.aclose()

    async def _open(self, stack: AsyncExitStack) -> None:
        self.session = await stack.enter_async_context(self._link())
        self.monitor = JobMonitor(self.session)
        _, self._features = await both(
            partial(stack.enter_async_context, self.monitor), partial(read_features, self.session)
        )
        self._concluded = QueryGuard(self.session, self.monitor)
        migrations = Migrations(self.session, self._host.made)
        self._performer = Performer(self.session, migrations, self._host)
        self.guest = self._guest_of(migrations)
        stack.enter_context(self.session.subscribe(self._concluded.note))
        stack.enter_context(self.session.subscribe(migrations.note))

    @abstractmethod
    def _guest_of(self, migrations: Migrations) -> LiveGuest | None:
        """The guest of the session that was just opened."""

    @property
    def name(self) -> str:
        """The machine's name in logs and errors."""
        return self._name

    @property
    def about(self) -> str:
        """Its name, address and process, and whether the connection is there, as in a `repr`."""
        at = f" at {self._address!r}" if self._address not in {"", self._name} else ""
        lost = self.session.close_reason
        return f"{self._name!r}{at}, pid {self.pid}, {f'lost: {lost}' if lost else 'connected'}"

    @property
    def pid(self) -> int | None:
        """QEMU's process if it is known, else None."""
        return self.session.peer_pid

    @property
    def outlives_us(self) -> bool:
        """Whether the process, with its jobs, continues when our process ends."""
        return True

    @property
    def process(self) -> str:
        """An identifier of this QEMU process, which no other process has; "" if it is not known."""
        return identity(self.session.peer_pid)

    @abstractmethod
    async def graph(self) -> Graph:
        """Read the block graph, now."""

    async def graph_with_jobs(self) -> tuple[Graph, tuple[Job, ...]]:
        """The block graph, and every job of any client, as of one instant.

        Both are read again if a job began or ended in between: its end changes the chain, and QEMU sends the
        event before its reply to any later command (job.c: job_state_transition).

        Raises:
            Malformed: When jobs keep ending.
        """
        for _ in range(_TRIES):
            turnover = self.monitor.turnover
            graph = await self.graph()
            jobs = await self.jobs(after_graph=True)
            if turnover == self.monitor.turnover:
                return graph, jobs
        raise Malformed("jobs kept beginning and ending while the block graph was read", hint="try again")

    async def features(self) -> Features:
        """What this QEMU can do; queried once per session. QAPI: query-commands."""
        return self._features

    async def jobs(self, *, after_graph: bool = False) -> tuple[Job, ...]:
        """Every job, of any client, now. QAPI: query-jobs, query-block-jobs.

        Args:
            after_graph: Whether the graph has just been read. Then the events of all earlier jobs have
                arrived, and if they show that there is no job, QEMU is not asked.
        """
        return () if after_graph and self.monitor.idle else await self.monitor.jobs()

    async def block_graph(self) -> BlockGraph:
        """The present users of each node, including jobs; empty if QEMU does not tell them.

        This is the only unstable command that qmpsnap uses, and only to show jobs. No operation depends on
        it, and a QEMU with `-compat unstable-input=reject` refuses it. QAPI: x-debug-query-block-graph.
        """
        command = "x-debug-query-block-graph"
        if command not in (await self.features()).commands:
            return BlockGraph()
        try:
            return read(BlockGraph, await self.session.query(command), command)
        except CommandFailed:
            return BlockGraph()

    async def look(self, ask: Ask, graph: Graph) -> Files:
        """Answer a planner's questions about files, if our file system is QEMU's; else say that it is not.

        If that cannot be proved, because the user may not inspect QEMU's process for instance, the survey is
        made nevertheless: an image that is based on the chain must not be overlooked.
        """
        (files,) = await self.look_each((ask,), graph)
        return files

    async def look_each(self, asks: Sequence[Ask], graph: Graph) -> list[Files]:
        """As `look`, for several questions at once."""
        return [self._named(files, graph) for files in await in_thread(partial(self._look, asks, graph))]

    def _look(self, asks: Sequence[Ask], graph: Graph) -> list[Files]:
        """Answer all questions; blocking."""
        require_room(LOOK)
        names, pid = open_names(graph), self._local_pid
        opened = open_files(pid, names) if pid is not None and names else Opened(Frozen())
        if self._shares(graph, opened):
            barring = Frozen(barred(pid, opened.files, opened.files))
            near = [file for files in graph.chains().values() for file in files]
            return [
                replace(survey.look(ask, near, self._read_before), open=opened.files, barred=barring)
                for ask in asks
            ]
        may_be_ours = self._shared_fs is None and self.session.is_unix
        return [
            replace(survey.look(Ask(files=ask.files, survey=ask.survey)), shared=False, open=opened.files)
            if may_be_ours and ask.survey
            else Files(open=opened.files)
            for ask in asks
        ]

    def _named(self, files: Files, graph: Graph) -> Files:
        """The answer, with the disks in its records named as in the graph."""
        for record in set(files.bad_records) - self._unread:
            _log.warning("record.left_unread", reason=record)
        self._unread.update(files.bad_records)
        records = with_current_names(files.records, graph)
        self._host.learn(files.records, records, files.renamed)
        return replace(files, records=records)

    @property
    def _local_pid(self) -> int | None:
        """QEMU's pid if it is on this host (a unix socket), else None."""
        return self.session.peer_pid if self.session.is_unix else None

    def _shares(self, graph: Graph, opened: Opened) -> bool:
        """Whether we see the files that QEMU sees.

        This is so if the process at the other end of the socket has files of the graph open and sees our file
        system, or if it has open each active file as we see it, in the directory that we see. In a chroot it
        may have open files that it could not open again, and others of the same names.
        """
        if self._shared_fs is not None:
            return self._shared_fs
        if opened.same_view:
            return opened.proven
        files = {disk.active.file for disk in graph.disks.values() if disk.layers and disk.active.local}
        pid = self._local_pid
        return (
            pid is not None
            and bool(files)
            and all(
                file in opened.files and opened.files[file].state == "same" and same_directory(pid, file)
                for file in files
            )
        )

    @abstractmethod
    async def refuse_migrated(self) -> None:
        """Raise if a migration has given the images to another process, or is about to."""

    async def claim_records(self, records: Collection[IntentRecord]) -> None:
        """Lock the records of an interrupted operation; see `Catalog.claim`."""
        await self._catalog.claim(records)

    def release_records(self, ids: Collection[str]) -> None:
        """Unlock the remaining records of these operations."""
        self._catalog.let_go(ids)

    async def perform(self, step: Step) -> float:
        """Do one step (except a wait for a job); return the seconds that it took.

        Raises:
            CommandFailed: When QEMU refuses it.
            LinkLost: When the link is lost; it is unknown whether the step was done.
            Refused: When a file cannot be created, renamed or removed.
        """
        started = time.perf_counter()
        await self._performer.perform(step)
        return time.perf_counter() - started

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Send one command that is not a step of a plan; return the answer. Only a query can be abandoned."""
        send = self.session.query if command.startswith(_ASKS) else self.session.change
        return await send(command, arguments)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """Listen to a job; enter this before the command that starts it."""
        with self.monitor.watch(job_id) as watch:
            yield watch

    def progress(self, job_id: str, interval: float) -> AsyncIterator[Progress]:
        """Ask for a job's progress again and again, until it ends."""
        return self.monitor.progress(job_id, interval)

    def events(self, sink: Callable[[Event], None]) -> AbstractContextManager[None]:
        """Call `sink` with each of QEMU's events inside the block; nothing is queued."""
        return self.session.subscribe(sink)

    async def wait_lost(self) -> str:
        """Return once the connection to QEMU is lost, with the reason."""
        session = self.session
        await session.wait_lost()
        return session.close_reason

    async def abandon(self, owner: object) -> None:
        """Stop waiting for this owner's commands: they raise LinkLost, and their outcome is unknown."""
        self._given_up.add(id(owner))
        await self.session.abandon(owner)

    async def relink(self) -> bool:
        """Try once, for half a second, to connect again after the link was lost; return whether it succeeded.

        If several operations have lost the link, the first one reconnects for all of them.
        """
        if not self._again:
            return False
        async with self._relinking:
            if not self.session.lost.is_set() and id(CURRENT_OPERATION.get()) not in self._given_up:
                return True
            return await self._relink()

    async def _relink(self) -> bool:
        with suppress(QmpsnapError), anyio.move_on_after(_RELINK_LIMIT):
            async with AsyncExitStack() as stack:
                await self._open(stack)
                old, self._stack = self._stack, stack.pop_all()
                await old.aclose()
                _log.info("session.relinked", vm=self._name)
                return True
        return False


async def read_features(session: Session) -> Features:
    """What this QEMU can do. QAPI: query-commands."""
    commands = read(list[CommandInfo], await session.query("query-commands"), "query-commands")
    return Features(frozenset(command.name for command in commands))
