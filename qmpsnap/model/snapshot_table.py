"""Parses the snapshot table of a qcow2 image: names, and the disk's size at each snapshot.

It is as untrusted as a header: every length is checked against the data.

    docs/interop/qcow2.txt ("Header", "Snapshots")
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HEADER_BYTES", "MAX_TABLE_BYTES", "snapshot_names", "snapshot_sizes", "snapshot_table"]

HEADER_BYTES = 72
MAX_TABLE_BYTES = 1 << 20  # our stores have one entry, of some hundred bytes
_MAGIC = b"QFI\xfb"
_TABLE = struct.Struct(">IQ")  # count and offset, at byte 60
_EXTRA = struct.Struct(">QQ")  # bytes of VM state, and of the disk
_ENTRY = struct.Struct(">QIHHIIQII")  # table, its size, length of id and name, date (2), clock, state, extra


def snapshot_table(header: bytes) -> tuple[int, int]:
    """Offset of the snapshot table, and the number of entries.

    Raises:
        ValueError: When it is not a qcow2 image.
    """
    if len(header) < HEADER_BYTES or header[:4] != _MAGIC or header[4:8] not in {b"\0\0\0\2", b"\0\0\0\3"}:
        raise ValueError("not a qcow2 image")
    count, offset = _TABLE.unpack_from(header, 60)
    if offset >= 1 << 63:
        raise ValueError("its snapshot table lies beyond the end of any file")
    return int(offset), int(count)


def snapshot_names(table: bytes, count: int) -> tuple[str, ...]:
    """Names of the first `count` snapshots.

    Raises:
        ValueError: When the table is truncated, or a name is not text.
    """
    return tuple(name for name, _ in _entries(table, count))


def snapshot_sizes(table: bytes, count: int) -> dict[str, int]:
    """Disk sizes in bytes at the first `count` snapshots, by name; those not recorded are left out.

    Raises:
        ValueError: When the table is truncated, or a name is not text.
    """
    return {name: size for name, size in _entries(table, count) if size is not None}


def _entries(table: bytes, count: int) -> Iterator[tuple[str, int | None]]:
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(table):
            raise ValueError("the snapshot table is truncated")
        _, _, id_length, name_length, *_, extra = _ENTRY.unpack_from(table, at)
        start = at + _ENTRY.size + extra + id_length
        end = start + name_length
        if end > len(table):
            raise ValueError("the snapshot table is truncated")
        size = int(_EXTRA.unpack_from(table, at + _ENTRY.size)[1]) if extra >= _EXTRA.size else None
        yield table[start:end].decode("utf-8"), size
        at = (end + 7) & ~7
