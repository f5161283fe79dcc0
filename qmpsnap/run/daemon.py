"""A target for the images of a machine that is off, which qmpsnap opens in a qemu-storage-daemon.

The daemon has QEMU's block layer but no devices, so the node from which a disk reads is derived from the
steps (`model/open_images.py`). At the end of the block `quit` ends the daemon, which closes the images. The
daemon also ends with our process, however that ends.
"""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import anyio

from qmpsnap.errors import CommandFailed, ConnectFailed, ImageInUse, InvalidTarget, Malformed, QmpsnapError
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import is_lock_refused
from qmpsnap.model.image_chain import ImageChain, ImageLayer
from qmpsnap.model.job import JobStatus
from qmpsnap.model.open_images import OpenImages
from qmpsnap.model.parse import GraphMoved
from qmpsnap.model.parse_images import parse_images
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.images import open_layer
from qmpsnap.run.disk import in_thread
from qmpsnap.run.holders import Holder, users
from qmpsnap.run.images import Images
from qmpsnap.run.log import get_logger
from qmpsnap.run.migration import Migrations
from qmpsnap.run.preflight import refuse_exchanged, refuse_unusable
from qmpsnap.run.process import DAEMON_MONITOR, QemuProcess, start_qemu
from qmpsnap.run.session import Recorder, connect
from qmpsnap.run.session_target import SessionTarget

_log = get_logger("qmpsnap.run")
_GRAPH_TRIES = 20
_QUIT_LIMIT = 30.0  # seconds; completed operations are on the disk before


@asynccontextmanager
async def start_daemon(program: str, name: str) -> AsyncIterator[QemuProcess]:
    """Start a storage daemon, which ends with the block, and with our process.

    Args:
        program: Its path, or its name on PATH.
        name: Its name in errors and logs.

    Raises:
        ConnectFailed: When it cannot be started, or ends before it greets.
    """
    try:
        async with start_qemu([program], name=name, monitor=DAEMON_MONITOR) as process:
            yield process
    except ConnectFailed as error:
        if not error.hint or isinstance(error.__cause__, FileNotFoundError):
            error.hint = "is qemu-storage-daemon installed? You can give its path"
        raise


@asynccontextmanager
async def open_images(
    chains: Collection[ImageChain], *, program: str, name: str, recorder: Recorder | None = None
) -> AsyncIterator[DaemonTarget]:
    """Open the images of each disk until the end of the block, every layer with its own format.

    Args:
        chains: The images of each disk, which were checked.
        program: The storage daemon; if it is a path, qemu-img has to be beside it.
        name: The machine's name in errors and logs.
        recorder: Records the session with the daemon; None: nothing is recorded.

    Raises:
        ConnectFailed: When the daemon cannot be started.
        ImageInUse: When another process has an image open.
        InvalidTarget: When an image cannot be opened.
    """
    await in_thread(partial(refuse_unusable, chains))
    beside = posixpath.dirname(program)
    images = Images(posixpath.join(beside, "qemu-img") if beside else "qemu-img")
    async with (
        start_daemon(program, name) as process,
        DaemonTarget(process, chains, images=images, name=name, recorder=recorder) as target,
    ):
        yield target


class DaemonTarget(SessionTarget):
    """Images that a storage daemon has open; enter it before use.

    Args:
        process: The daemon, which has greeted.
        chains: The images of each disk, which were checked.
        images: Creates and inspects image files.
        name: The machine's name in errors and logs.
        recorder: Records the session; None: nothing is recorded.
    """

    def __init__(
        self,
        process: QemuProcess,
        chains: Collection[ImageChain],
        *,
        images: Images,
        name: str,
        recorder: Recorder | None = None,
    ) -> None:
        link = partial(
            connect,
            process.socket,
            pid=process.pid,
            name=name,
            last_words=process.last_words,
            recorder=recorder,
        )

        super().__init__(link, again=False, shared_fs=True, images=images, name=name)
        self._process = process
        self._chains = tuple(chains)
        self._opened = OpenImages()

    @property
    def outlives_us(self) -> bool:
        """False: the daemon ends with our process, and its jobs end with it."""
        return False

    async def __aexit__(self, *exc: object) -> None:
        """End the daemon, which writes all data to the images and closes them."""
        with anyio.move_on_after(_QUIT_LIMIT, shield=True):
            with suppress(QmpsnapError):
                await self.session.query("quit")  # the reply may be lost, so wait for the process
            await self._process.wait()
        await super().__aexit__(*exc)

    async def _open(self, stack: AsyncExitStack) -> None:
        await super()._open(stack)
        for chain in self._chains:
            below: str | None = None
            for layer in reversed(chain.layers):
                step = open_layer(chain.disk, layer, below=below, active=layer is chain.active)
                try:
                    await self.perform(step)
                except CommandFailed as error:
                    why = partial(_not_opened, chain, layer, error, daemon=self._process.pid)
                    raise await in_thread(why) from error
                below = str(step.arguments["node-name"])
            self._opened = self._opened.with_root(chain.disk, below or "")
        await in_thread(partial(refuse_exchanged, self._chains, self._process.pid))

    def _guest_of(self, migrations: Migrations) -> None:
        """No machine runs on the images."""

    async def refuse_migrated(self) -> None:
        """Nothing migrates images alone."""

    async def graph(self) -> Graph:
        """Read the block graph, again if it changed meanwhile. QAPI: query-named-block-nodes.

        Raises:
            LinkLost: When the daemon has ended.
            Malformed: When no graph can be built from the answer.
        """
        await self._concluded.check()
        for attempt in range(_GRAPH_TRIES):
            await self._follow_jobs()
            named = await self.session.query("query-named-block-nodes", {"flat": True})
            try:
                graph = parse_images(named, self._opened)
            except GraphMoved as moved:
                _log.debug("graph.moved", vm=self._name, node=str(moved), attempt=attempt)
                await anyio.sleep(0.01 * attempt)
            else:
                self._host.graph = graph
                return graph
        raise Malformed("the block graph kept changing while it was read", hint="try again")

    async def perform(self, step: Step) -> float:
        """Do the step, and note the root that a disk has afterwards, because no device knows it."""
        if step.command == "job-dismiss":
            await self._follow_jobs()  # a dismissed job no longer tells how it ended
        seconds = await super().perform(step)
        self._opened = self._opened.after(step)
        return seconds

    async def _follow_jobs(self) -> None:
        """Move the roots of the disks whose jobs have ended without an error. QAPI: query-jobs."""
        if not self._opened.pivots:
            return
        for job in await self.monitor.jobs():
            if job.status is JobStatus.CONCLUDED:
                self._opened = self._opened.ended(job.id, well=not job.error)


def _not_opened(
    chain: ImageChain, layer: ImageLayer, error: CommandFailed, *, daemon: int
) -> ImageInUse | InvalidTarget:
    """The error for a layer that could not be opened: in use if QEMU's image lock says so, else invalid."""
    if not is_lock_refused(error.desc):
        return InvalidTarget(
            f"{layer.file}, a layer of {chain.disk}, cannot be opened: {error.desc}", file=layer.file
        )
    key = (layer.device, layer.inode)
    holder = users([key], apart=(daemon,)).get(key, Holder())
    return ImageInUse(
        f"{layer.file}, a layer of {chain.disk}, is in use: {holder} has it open: {error.desc}",
        file=layer.file,
        pid=holder.pid,
        program=holder.program,
        user=holder.user,
        hint="if its machine is running, connect to the monitor (-s); else wait until that process ends",
    )
