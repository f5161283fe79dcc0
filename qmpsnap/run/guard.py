"""A process group that ends with our process, even by kill -9.

It is led by a guard, a shell that reads from a pipe whose other end only we hold: when our process ends, the
read ends, and the guard kills the group.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

_GUARD: Final = "read -r _; kill -KILL 0"
# After our death: the program may clean up (a FUSE mount outlives a SIGKILL), then its paths are removed.
_CAREFUL_GUARD: Final = 'read -r _; trap "" TERM; kill -TERM 0; sleep 1; rm -rf -- "$@"; kill -KILL 0'


@contextmanager
def guarded(remove: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Lead a process group that is killed when our process ends."""
    read_end, write_end = os.pipe()
    try:
        try:
            guard = subprocess.Popen(
                ["/bin/sh", "-c", _CAREFUL_GUARD if remove else _GUARD, "guard", *remove],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        finally:
            os.close(read_end)
        try:
            yield guard
        finally:
            guard.kill()
            guard.wait()
    finally:
        os.close(write_end)


@contextmanager
def removed_at_death(*paths: str) -> Iterator[None]:
    """Have paths of ours removed, with all in them, if our own process dies inside the block.

    Else they are the caller's to remove.
    """
    with guarded(paths):
        yield
