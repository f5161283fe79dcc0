"""Says who has a file open that is in the way, which neither QEMU's message nor the system's error does."""

# Paths stay as QEMU spells them:
# ruff: noqa: PTH116

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from qmpsnap.model.hints import hint_for, is_lock_refused
from qmpsnap.run.descriptors import image_files
from qmpsnap.run.disk import in_thread
from qmpsnap.run.holders import FileId, Holder, users

_MOST = 3  # processes, and files of each, that are named; a base image may be shared by many machines


async def refusal_hint(description: str, arguments: Mapping[str, object], *, pid: int | None) -> str:
    """What to do about an error message of QEMU's, or ""; for a lock it names the processes that may hold it.

    Args:
        description: QEMU's message. With a lock it names no file (block/file-posix.c: raw_check_perm).
        arguments: Arguments of the command that was refused.
        pid: QEMU's process; None: it is not known, or runs on another host.
    """
    general = hint_for(description)
    if pid is None or not is_lock_refused(description):
        return general
    named = await in_thread(partial(lock_holders, tuple(_file_names(arguments)), pid))
    return f"{named}; repeat the command when that has ended" if named else general


def lock_holders(files: tuple[str, ...], pid: int | None) -> str:
    """Say which process has which of the files open, or "" if we see none.

    Args:
        files: Absolute paths; if none of them leads to a file, all images that the process has open count.
        pid: The process that did not get the lock; None: none of those that we see.
    """
    wanted = {key: file for file in files if (key := _key(file)) is not None}
    if not wanted and pid is not None:
        wanted = image_files(pid) or {}
    found = users(wanted, apart=(pid, os.getpid()))
    opened: dict[Holder, list[str]] = {}
    for key, holder in found.items():
        opened.setdefault(holder, []).append(wanted[key])
    return _some([f"{holder} has {_some(names)} open" for holder, names in opened.items()])


def _some(words: Sequence[str]) -> str:
    more = f", and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return ", ".join(words[:_MOST]) + more


def user_of(file: str) -> Holder:
    """The first other process that we see with the file open; without a process id if we see none.

    Args:
        file: Its path, or that of a directory.
    """
    key = _key(file)
    found = users((key,), apart=(os.getpid(),)) if key is not None else {}
    return next(iter(found.values()), Holder())


def _key(file: str) -> FileId | None:
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _file_names(value: object) -> Iterator[str]:
    """Every absolute `filename` in a command's arguments."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "filename" and isinstance(inner, str) and inner.startswith("/"):
                yield inner
            else:
                yield from _file_names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _file_names(inner)
