"""Connects to a running QEMU, or opens the images of a machine that is off."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from qmpsnap.model.arguments import Text, check, number, path_text, refuse
from qmpsnap.model.names import is_name
from qmpsnap.run import session as sessions
from qmpsnap.run.daemon import open_images
from qmpsnap.run.disk import in_thread
from qmpsnap.run.event_loop import asyncio_loop
from qmpsnap.run.images import Images
from qmpsnap.run.live import LiveTarget
from qmpsnap.run.paths import absolute, absolute_each
from qmpsnap.run.preflight import read_chains, read_each
from qmpsnap.run.session import Recorder, Session, recording
from qmpsnap.run.unopened import UnopenedTarget
from qmpsnap.vm import VM

if TYPE_CHECKING:
    from qemu.qmp import QMPClient


@asynccontextmanager
async def connect(
    address: str | os.PathLike[str] | tuple[str, int] | socket.socket | QMPClient,
    *,
    shared_fs: bool | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    pid: int | None = None,
    reply_limit: float = 60.0,
    greeting_limit: float = 5.0,
    name: str = "",
    record: str | os.PathLike[str] | None = None,
) -> AsyncIterator[VM]:
    """Drive a running QEMU; the connection lasts as long as the block.

    Args:
        address: Path of a unix socket, "@NAME" of an abstract one, "tcp:HOST:PORT", (host, port), a connected
            socket, which becomes ours, or a connected QMPClient, which stays yours. `address_of` finds that
            of a machine by its name.
        shared_fs: Whether QEMU's files are visible here; None: detect it.
        state_dir: Directory of records; None: beside each base image.
        pid: QEMU's process id, if the socket does not give it.
        reply_limit: Seconds that QEMU may take to answer a query.
        greeting_limit: Seconds that QEMU may take to greet.
        name: Name of the machine in logs and errors; "": its address.
        record: File to create, to which each message of the session is written, with secrets masked; None: no
            file.

    Raises:
        BadArgument: When an argument is invalid, or `record` is given with a QMPClient of yours.
        TargetExists, InvalidTarget: When the record exists, or cannot be created.
        ConnectFailed: When there is no QMP server there, or no greeting in time.
        Unsupported: When the running event loop is not asyncio's.
    """
    asyncio_loop()
    place = _place(address)
    for parameter, value, kind in (
        ("shared_fs", shared_fs, bool | None),
        ("pid", pid, int | None),
        ("name", name, str),
    ):
        check(parameter, value, kind)
    if pid is not None and pid < 1:
        refuse("pid", pid, "give a process id")
    number("reply_limit", reply_limit)
    number("greeting_limit", greeting_limit)
    directory = absolute("state_dir", state_dir) if state_dir is not None else ""
    if record is not None and not isinstance(place, str | tuple | socket.socket):
        refuse("record", record, "what a QMPClient of yours sends cannot be recorded: give an address")

    def link(recorder: Recorder | None) -> AbstractAsyncContextManager[Session]:
        if isinstance(place, str | tuple | socket.socket):
            return sessions.connect(
                place,
                pid=pid,
                reply_limit=reply_limit,
                greeting_limit=greeting_limit,
                name=name,
                recorder=recorder,
            )
        return sessions.adopt(place, pid=pid, reply_limit=reply_limit)

    with recording(_record(record)) as recorder:
        target = LiveTarget(
            partial(link, recorder),
            again=isinstance(place, str | tuple),
            shared_fs=shared_fs,
            images=Images(),
            name=name or (place if isinstance(place, str) else "qemu"),
            address=sessions.describe(place) if isinstance(place, str | tuple) else "",
        )
        async with target:
            yield VM(target, state_dir=directory)


@asynccontextmanager
async def offline(
    images: Mapping[str, str | os.PathLike[str]] | None = None,
    /,
    *,
    formats: Mapping[str, str] | None = None,
    allow_dirs: Iterable[str | os.PathLike[str]] = (),
    read_only: bool = False,
    daemon: str | os.PathLike[str] = "qemu-storage-daemon",
    state_dir: str | os.PathLike[str] | None = None,
    name: str = "",
    record: str | os.PathLike[str] | None = None,
    **disks: str | os.PathLike[str],
) -> AsyncIterator[VM]:
    """Work on the images of a machine that is off, with all methods that need no guest.

    Our own reader first checks the headers of all images. Then a qemu-storage-daemon opens every layer with
    its own format, and locks it: no machine can start on the images meanwhile. The daemon ends with the
    block, and also if this process is killed.

    Args:
        images: The active image of each disk, by the name that you choose for the disk.
        formats: "raw" or "qcow2" of a disk's active image; needed unless its name ends in ".qcow2". The
            format of each layer beneath is the one that the header above it records.
        allow_dirs: Directories in which, and below which, backing files and data files may be, in addition to
            the directory of the active image.
        read_only: Whether only the headers of the images are read: no daemon is started, nothing is locked,
            and every change is refused.
        daemon: The storage daemon's path, or its name on PATH.
        state_dir: Directory of records; None: beside each base image.
        name: The machine's name in logs and errors; "": "the machine".
        record: File to create, to which every message of the session with the daemon is written; None: no
            file. With `read_only` there is no daemon, and the record has only its first line.
        disks: More images, as keywords, for disk names that are Python identifiers.

    Raises:
        BadArgument: When an argument is invalid.
        TargetExists, InvalidTarget: When the record exists, or cannot be created.
        UnsafeImage: When an image must not be opened, because of its header or an unknown format.
        ImageInUse: When a process has an image open for writing.
        NotFound, InvalidTarget, Unsupported, StillNeeded: When an image cannot be opened; Unsupported also
            when the running event loop is not asyncio's.
        ConnectFailed: When the daemon cannot be started.
    """
    asyncio_loop()
    check("read_only", read_only, bool)
    check("name", name, str)
    called = name or "the machine"
    named, known = _images(images, disks), _formats(formats)
    allowed = absolute_each("allow_dirs", allow_dirs)
    read = partial(read_chains, named, formats=known, allow_dirs=allowed)
    directory = "" if state_dir is None else absolute("state_dir", state_dir)
    program = path_text("daemon", daemon)
    with recording(_record(record)) as recorder:
        if read_only:
            each = partial(read_each, named, formats=known, allow_dirs=allowed)
            yield VM(UnopenedTarget(read, name=called, each=each), state_dir=directory)
            return
        images_now = await in_thread(read)
        async with open_images(images_now, program=program, name=called, recorder=recorder) as target:
            yield VM(target, state_dir=directory)


def _record(file: str | os.PathLike[str] | None) -> str | None:
    return None if file is None else absolute("record", file)


def _images(
    images: Mapping[str, str | os.PathLike[str]] | None, more: Mapping[str, str | os.PathLike[str]]
) -> dict[str, str]:
    if not isinstance(images, Mapping | None):
        refuse("images", images, "give a mapping of disks to paths")
    given = {**(images or {}), **more}
    if not given:
        refuse("images", given, "give the active image of at least one disk")
    for disk in given:
        check("images", disk, Text)
        if not is_name(disk):
            refuse("images", disk, "name the disk by letters, digits, '_', '.' and '-', at most 64")
        if disk in more and disk in (images or {}):
            refuse("images", disk, "two images are given for that disk")
    return {disk: absolute("images", file) for disk, file in given.items()}


def _formats(formats: Mapping[str, str] | None) -> dict[str, str]:
    check("formats", formats, Mapping[str, str] | None)
    return dict(formats or {})


def _place(
    address: str | os.PathLike[str] | tuple[str, int] | socket.socket | QMPClient,
) -> str | tuple[str, int] | socket.socket | QMPClient:
    """Return the address, a path as text; refuse anything else before it is used as a file name."""
    if isinstance(address, tuple):
        host, port = address if len(address) == 2 else (None, None)
        if not isinstance(host, str) or not isinstance(port, int) or not 0 < port < 1 << 16:
            refuse("address", address, "give (host, port), the port from 1 to 65535")
    elif isinstance(address, str):
        path_text("address", address)
    elif isinstance(address, os.PathLike):
        path = path_text("address", address)
        return f"./{path}" if path.startswith(("@", "tcp:")) else path  # no other kind of address
    elif not isinstance(address, socket.socket) and not hasattr(address, "execute_msg"):
        refuse("address", address, "give a path, 'tcp:HOST:PORT', (host, port), a socket or a QMPClient")
    return address
