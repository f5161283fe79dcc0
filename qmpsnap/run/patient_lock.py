"""Locks a file or a directory (flock), for which others are waited for a limited time. Blocking.

Whoever may read it may hold a lock on it, if only for an instant to see whether there is one. So it is waited
for, and never without a limit.
"""

from __future__ import annotations

import fcntl
import time
from typing import Final

_AGAIN: Final = 0.01  # seconds; no event tells when a lock is released


def lock(descriptor: int, seconds: float) -> None:
    """Lock it for us alone, until the descriptor is closed.

    Args:
        descriptor: The open file or directory.
        seconds: How long others may hold it meanwhile.

    Raises:
        BlockingIOError: When another descriptor holds a lock on it for longer.
        OSError: When there are no such locks.
    """
    ends = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                raise
            time.sleep(_AGAIN)
        else:
            return
