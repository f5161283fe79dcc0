"""What a diagnosis has to know of files beyond their headers: room, permissions, and who else writes to them.

Blocking; nothing is opened for writing, and no lock is taken.
"""

# Paths stay as QEMU spells them:
# ruff: noqa: PTH116

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from msgspec import Struct

from qmpsnap.model.files import Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.run.holders import FileId, Holder, writers


class ExaminedFiles(Struct, frozen=True):
    """What was seen of a machine's files.

    Attributes:
        room: Free bytes of the file system, for each active layer that is a regular file.
        read_only: For each layer beneath that could not be opened for writing, why.
        writers: For each file that another process or a loop device has open for writing, which.
        missing: Those of the files asked for that do not exist.
    """

    room: Mapping[str, int] = Frozen()
    read_only: Mapping[str, str] = Frozen()
    writers: Mapping[str, str] = Frozen()
    missing: frozenset[str] = frozenset()


def examine_files(
    graph: Graph, files: Files, *, pid: int | None, off: bool = False, asked: Iterable[str] = ()
) -> ExaminedFiles:
    """Look at the files of each chain.

    Args:
        graph: The chains.
        files: What was read of their files before.
        pid: The process that has the images open, and may write to them.
        off: Whether the machine is off: then the layers beneath need not be writable.
        asked: Other files, of which it is asked whether they exist.
    """
    layers = [layer for disk in graph.disks.values() for layer in disk.layers if layer.local]
    room, read_only = {}, {}
    for disk in graph.writable():
        if disk.active.local and disk.active.file.startswith("/"):
            with suppress(OSError):
                if stat.S_ISREG(os.stat(disk.active.file).st_mode):
                    space = os.statvfs(disk.active.file)
                    room[disk.active.file] = space.f_bavail * space.f_frsize
    for disk in () if off else graph.writable():
        for layer in disk.layers[1:]:
            why = _barred(layer.file, files.barred) if layer.local and layer.file.startswith("/") else ""
            if why:
                read_only[layer.file] = why
    keys: dict[FileId, str] = {}
    for layer in layers:
        for part in layer.parts:
            with suppress(OSError, ValueError):
                status = os.stat(part)
                if stat.S_ISREG(status.st_mode):
                    keys.setdefault((status.st_dev, status.st_ino), part)
    return ExaminedFiles(
        Frozen(room),
        Frozen(read_only),
        Frozen({keys[key]: str(holder) for key, holder in _writers(keys, pid).items()}),
        frozenset(file for file in asked if not os.path.lexists(file)),
    )


def _writers(files: Collection[FileId], pid: int | None) -> Mapping[FileId, Holder]:
    return writers(files, apart=(pid, os.getpid())) if files else {}


def _barred(file: str, barred: Mapping[str, str]) -> str:
    """Why QEMU could not open the file for writing; "" if it could, as far as known."""
    if file in barred:
        return barred[file]
    try:
        if os.statvfs(file).f_flag & os.ST_RDONLY:
            return "it is on a read-only file system"
        if not os.access(file, os.W_OK, effective_ids=True):
            return f"its mode is {stat.S_IMODE(os.stat(file).st_mode):04o}"
    except (OSError, ValueError):  # its name is lost, which another rule finds
        return ""
    return ""
