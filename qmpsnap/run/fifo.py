"""Passes on a file of VM state through a FIFO to a QEMU, also while another QEMU still writes it.

The second QEMU so loads the state while it is being saved. The first one does not wait for it, as it would if
both had the ends of one pipe: a guest that runs has to wait whenever its memory cannot be written.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Final

from qmpsnap.errors import InvalidTarget
from qmpsnap.run.ram_file import RamFile
from qmpsnap.run.safe_open import create_fifo, open_fifo, open_file

_LOOK: Final = 0.001  # seconds between two looks: each passes on what was written, and no event tells of that
_PART_BYTES: Final = (
    1 << 20
)  # also of the pipe: what any user may have, unless an administrator says otherwise


class Fifo:
    """A FIFO through which a QEMU gets one file of VM state. Blocking.

    What is in it stays there until QEMU opens it, and QEMU waits for more until all was passed on.

    Attributes:
        path: The FIFO, which QEMU has to open.
        error: Why not all could be passed on; None: nothing has failed so far.
        stopped: Set to let `pass_on` return.
    """

    def __init__(self, path: str) -> None:
        """Create it.

        Raises:
            OSError: When that fails.
        """
        self.path = path
        self.error: OSError | InvalidTarget | None = None
        self.stopped = threading.Event()
        self._passing = threading.Lock()
        with ExitStack() as stack:
            create_fifo(path)
            self._reader = open_fifo(path)
            stack.callback(os.close, self._reader)
            self._writer: int | None = open_fifo(path, write=True)
            stack.pop_all()

    def pass_on(self, file: int, memory: RamFile | None = None) -> None:
        """Return when all was passed on and nobody writes the file any more, or after `stop`.

        Args:
            file: Descriptor of the file, which a QEMU that writes it has locked.
            memory: Gets the guest's memory, which then is not passed on; None: all is passed on.
        """
        with self._passing:
            try:
                if self._writer is not None:
                    self._copy(file, self._writer, memory)
            except (OSError, InvalidTarget) as error:
                self.error = error
            self._end()

    def stop(self) -> None:
        """Let `pass_on` return; QEMU finds the end of what it reads, also if nothing was passed on yet."""
        self.stopped.set()
        if self._passing.acquire(blocking=False):  # else `pass_on` does it
            self._end()
            self._passing.release()

    def close(self) -> None:
        """Drop what nobody has read; no `pass_on` runs any more."""
        self._end()
        os.close(self._reader)

    def _end(self) -> None:
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None

    def _copy(self, file: int, writer: int, memory: RamFile | None) -> None:
        with suppress(OSError):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PART_BYTES)
        pause = _LOOK * min(1.0, fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) / _PART_BYTES)
        if memory is None:
            move = partial(_splice, file, writer)
        else:
            move = partial(self._split, file, writer, memory, pause)
        closed = False
        while not self.stopped.is_set():
            moved = move()
            if not moved:
                if closed:
                    return
                if closed := _is_closed(file):  # then what it has written before is passed on, too
                    continue
            elif moved > _PART_BYTES // 2:  # there is more
                continue
            self.stopped.wait(pause)

    def _split(self, file: int, writer: int, memory: RamFile, pause: float) -> int:
        """Read a part, and pass on what is not of the memory; return how much was read."""
        read = memory.take(file)
        rest = memoryview(b"".join(memory.rest))
        while rest and not self.stopped.is_set():
            try:
                rest = rest[os.write(writer, rest) :]
            except BlockingIOError:  # the FIFO is full
                self.stopped.wait(pause)
        return read


def _splice(file: int, writer: int) -> int:
    """Pass on what the FIFO takes at once; return how much that was, 1 if it is full."""
    try:
        return os.splice(file, writer, _PART_BYTES, flags=os.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        return 1


def _is_closed(file: int) -> bool:
    """Whether QEMU has closed the file: the lock on it goes with its last descriptor."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


@contextmanager
def opened(file: str, *, inode: int = 0) -> Iterator[int]:
    """Open a private file of ours, or the one with that inode, to pass it on.

    Raises:
        OSError: When it cannot be opened, or is another one.
    """
    descriptor = open_file(file)
    try:
        status = os.fstat(descriptor)
        if status.st_ino != inode and (
            status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        ):
            raise OSError(0, "it is not a file of ours")
        yield descriptor
    finally:
        os.close(descriptor)
