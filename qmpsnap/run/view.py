"""Serves a disk as it was at a moment, over NBD or as a file by FUSE.

A child process opens the layers, read-only and locked, and ends with the block. Its socket is in a directory
of mode 0700. qemu-nbd serves a snapshot inside an image, because only qemu-nbd can open such a snapshot; a
qemu-storage-daemon serves everything else.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH118

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import anyio

from qmpsnap.errors import (
    Changed,
    ConnectFailed,
    GraphMismatch,
    TargetExists,
    Unsupported,
)
from qmpsnap.model.hints import is_lock_refused
from qmpsnap.model.view import DiskView
from qmpsnap.plan.commands.reading import nbd_options, read_options
from qmpsnap.run import memory_files
from qmpsnap.run.disk import in_thread
from qmpsnap.run.lock_holders import lock_holders
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.paths import absolute
from qmpsnap.run.process import Process, start_program
from qmpsnap.run.safe_open import create_file, find_program, private_directory, remove_tree
from qmpsnap.run.tools import tool
from qmpsnap.run.view_lock import Locks

_GREETING = b"NBDMAGIC"
_LONGEST_SOCKET = 107  # bytes; sun_path of unix(7)
_START_LIMIT = 30.0  # seconds; a chain of hundreds of layers takes some
_PAUSE = 0.002


@dataclass(frozen=True, slots=True)
class View:
    """A disk as it was at a moment, open for reading while the block lasts.

    Attributes:
        moment: The moment's name.
        disk: The disk's name.
        uri: Its NBD address, as qemu-img, nbdcopy and libguestfs take it.
        socket: Path of the unix socket; its directory is closed to other users.
        export: Name of the NBD export: the disk's.
        virtual_size: Bytes of the disk.
        layers: Files that it is read from, newest first.
        file: Path of a file with the content of the disk (FUSE); "" without `fuse`.
    """

    moment: str
    disk: str
    uri: str
    socket: str
    export: str
    virtual_size: int
    layers: tuple[str, ...]
    file: str = ""

    def to_json(self) -> dict[str, object]:
        """The view as `open --json` prints it."""
        return {
            "moment": self.moment,
            "disk": self.disk,
            "uri": self.uri,
            "socket": self.socket,
            "export": self.export,
            "virtual_size": self.virtual_size,
            "layers": list(self.layers),
            "file": self.file,
        }


@asynccontextmanager
async def open_view(view: DiskView, *, fuse: str | os.PathLike[str] | None = None) -> AsyncIterator[View]:
    """Serve a disk as it was at a moment, until the end of the block.

    No process, socket or file is left afterwards, even if our own process is killed. The machine is not
    touched. Until the end of the block QEMU refuses to write into a layer that is read here.

    Args:
        view: What to read, from `VM.views`.
        fuse: Directory in which the disk is also available as a file, `DISK.raw`; None: no such file.

    Raises:
        Unsupported: When QEMU's tools are not installed, or cannot use FUSE here.
        TargetExists, InvalidTarget: When the file exists, or cannot be created there.
        ConnectFailed: When the layers cannot be opened; the message contains that of the tool.
        GraphMismatch: At the end of the block, when the snapshot inside an image was deleted meanwhile: what
            was read after that may be newer data.
    """
    place = None if fuse is None else absolute("fuse", fuse)
    async with AsyncExitStack() as stack:
        await in_thread(partial(_hold, view, stack))
        directory = private_directory(_LONGEST_SOCKET - len("/fuse"))
        stack.callback(remove_tree, directory)
        path = os.path.join(directory, "nbd")
        file = _mount_point(view, place) if place is not None else ""
        remove = (directory, file) if file else (directory,)
        if file:
            stack.callback(_unlink, file)
        if view.snapshot is None:
            await _serve(stack, view, _daemon(view, path, [read_options(view)], file), path, remove)
        else:
            await _serve(stack, view, _nbd(view, path), path, remove)
            if file:
                second = os.path.join(directory, "fuse")
                below = [nbd_options(path, view.disk)]
                await _serve(stack, view, _daemon(view, second, below, file), second, remove)
        yield View(
            moment=view.moment,
            disk=view.disk,
            uri=f"nbd+unix:///{quote(view.disk, safe='')}?socket={quote(path)}",
            socket=path,
            export=view.disk,
            virtual_size=view.virtual_size,
            layers=view.files,
            file=file,
        )
        await _refuse_deleted(view)


def _hold(view: DiskView, stack: AsyncExitStack) -> None:
    """Mark the moment as being read until the stack is closed, and each layer to which no guest writes."""
    for moment, files in ((view.moment, view.files[:1]), ("", view.files[1 if view.written else 0 :])):
        locks = Locks(moment)
        stack.callback(locks.close)
        try:
            locks.hold(files)
        except OSError as error:
            raise unusable(view.files[0], error, "read") from error


def _mount_point(view: DiskView, directory: str) -> str:
    """Create the empty file on which FUSE mounts the disk."""
    file = os.path.join(directory, f"{view.disk.replace('/', '-')}.raw")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) and find_program("fusermount3") is None:
        raise _no_fuse("/dev/fuse cannot be used, and there is no fusermount3")
    try:
        os.close(create_file(file))
    except FileExistsError as error:
        raise TargetExists(f"{file} exists already and was not touched", file=file) from error
    except (OSError, ValueError) as error:
        raise unusable(file, error, "create") from error
    return file


def _no_fuse(why: str) -> Unsupported:
    return Unsupported(
        f"the disk cannot be exported as a file here: {why}",
        feature="FUSE export",
        hint="omit --fuse, and read the disk over NBD",
    )


def _unlink(file: str) -> None:
    with suppress(OSError):
        os.unlink(file)  # noqa: PTH108


def _daemon(view: DiskView, path: str, nodes: Sequence[dict[str, Any]], file: str) -> list[str]:
    """The command line of the storage daemon that exports the last of the nodes."""
    words = [tool("qemu-storage-daemon")]
    for number, node in enumerate(nodes):
        words += ["--blockdev", json.dumps({"node-name": f"view{number}", **node})]
    last = f"view{len(nodes) - 1}"
    words += ["--nbd-server", json.dumps({"addr": {"type": "unix", "path": path}, "max-connections": 0})]
    export = {"type": "nbd", "id": "nbd", "node-name": last, "name": view.disk, "writable": False}
    words += ["--export", json.dumps(export)]
    if file:
        mount = {"type": "fuse", "id": "fuse", "node-name": last, "mountpoint": file, "writable": False}
        words += ["--export", json.dumps(mount)]
    return words


def _nbd(view: DiskView, path: str) -> list[str]:
    """The command line of the qemu-nbd that exports a snapshot inside an image."""
    snapshot = view.snapshot
    assert snapshot is not None  # noqa: S101 - the caller has checked it
    words = [tool("qemu-nbd"), "--read-only", f"--socket={path}", "--persistent", "--shared=0"]
    words += [f"--export-name={view.disk}"]
    wanted = f"snapshot.id={_escaped(snapshot.id)},snapshot.name={_escaped(snapshot.name)}"
    return [*words, f"--load-snapshot={wanted}", f"json:{json.dumps(read_options(view))}"]


def _escaped(text: str) -> str:
    """Text as a value in QEMU's option lists."""
    return text.replace(",", ",,")


