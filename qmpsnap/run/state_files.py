"""Finds VM state files made by qmpsnap, and removes one that belongs to a given operation. Blocking."""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH118, PTH120, PTH208

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable

from qmpsnap.run import cleanup
from qmpsnap.run.cleanup import Created
from qmpsnap.run.disk import sync_directory
from qmpsnap.run.memory_files import look, tags_of
from qmpsnap.run.safe_open import WrongKind, open_file

_TOKEN = 8  # hex digits at the end of an operation's id
_PARTIAL = re.compile(r"\.(memory|vmstate\.qcow2)\.[0-9a-f]{8}\.partial")
_TAG = re.compile(r"qmpsnap-[0-9a-f]{8}")


def find_state_files(places: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """VM state files that operations of ours have created, complete or not; never fails.

    Args:
        places: Directories, each with the stem that their names begin with.
    """
    files = set()
    for directory, stem in places:
        with contextlib.suppress(OSError, ValueError):
            for name in os.listdir(directory):
                file = os.path.join(directory, name)
                if name.startswith(f"{stem}.") and _is_ours(file, name.removeprefix(stem)):
                    files.add(file)
    return tuple(sorted(files))


def _is_ours(file: str, ending: str) -> bool:
    if _PARTIAL.search(ending):
        return True
    if ending.endswith(".memory"):
        return look([file])[file].note is not None
    if not ending.endswith(".vmstate.qcow2"):
        return False
    try:
        descriptor = open_file(file)
    except (OSError, WrongKind):
        return False
    try:
        return any(map(_TAG.fullmatch, tags_of(descriptor)))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def remove_state_file(file: str, id: str, tag: str) -> bool:  # noqa: A002 - as the step says
    """Remove a VM state file if it belongs to that operation; else return False.

    A stream is known by its note, a store by its snapshot's name, an unfinished one by its own name.

    Raises:
        OSError: When it cannot be removed.
    """
    try:
        descriptor = open_file(file)
    except (FileNotFoundError, WrongKind):
        return False
    try:
        status = os.fstat(descriptor)
        if not _belongs(file, descriptor, id, tag):
            return False
        if not cleanup.remove(Created(file, status.st_dev, status.st_ino)):
            return False
    finally:
        os.close(descriptor)
    sync_directory(os.path.dirname(file))
    return True


def _belongs(file: str, descriptor: int, id: str, tag: str) -> bool:  # noqa: A002
    if file.endswith(f".{id[-_TOKEN:]}.partial"):
        return True
    if tag:
        return tag in tags_of(descriptor)
    note = look([file])[file].note
    return note is not None and note.id == id
