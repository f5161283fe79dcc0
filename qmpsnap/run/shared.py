"""Whether a process of this machine has files open that we see: by its descriptors, not by names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["holds", "identity", "working_directory"]


def holds(pid: int, files: Iterable[str]) -> bool:
    """Whether each of the files, as we see it, is open in the process; blocking.

    False also when we may not look at the process.

    Args:
        pid: The process.
        files: Absolute paths.
    """
    wanted: set[tuple[int, int]] = set()
    for file in files:
        try:
            status = os.stat(file)  # noqa: PTH116 - QEMU's spelling
        except (OSError, ValueError):
            return False
        wanted.add((status.st_dev, status.st_ino))
    directory = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208 - numbers, not paths
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            status = os.stat(f"{directory}/{descriptor}")  # noqa: PTH116
        except OSError:  # closed meanwhile
            continue
        wanted.discard((status.st_dev, status.st_ino))
        if not wanted:
            return True
    return False


def identity(pid: int | None) -> str:
    """What no other process has, not even one that gets the same number later; "" when it is not known."""
    if pid is None:
        return ""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            started = file.read().rpartition(")")[2].split()[19]  # clock ticks since the host's start
    except (OSError, IndexError):
        return ""
    return f"{pid}.{started}"


def working_directory(pid: int | None) -> str:
    """The process's working directory, or "" when we may not know."""
    if pid is None:
        return ""
    try:
        return os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115
    except OSError:
        return ""
