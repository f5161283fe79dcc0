"""Removes a file of VM state, once it is known whose it is. Blocking."""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH120

from __future__ import annotations

import os

from qmpsnap.run import put_away
from qmpsnap.run.disk import sync_directory
from qmpsnap.run.memory_files import look, tags_of
from qmpsnap.run.opening import WrongKind, open_file
from qmpsnap.run.put_away import Created

__all__ = ["remove_state"]

_TOKEN = 8  # hex digits at the end of an operation's id


def remove_state(file: str, id: str, tag: str) -> bool:  # noqa: A002 - as the step says
    """Remove a file of VM state if it is that operation's; False when there is none, or another one.

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
        if not put_away.remove(Created(file, status.st_dev, status.st_ino)):
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
