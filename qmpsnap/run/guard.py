"""A process group that ends with our process, even by kill -9.

It is led by a guard, a shell that reads from a pipe whose other end only we hold: when our process ends, the
read ends, and the guard kills the group.

Nothing but that and a SIGKILL ends a guard. A terminal sends Ctrl-C to the whole process group in the
foreground, and a guard is in ours until it has one of its own; systemd, say, sends SIGTERM to each process of
a service. So a guard starts with such signals blocked, and ignores them from its first command on (dash
unblocks all signals when it starts a program).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

_GUARD: Final = 'trap "" INT QUIT TSTP HUP TERM; read -r _; kill -KILL 0'
# After our death: the program may clean up (a FUSE mount outlives a SIGKILL), then its paths are removed.
_CAREFUL_GUARD: Final = _GUARD.replace("kill", 'kill -TERM 0; sleep 1; rm -rf -- "$@"; kill', 1)
_BLOCKED: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGTERM)


@contextmanager
def guarded(remove: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Lead a process group that is killed when our process ends."""
    read_end, write_end = os.pipe()
    try:
        try:
            guard = _start(remove, stdin=read_end)
        finally:
            os.close(read_end)
        try:
            yield guard
        finally:
            guard.kill()
            guard.wait()
    finally:
        os.close(write_end)


def _start(remove: Sequence[str], *, stdin: int) -> subprocess.Popen[bytes]:
    """Start a guard, which inherits the signal mask of this thread."""
    # Two calls: the one that blocks runs a handler that is due, too, and returns nothing if that raises.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        return subprocess.Popen(
            ["/bin/sh", "-c", _CAREFUL_GUARD if remove else _GUARD, "guard", *remove],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a signal that has come meanwhile is handled here


@contextmanager
def removed_at_death(*paths: str) -> Iterator[None]:
    """Have paths of ours removed, with all in them, if our own process dies inside the block.

    Else they are the caller's to remove.
    """
    with guarded(paths):
        yield
