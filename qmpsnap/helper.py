"""A second QEMU that loads a checkpoint and works on its memory; its guest never runs."""

from __future__ import annotations

import asyncio
import os
import posixpath
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import anyio

from qmpsnap.errors import Changed, InvalidTarget, LinkLost, NotFound, QmpsnapError, Unsupported
from qmpsnap.model.arguments import refuse
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.hints import command
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.names import disk_part
from qmpsnap.model.start import RAM_ID, GuestMemory, Start
from qmpsnap.model.view import DiskView
from qmpsnap.one_machine import M, OneMachine, Starter
from qmpsnap.plan.intent import Load
from qmpsnap.plan.written import refuse_written
from qmpsnap.run.both import both
from qmpsnap.run.disk import in_thread
from qmpsnap.run.fifo import Fifo, opened
from qmpsnap.run.images import Images
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.ram_file import ram_file
from qmpsnap.run.scratch import in_scratch
from qmpsnap.starting import another

_PATIENCE: Final = 3.0  # seconds
_HELPER_LOST: Final = "it is the QEMU that the launcher has started, and nothing of it is kept: try again"
T = TypeVar("T")


async def _at_once() -> None:
    """Return at once, as for a checkpoint that exists."""


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that a helper QEMU loads, which may not be complete yet.

    Attributes:
        name: Its name.
        views: How each disk is read.
        memory_bytes: Size of the guest's memory.
        block: Name that its memory has in the VM state.
        stream: Whether its memory is in a stream, for which a QEMU is started with `-incoming`.
        state: Returns where its VM state is, once it is complete.
        foreseen: Where it will be, if it is a stream that is not written yet; else None.
        begun: Returns once the layers are no longer written to, and a stream is being written or complete.
    """

    name: str
    views: Sequence[DiskView]
    memory_bytes: int
    block: str
    stream: bool
    state: Callable[[], Awaitable[KeptState]]
    foreseen: KeptState | None = None
    begun: Callable[[], Awaitable[None]] = _at_once


async def source_of(vm: OneMachine, name: str) -> Source:
    """Return a checkpoint that exists; refuse what `loaded` refuses."""
    state = await kept_state(vm, name)

    async def complete() -> KeptState:
        return state

    views = await vm.views(name)
    refuse_written(name, [layer for view in views for layer in view.written_since])
    machine = state.fingerprint
    return Source(name, views, machine.memory, machine.ram or RAM_ID, state.mode != "in-place", complete)


def choose_launcher(given: Starter[M] | None, own: Starter[M] | None) -> Starter[M]:
    """Return the caller's launcher, or else the machine's or template's own.

    Raises:
        BadArgument: When there is none, or it cannot be called.
    """
    launcher = own if given is None else given
    if launcher is None or not callable(launcher):
        refuse("launcher", launcher, "give a function that starts a QEMU from a qmpsnap.Start")
    return launcher


@asynccontextmanager
async def loaded(
    source: Source,
    launcher: Starter[M],
    *,
    memory: GuestMemory | None = None,
    directory: str = "",
    started: Callable[[M], Coroutine[Any, Any, None]] | None = None,
    begun: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> AsyncIterator[M]:
    """Start a second QEMU of a machine, and load a checkpoint of the machine into it; it ends with the block.

    Its disks are new overlays on the layers of the checkpoint. They and its other files are removed at the
    end of the block, also after a failure or a cancellation; if our process is killed, the next call removes
    them. The machine itself is not changed, and keeps running.

    Args:
        source: The checkpoint. The QEMU is started at once, also while a guest still writes to the layers: it
            reads nothing of them before it has loaded the VM state. It loads a stream while that is being
            written, anything else once the checkpoint is complete; in the block it is complete.
        launcher: Starts the QEMU.
        memory: The file that becomes its memory, empty so far; None: memory as the machine has it.
        directory: Directory for the temporary files; "": the system's.
        started: Called with the QEMU as soon as it is up; None: no function.
        begun: Called once the layers are no longer written to, before the checkpoint is loaded or meanwhile;
            None: no function.

    Yields:
        The QEMU, its guest paused as it was at the checkpoint.

    Raises:
        MachineDiffers: When the launcher starts another machine; `.differences` names how.
        InvalidTarget: When its memory is missing, incomplete, or not the checkpoint's.
        Refused, TargetError: As the launcher does.
    """
    async with throwaway(source.views, directory) as (disks, place):
        start = Start(disks=disks, memory=memory, incoming=source.stream, paused=True, directory=place)
        async with another(launcher, start) as helper:
            if started is not None:
                await expendable(helper, started(helper))
            state = source.foreseen or await source.state()
            if source.foreseen is not None or (memory is not None and source.stream and state.inode):
                fifo, unfinished = posixpath.join(place, "stream"), source.foreseen is not None
                load = Load(source.name, state, disks, fifo=fifo, unfinished=unfinished)
                async with loading(helper, load, memory=memory) as go_on:
                    await source.begun()
                    inode = await _passed_on(source, go_on, begun)
                if (state := await source.state()).inode != inode:
                    raise InvalidTarget(f"{state.file!r} is not the file that was loaded", file=state.file)
            else:
                if begun is not None:
                    await begun()
                await expendable(helper, helper.do(Load(source.name, state, disks)))
            yield helper


async def _passed_on(
    source: Source,
    go_on: Callable[[int], Coroutine[Any, Any, None]],
    begun: Callable[[], Coroutine[Any, Any, None]] | None,
) -> int:
    """Load a stream, which may still be being written, and work beside that; return the inode of its file."""
    with ExitStack() as stack:
        descriptor = await _stream_of(source, stack)
        if begun is None:
            await go_on(descriptor)
        else:
            await both(partial(go_on, descriptor), begun)
        return os.fstat(descriptor).st_ino


async def _stream_of(source: Source, stack: ExitStack) -> int:
    """Open the file of a stream, by the name that it has until it is complete, or by its final name."""
    file, inode = "", 0
    try:
        if source.foreseen is not None:
            file = source.foreseen.partial
            with suppress(FileNotFoundError):  # it is complete by now
                return stack.enter_context(opened(file))
        state = await source.state()
        file, inode = state.file, state.inode
        return stack.enter_context(opened(file, inode=inode))
    except OSError as error:
        raise unusable(file, error, "read") from error


@asynccontextmanager
async def loading(
    vm: OneMachine, load: Load, *, memory: GuestMemory | None = None
) -> AsyncIterator[Callable[[int], Coroutine[Any, Any, None]]]:
    """Begin to load VM state that is not there yet; it comes through the FIFO of `load`, which is created.

    If the block ends before all has come, the QEMU ends, too.

    Args:
        vm: The QEMU, of which nothing is kept.
        load: What it loads.
        memory: The file that is its memory, and is empty so far: we write what belongs there, which is
            quicker, and leaves out what is zero. None: QEMU loads all.

    Yields:
        A function that takes the descriptor of the file, which another QEMU may still be writing, and returns
        once all is loaded. It raises what the load raises, and InvalidTarget when the file cannot be read, or
        the memory not be written.
    """
    try:
        fifo = Fifo(load.fifo)
    except OSError as error:
        raise unusable(load.fifo, error, "create") from error
    task = asyncio.create_task(expendable(vm, vm.do(load), give_up=fifo.stop))
    task.add_done_callback(lambda _: fifo.stop())

    async def go_on(file: int) -> None:
        with (
            nullcontext() if memory is None else ram_file(memory.file, memory.block, memory.size_bytes) as ram
        ):
            await in_thread(partial(fifo.pass_on, file, ram), stop=fifo.stopped)
        try:
            await asyncio.shield(task)
        except QmpsnapError as error:
            if isinstance(fifo.error, OSError):
                raise unusable(load.state.file, fifo.error, "read") from error
            if fifo.error is not None:
                raise fifo.error from error
            raise

    try:
        yield go_on
    finally:
        if not task.done():
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it was raised, or is of no use any more
        fifo.close()


async def expendable(
    vm: OneMachine, work: Coroutine[Any, Any, T], *, give_up: Callable[[], None] | None = None
) -> T:
    """Do work on a QEMU of which nothing is kept; after a cancellation it may be killed.

    A cancelled operation is awaited for half a minute, because disks are to be left in order. Here that is
    not needed: if QEMU does not answer within seconds, it is killed, which ends the work.

    Args:
        vm: The QEMU.
        work: The work.
        give_up: Called after a cancellation, before the work is awaited; None: no function.

    Raises:
        LinkLost: When the QEMU ends; `changed` is NO, for nothing of it is kept.
        Exception: What the work raises.
    """
    pidfd = None
    if vm.pid is not None:
        with suppress(OSError):  # it has ended, or is out of sight
            pidfd = os.pidfd_open(vm.pid)
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except LinkLost as error:
        error.changed, error.hint = Changed.NO, _HELPER_LOST
        raise
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            task.cancel()
            if give_up is not None:
                give_up()
            await asyncio.wait({task}, timeout=_PATIENCE)
            if not task.done() and pidfd is not None:
                with suppress(OSError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # what it says is of no use any more
        raise
    finally:
        if pidfd is not None:
            os.close(pidfd)


async def kept_state(vm: OneMachine, name: str) -> KeptState:
    """Return where the VM state of a checkpoint is, which must be in a separate file.

    Raises:
        NotFound: When no moment has the name.
        Unsupported: When it has no VM state, or has it inside the images.
    """
    moments = (await vm.moments()).named(name)
    if not moments:
        raise NotFound(f"there is no snapshot {name!r}", hint="qmpsnap list shows them")
    states = [
        moment.record.state
        for moment in moments
        if moment.record is not None and moment.record.state is not None
    ]
    if not states:
        inside = moments[0].mode == "internal"
        raise Unsupported(
            f"{name!r} {'keeps its memory inside the images' if inside else 'has no memory'}: no other QEMU "
            "can load it",
            feature="loading such a snapshot into another QEMU",
            hint=f"revert to it ({command('revert', name)}), then take a checkpoint of another mode"
            if inside
            else "take a checkpoint",
        )
    return states[0]


@asynccontextmanager
async def throwaway(
    views: Sequence[DiskView], directory: str = "", *, keep: str = ""
) -> AsyncIterator[tuple[Frozen[str, str], str]]:
    """Create overlays on the layers of each disk, in a private directory that is removed with the block.

    Args:
        views: How each disk is read.
        directory: Where that directory is created; "": among the system's temporary files.
        keep: A directory in which the overlays are created instead, and which stays; "": none.

    Yields:
        The overlay of each disk, by the disk's name, and the directory.

    Raises:
        InvalidTarget: When they cannot be created.
    """
    async with in_scratch(directory) as place:
        images, disks = Images(), {}
        for view in views:
            file = posixpath.join(keep or place, f"{disk_part(view.disk)}.qcow2")
            await images.create_image(
                file,
                size_bytes=view.virtual_size,
                format="qcow2",
                like=None,
                backing=view.layers[0].file,
                backing_format=view.layers[0].format,
                synced=bool(keep),
            )
            disks[view.disk] = file
        yield Frozen(disks), place
