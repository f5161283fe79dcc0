"""Disk space that is reserved for a stream of VM state, so that QEMU cannot run out of it. Blocking."""

from __future__ import annotations

from collections.abc import Mapping

from qmpsnap.model.stream_size import stream_bytes
from qmpsnap.run.cleanup import Created
from qmpsnap.run.memory_files import reserve
from qmpsnap.run.occupied_memory import code_bytes, occupied_bytes


class Reservation:
    """The disk space that is reserved for a file of VM state that this process has created.

    Args:
        file: Its path.
        made: The file.

    Attributes:
        size_bytes: For how many bytes from its beginning space is reserved.
    """

    def __init__(self, file: str, made: Created) -> None:
        self._file = file
        self._made = made
        self._code: Mapping[str, int] | None = None
        self.size_bytes = 0

    def extend(self, process: str, at_most_bytes: int) -> None:
        """Reserve what a stream of QEMU's memory as it is needs beyond what is reserved, if anything.

        What takes longer is looked at the first time only, when the guest still runs.

        Args:
            process: The QEMU process; "": its memory cannot be looked at, so reserve the most.
            at_most_bytes: The length that no stream of the machine exceeds.

        Raises:
            OSError: As `reserve` does.
        """
        if self._code is None:
            self._code = code_bytes(process)
        occupied = occupied_bytes(process, self._code)
        size = stream_bytes(occupied, at_most_bytes=at_most_bytes)
        if size > self.size_bytes:
            reserve(self._file, size, self._made, reserved_bytes=self.size_bytes)
            self.size_bytes = size
