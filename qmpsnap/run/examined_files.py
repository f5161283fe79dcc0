"""What a diagnosis has to know of files beyond their headers: room, permissions, and who else writes to them.

Blocking; nothing is opened for writing, and no lock is taken.
"""

# Paths stay as QEMU spells them:
# ruff: noqa: PTH116

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress

from msgspec import Struct

from qmpsnap.model.files import Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.run.holders import FileId, writers


class ExaminedFiles(Struct, frozen=True):
    """What was seen of a machine's files.

    Attributes:
        room: Free bytes of the file system, for each active layer that is a regular file.
        read_only: For each layer beneath that could not be opened for writing, why.
        missing: Those of the files asked for that do not exist.
    """

    room: Mapping[str, int] = Frozen()
    read_only: Mapping[str, str] = Frozen()
    missing: frozenset[str] = frozenset()


def examine_files(
    graph: Graph, files: Files, *, off: bool = False, asked: Iterable[str] = ()
) -> ExaminedFiles:
    """Look at the files of each chain.

    Args:
        graph: The chains.
        files: What was read of their files before.
        off: Whether the machine is off: then the layers beneath need not be writable.
        asked: Other files, of which it is asked whether they exist.
    """
    room, read_only = {}, {}
    for disk in graph.writable():
        file = disk.active.file
        if disk.active.local and file.startswith("/"):
            with suppress(OSError):
                if stat.S_ISREG(os.stat(file).st_mode):
                    space = os.statvfs(file)
                    room[file] = space.f_bavail * space.f_frsize
        for layer in () if off else disk.layers[1:]:
            why = _barred(layer.file, files.barred) if layer.local and layer.file.startswith("/") else ""
            if why:
                read_only[layer.file] = why
    missing = frozenset(file for file in asked if not os.path.lexists(file))
    return ExaminedFiles(Frozen(room), Frozen(read_only), missing)


def other_writers(graph: Graph, pid: int | None) -> Mapping[str, str]:
    """For each file of the chains that another process or a loop device has open for writing, which.

    It looks at the descriptors of every process, and so can hang where one has a file on storage that hangs.

    Args:
        graph: The chains.
        pid: The process that has the images open, and may write to them.
    """
    keys: dict[FileId, str] = {}
    layers = (layer for disk in graph.disks.values() for layer in disk.layers if layer.local)
    for file in (file for layer in layers for file in layer.parts):
        with suppress(OSError, ValueError):
            status = os.stat(file)
            if stat.S_ISREG(status.st_mode):
                keys.setdefault((status.st_dev, status.st_ino), file)
    found = writers(keys, apart=(pid, os.getpid())) if keys else {}
    return Frozen({keys[key]: str(holder) for key, holder in found.items()})


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
