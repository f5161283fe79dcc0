"""Writes a guest's memory from a migration stream into the file that a QEMU maps as its memory. Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.ram_stream import RamStream
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.safe_open import open_file

PART_BYTES: Final = 1 << 20  # at most 255 pages, which are written at once: Linux takes 1024 (IOV_MAX)


class RamFile:
    """The file of a memory that is zero so far; pages that are zero are not written, and take no space.

    A QEMU that loads them reads each first, and a tmpfs allocates a page that is read through a mapping.

    Attributes:
        rest: What `take` has read last and is not of the memory; valid until the next call.
    """

    def __init__(self, file: str, descriptor: int, stream: RamStream) -> None:
        """Use an open file.

        Args:
            file: Its path.
            descriptor: Its descriptor; the caller's to close.
            stream: Splits the stream.
        """
        self.rest: list[memoryview] = []
        self._file = file
        self._descriptor = descriptor
        self._stream = stream
        self._part = memoryview(bytearray(PART_BYTES))
        self._left = self._part[:0]  # what of it has not been used

    def take(self, source: int) -> int:
        """Read a part of the stream, and write the memory that is in it; return how much was read.

        Args:
            source: Descriptor of the stream's file.

        Raises:
            InvalidTarget: When the memory cannot be written, or the stream is not understood.
            OSError: When the stream cannot be read.
        """
        left = len(self._left)
        self._part[:left] = self._left
        read = os.readv(source, [self._part[left:]])
        part = self._part[: left + read]
        try:
            split = self._stream.split(part)
        except ValueError as error:
            raise InvalidTarget(f"the VM state for {self._file!r}: {error}", file=self._file) from error
        try:
            for offset, views in split.pages:
                _write(self._descriptor, views, offset)
        except OSError as error:
            raise unusable(self._file, error, "write") from error
        self.rest = split.rest
        self._left = part[split.used_bytes :]
        return read


@contextmanager
def ram_file(file: str, block: str, size_bytes: int) -> Iterator[RamFile]:
    """Open the file of a memory.

    Args:
        file: The file, which exists; of that size, without any data.
        block: Name of the memory in a stream.
        size_bytes: Its size.

    Raises:
        InvalidTarget: When it cannot be opened.
    """
    try:
        descriptor = open_file(file, write=True)
    except (OSError, ValueError) as error:
        raise unusable(file, error, "write") from error
    try:
        yield RamFile(file, descriptor, RamStream(block, size_bytes))
    finally:
        os.close(descriptor)


def _write(descriptor: int, views: list[memoryview], offset: int) -> None:
    """Write all of them, one after the other."""
    done = os.pwritev(descriptor, views, offset)
    while done < sum(map(len, views)):  # the disk is nearly full, or a signal came
        rest = memoryview(b"".join(views))[done:]
        done += os.pwrite(descriptor, rest, offset + done)
