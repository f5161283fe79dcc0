"""Notices that nobody reads stdout any more, also while nothing is written to it."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def reader_gone(notify: Callable[[], object]) -> Iterator[None]:
    """Call `notify` when stdout is a pipe whose reader is gone, while the block lasts."""
    descriptor = _pipe()
    if descriptor is None:
        yield
        return
    # A pipe that we write to is never readable: only its end wakes us.
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(descriptor)
        notify()

    loop.add_reader(descriptor, ended)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)


def _pipe() -> int | None:
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError):  # stdout was closed when we were started, or is no file
        return None
    return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None