async def _serve(
    stack: AsyncExitStack, view: DiskView, argv: list[str], path: str, remove: tuple[str, ...]
) -> None:
    """Start the program, and return once it answers on its socket."""
    name = f"{view.disk} at {view.moment}"
    process = await stack.enter_async_context(start_program(argv, name=name, remove=remove))
    with anyio.move_on_after(_START_LIMIT):
        while process.returncode is None:
            if await _answers(path):
                return
            await anyio.sleep(_PAUSE)
    raise await _failed(process, view, argv[0], fuse=path.endswith("fuse") or len(remove) > 1)


async def _answers(path: str) -> bool:
    """Whether an NBD server greets on the socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0)
        try:
            sock.connect(path)
        except OSError:
            return False
        await anyio.wait_readable(sock)
        try:
            return sock.recv(len(_GREETING)) == _GREETING
        except OSError:
            return False


async def _failed(process: Process, view: DiskView, program: str, *, fuse: bool) -> Exception:
    words = await process.last_words() or f"did not answer within {_START_LIMIT:g} s"
    if fuse and "fuse" in words.lower():
        return _no_fuse(words)
    return ConnectFailed(
        f"{view.disk} as it was at {view.moment!r} cannot be opened: {program} {words}",
        hint=await in_thread(partial(lock_holders, view.files, process.pid))
        or "another process writes to one of its layers; to find it: qmpsnap jobs, or fuser -v FILE"
        if is_lock_refused(words)
        else "",
    )


async def _refuse_deleted(view: DiskView) -> None:
    """Raise if the snapshot inside an image no longer exists: what was read may then be wrong."""
    if view.snapshot is None:
        return
    file, wanted = view.files[0], (view.snapshot.id, view.snapshot.name)
    fact = (await in_thread(partial(memory_files.look, (file,)))).get(file)
    now = [(each.id, each.name) for each in fact.inside] if fact is not None else []
    if wanted not in now:
        raise GraphMismatch(
            f"the snapshot {view.moment!r} was deleted from {file} while it was being read: what was read "
            "after that may be newer data",
            expected={view.disk: (view.moment,)},
            found={view.disk: tuple(name for _, name in now)},
            changed=Changed.NO,
            hint="read it again from another snapshot",
        )
