"""Reads the directory of the persistent bitmaps in a qcow2 image (docs/interop/qcow2.txt).

As untrusted as a header: every length is checked against the data, and any error is a ValueError.
"""

from __future__ import annotations

import struct

from qmpsnap.model.graph import Bitmap

MAX_DIRECTORY_BYTES = 64 << 20
"""block/qcow2-bitmap.c: BME_MAX_BITMAPS entries, each with at most 1023 bytes of name."""

_ENTRY = struct.Struct(">QIIBBHI")  # table, its size, flags, type, granularity, length of name, extra data
_IN_USE = 1


def bitmaps_inside(directory: bytes, count: int) -> tuple[Bitmap, ...]:
    """The first `count` bitmaps; one that is marked as in use is inconsistent unless a process has it open.

    Raises:
        ValueError: When the directory is truncated, or a name is not text.
    """
    found, at = [], 0
    for _ in range(count):
        if at + _ENTRY.size > len(directory):
            raise ValueError("the directory of bitmaps is truncated")
        _, _, flags, _, _, length, extra = _ENTRY.unpack_from(directory, at)
        start = at + _ENTRY.size + extra
        if start + length > len(directory):
            raise ValueError("the directory of bitmaps is truncated")
        name = directory[start : start + length].decode("utf-8")
        found.append(Bitmap(name, persistent=True, inconsistent=bool(flags & _IN_USE)))
        at = (start + length + 7) & ~7
    return tuple(found)
