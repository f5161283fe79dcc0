"""A read-only target for the images of a machine that is off, of which only the headers are read.

No daemon is started and no image is locked, so a machine may run on the images. What it has not yet written
is not seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.model.disk_renames import with_current_names
from qmpsnap.model.features import Features
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.image_chain import ImageChain
from qmpsnap.model.image_graph import image_graph
from qmpsnap.model.job import Job
from qmpsnap.model.job_place import BlockGraph
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Step
from qmpsnap.run import survey
from qmpsnap.run.disk import in_thread
from qmpsnap.run.file_limit import LOOK, require_room
from qmpsnap.run.image_headers import image_fact
from qmpsnap.run.os_errors import reason
from qmpsnap.run.preflight import ChainsRead
from qmpsnap.run.session import Event
from qmpsnap.run.target import Progress, Watch


class UnopenedTarget:
    """Images that are not opened: only their headers are read.

    Args:
        read: Reads the chain of each disk.
        name: The machine's name in errors and logs.
        each: Reads them one by one: those that can be read, and those that cannot.
    """

    pid = None
    process = ""
    guest = None
    outlives_us = True

    def __init__(
        self,
        read: Callable[[], tuple[ImageChain, ...]],
        *,
        name: str,
        each: Callable[[], ChainsRead] | None = None,
    ) -> None:
        self.name = name
        self.about = f"{name!r}, not opened"
        self._read = read
        self._each = each

    def read_each(self) -> ChainsRead:
        """Read the chains one by one, so that one that is broken hides no other. Blocking."""
        return self._each() if self._each is not None else ChainsRead(self._read(), ())

    async def graph(self) -> Graph:
        """Read the headers, and build the graph from them.

        Raises:
            Refused: When an image is missing, or must not be opened.
        """
        return await in_thread(lambda: graph_of(self._read()))

    async def graph_with_jobs(self) -> tuple[Graph, tuple[Job, ...]]:
        """Images alone have no jobs."""
        return await self.graph(), ()

    async def look(self, ask: Ask, graph: Graph) -> Files:
        """Answer what a planner asked about the file system."""
        (files,) = await self.look_each((ask,), graph)
        return files

    async def look_each(self, asks: Sequence[Ask], graph: Graph) -> list[Files]:
        """As `look`, for several questions at once."""
        near = [file for files in graph.chains().values() for file in files]
        answers = await in_thread(partial(_look_each, asks, near))
        return [replace(files, records=with_current_names(files.records, graph)) for files in answers]

    async def jobs(self, *, after_graph: bool = False) -> tuple[Job, ...]:
        """Images alone have no jobs."""
        del after_graph
        return ()

    async def block_graph(self) -> BlockGraph:
        """No node is in use."""
        return BlockGraph()

    async def features(self) -> Features:
        """Refuse: the images are not opened, so nothing can change them."""
        self._refuse()

    async def refuse_migrated(self) -> None:
        """Nothing migrates images alone."""

    async def perform(self, step: Step) -> float:
        """Refuse: the images are not opened."""
        del step
        self._refuse()

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Refuse: there is no monitor."""
        del command, arguments
        self._refuse()

    async def claim_records(self, records: Collection[IntentRecord]) -> None:
        """Refuse: the images are not opened, so nothing can be finished."""
        del records
        self._refuse()

    def release_records(self, ids: Collection[str]) -> None:
        """Do nothing: no record is locked."""

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """There are no jobs."""
        del job_id
        self._refuse()
        yield

    def progress(self, job_id: str, interval: float) -> AsyncIterator[Progress]:
        """There are no jobs."""
        del job_id, interval
        self._refuse()

    @contextmanager
    def events(self, sink: Callable[[Event], None]) -> Iterator[None]:
        """No event ever comes."""
        del sink
        yield

    async def wait_lost(self) -> str:
        """There is no link that could be lost."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def abandon(self, owner: object) -> None:
        """Nothing is in flight."""

    async def relink(self) -> bool:
        """There is no link."""
        return False

    def _refuse(self) -> NoReturn:
        raise Unsupported(
            f"the images of {self.name} are not opened: only their headers are read",
            feature="changing images that are not opened",
            hint="open them: qmpsnap.offline() without read_only",
        )


def graph_of(chains: tuple[ImageChain, ...]) -> Graph:
    """The graph of chains that were read, with what the files tell beyond their headers. Blocking.

    Raises:
        InvalidTarget: When an image cannot be read.
    """
    facts = {}
    for layer in (layer for chain in chains for layer in chain.layers):
        try:
            facts[layer.file] = image_fact(layer)
        except (OSError, ValueError) as error:
            raise InvalidTarget(f"{layer.file!r} cannot be read: {reason(error)}", file=layer.file) from error
    return image_graph(chains, facts)


def _look_each(asks: Sequence[Ask], near: Collection[str]) -> list[Files]:
    require_room(LOOK)
    return [survey.look(ask, near) for ask in asks]
