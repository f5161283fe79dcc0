"""Shows other qmpsnap clients that a moment is being read, by a lock that ends with its process. Blocking.

The lock is a shared lock on one byte of the newest layer that is read, beyond the bytes that QEMU locks (100
to 299). It is needed because QEMU's image locks do not prevent the deletion of a snapshot inside an image.
Another byte, that of the moment "", is locked in each layer that is read and that no guest writes to: a
planner refuses to write into it, as QEMU would. QEMU itself does not know these locks.

In the same way a fork marks the checkpoint that it has taken for itself, in all layers, as long as it lasts.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable

from qmpsnap.run.holders import Holder, locker
from qmpsnap.run.safe_open import open_file

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of fcntl.h, where off_t has 64 bits
_FROM = 1 << 20


def hold(file: str, moment: str) -> int | None:
    """Mark the moment as being read, until the returned descriptor is closed.

    Returns:
        The descriptor; None if the file system has no locks, or the file is a device.

    Raises:
        OSError: When the file cannot be opened.
    """
    if not os.path.isfile(file):  # noqa: PTH113 - paths stay as QEMU spells them
        return None
    descriptor = open_file(file, follow=True)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, moment))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def held(file: str, moment: str) -> bool:
    """Whether a qmpsnap client has marked the moment as being read."""
    try:
        descriptor = open_file(file, follow=True)
    except (OSError, ValueError):
        return False
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, moment))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def reader(file: str, moment: str) -> Holder:
    """The process that has marked the moment as being read; without an id if we do not see it."""
    try:
        status = os.stat(file)  # noqa: PTH116
    except (OSError, ValueError):
        return Holder()
    return locker((status.st_dev, status.st_ino), _place(moment))


class Locks:
    """Marks one moment in several files as being read; `close` ends that.

    Attributes:
        moment: The moment's name.
    """

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self._held: dict[str, int] = {}

    def hold(self, files: Iterable[str]) -> None:
        """Mark it in these files, too.

        Raises:
            OSError: When one cannot be opened.
        """
        for file in files:
            if file not in self._held and (descriptor := hold(file, self.moment)) is not None:
                self._held[file] = descriptor

    def __bool__(self) -> bool:
        """Whether it is marked in any file."""
        return bool(self._held)

    def close(self) -> None:
        """Remove the marks."""
        while self._held:
            os.close(self._held.popitem()[1])


def _flock(kind: int, moment: str) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, _place(moment), 1, 0)


def _place(moment: str) -> int:
    """The byte that is locked."""
    return _FROM + zlib.crc32(moment.encode(errors="surrogateescape"))
