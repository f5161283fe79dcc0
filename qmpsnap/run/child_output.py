"""What a child process prints: drained into a log and a bounded tail, so that it never blocks on us."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from qmpsnap.run.channel import open_log
from qmpsnap.run.log import get_logger

_log = get_logger("qmpsnap.process")

_TAIL_BYTES: Final = 16 * 1024


class Output:
    """The pipe that a child writes its output to.

    Args:
        log: File that the output is appended to; None: no file.

    Attributes:
        tail: The last 16 KiB.
        writer: The child's end of the pipe, until `close_writer`.
    """

    def __init__(self, log: Path | None) -> None:
        self.tail = bytearray()
        self._file = "" if log is None else os.fspath(log)
        self._log = os.fdopen(open_log(self._file), "ab", buffering=0) if self._file else None
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self.read)

    def close_writer(self) -> None:
        """Close the child's end here, once the child has it."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def read(self) -> None:
        """Read what there is, at most 1 MiB; the rest comes with the next call."""
        for _ in range(16):
            try:
                chunk = os.read(self._reader, 64 * 1024) if self._reader >= 0 else b""
            except BlockingIOError:
                return
            if not chunk:
                self._close_reader()
                return
            self._append(chunk)
            self.tail += chunk
            del self.tail[:-_TAIL_BYTES]

    def close(self) -> None:
        """Read what is left, and close everything."""
        self.close_writer()
        self.read()
        self._close_reader()
        self._close_log()

    def _append(self, chunk: bytes) -> None:
        """Append to the log; after a failure, as on a full disk, the log is closed."""
        if self._log is None:
            return
        try:
            self._log.write(chunk)
        except OSError as error:
            _log.warning("process.log_failed", file=self._file, error=error.strerror)
            self._close_log()

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _close_reader(self) -> None:
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1
