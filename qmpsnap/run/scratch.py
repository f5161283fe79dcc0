"""Private directories for files that last as long as a block: overlays, sockets and logs of a QEMU.

All but `in_scratch` is blocking.

Our process holds a lock on the directory. So the next call recognises directories of killed processes, and
removes them.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH106, PTH118, PTH120, PTH208

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Final

import anyio

from qmpsnap.model.names import SCRATCH
from qmpsnap.run.disk import in_thread, made_in_thread
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.safe_open import open_directory, private_directory, remove_tree, temporary_places

_LONGEST: Final = 60  # bytes: a socket in it has a name of 46 more (sun_path of unix(7))


class Scratch:
    """A new directory, mode 0700; `close` removes it, or the next call if our process has died.

    Attributes:
        path: Its path; absolute.
    """

    def __init__(self, parent: str = "", *, sweeps: bool = True) -> None:
        """Create it.

        Args:
            parent: The directory in which it is created; "": that for temporary files, or /tmp if the path
                would be too long for sockets.
            sweeps: Whether the directories of killed processes beside it are removed.

        Raises:
            InvalidTarget: When it cannot be created.
        """
        try:
            self.path, self._lock = _create(parent)
        except (OSError, ValueError) as error:
            raise unusable(parent or "TMPDIR", error, "create a directory in") from error
        if sweeps:
            sweep((os.path.dirname(self.path),))

    def close(self) -> None:
        """Remove it with all that is in it, and unlock it."""
        remove_tree(self.path)
        os.close(self._lock)


@contextlib.contextmanager
def scratch(parent: str = "") -> Iterator[str]:
    """Create a `Scratch` directory for the block, and yield its path."""
    directory = Scratch(parent)
    try:
        yield directory.path
    finally:
        directory.close()


@contextlib.asynccontextmanager
async def in_scratch(parent: str = "", *, sweeps: bool = True) -> AsyncIterator[str]:
    """Create a `Scratch` directory for the block, and yield its path; what blocks is done in threads."""
    directory = await made_in_thread(partial(Scratch, parent, sweeps=sweeps), Scratch.close)
    try:
        yield directory.path
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(directory.close)


def _create(parent: str) -> tuple[str, int]:
    """A new directory and its lock."""
    while True:
        path = private_directory(_LONGEST, prefix=SCRATCH, parent=parent)
        try:
            lock = open_directory(path, follow=False)
        except FileNotFoundError:  # another process removed it before it was locked
            continue
        except OSError:
            os.rmdir(path)
            raise
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return path, lock
        os.close(lock)


def sweep(places: Iterable[str]) -> None:
    """Remove our directories whose processes are gone from these directories; what cannot be removed stays.

    Args:
        places: The directories; "": those in which they are created if no other one is named.
    """
    named = (each for place in places for each in ((place,) if place else temporary_places()))
    for place in dict.fromkeys(named):
        with contextlib.suppress(OSError):
            _sweep(place)


def _sweep(place: str) -> None:
    """Remove our directories whose processes are gone."""
    for name in os.listdir(place):
        if name.startswith(SCRATCH):
            with contextlib.suppress(OSError):
                _remove_abandoned(os.path.join(place, name))


def _remove_abandoned(path: str) -> None:
    lock = open_directory(path, follow=False)
    try:
        status = os.fstat(lock)
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == stat.S_IRWXU:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
    finally:
        os.close(lock)
