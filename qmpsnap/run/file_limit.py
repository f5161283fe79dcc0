"""How many more files this process can open, asked before something begins that needs them.

At its limit a process can neither look at files nor take back what it has begun: files that are there seem to
be missing, and directories of ours stay.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import Final

from qmpsnap.errors import InvalidTarget
from qmpsnap.run.os_errors import hint, reason

# More than each has open at once; what begins later asks for less, so that it is not refused half-way.
OPERATION: Final = 32
PROGRAM: Final = 16
LOOK: Final = 8

_asking = Lock()  # for others it would be the limit


def require_room(count: int) -> None:
    """Refuse unless this process can open so many more files; its other tasks may open some meanwhile.

    Raises:
        InvalidTarget: When it cannot.
    """
    opened: list[int] = []
    with _asking:
        try:
            opened.append(os.eventfd(0))
            while len(opened) < count:
                opened.append(os.dup(opened[0]))
        except OSError as error:
            raise InvalidTarget(
                f"{reason(error)}: {len(opened)} more can be opened, and this needs up to {count}",
                file="",
                hint=hint(error),
            ) from error
        finally:
            for descriptor in opened:
                os.close(descriptor)
