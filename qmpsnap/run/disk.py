"""Blocking work on the disk: run in a thread, to its end, and safe against power loss.

Nothing here ever replaces a file.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio

from qmpsnap.run.safe_open import create_file, open_directory

T = TypeVar("T")


class Stopped(Exception):
    """Ends work in a thread whose caller was cancelled."""


async def in_thread(work: Callable[[], T], *, stop: threading.Event | None = None) -> T:
    """Run blocking work in a thread, and return only when it has ended.

    A cancelled call also waits for the end, whether anyio or asyncio cancelled it:
    the work is then done, but its result is lost.

    Args:
        work: The work.
        stop: Set when the call is cancelled, for work that looks at it.
    """
    # anyio.to_thread takes twice as long, and a snapshot works in six threads one after the other.
    running = asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        # Without the scope, anyio would deliver its cancellation again in every turn of the loop.
        with anyio.CancelScope(shield=True):
            while not running.done():
                try:
                    await asyncio.wait([running])
                except asyncio.CancelledError:
                    continue
        raise


async def in_long_thread(work: Callable[[threading.Event], T]) -> T:
    """The same for work that may take minutes: once its event is set, it cleans up, and raises `Stopped`."""
    stop = threading.Event()
    return await in_thread(partial(work, stop), stop=stop)


async def made_in_thread(make: Callable[[], T], drop: Callable[[T], None]) -> T:
    """Make something by blocking work in a thread; a cancelled call drops it again, also by blocking work."""
    made: list[T] = []
    try:
        await in_thread(lambda: made.append(make()))
    except BaseException:
        for one in made:
            drop(one)
        raise
    return made[0]


def sync_directory(directory: str | int) -> None:
    """Sync a directory, given by path or descriptor, so that its names survive a power loss."""
    descriptor = open_directory(directory) if isinstance(directory, str) else directory
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a directory
            raise
    finally:
        if isinstance(directory, str):
            os.close(descriptor)


def rename_exclusively(source: str, target: str, *, directory: int | None = None) -> None:
    """Rename a file; a target that exists is never replaced.

    Uses a hard link, because rename() replaces the target. Where the file system has no hard links, or
    forbids them for files of others, an empty target is created exclusively and renamed over.

    Args:
        source: The file; a symlink is renamed itself.
        target: Its new name, in the same file system.
        directory: Descriptor from which relative names count.

    Raises:
        FileExistsError: When there is a target; nothing was done.
        OSError: When it cannot be done; nothing was done.
    """
    try:
        os.link(source, target, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise
    else:
        os.unlink(source, dir_fd=directory)
        return
    os.close(create_file(target, directory=directory))
    try:
        os.rename(source, target, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        os.unlink(target, dir_fd=directory)
        raise
