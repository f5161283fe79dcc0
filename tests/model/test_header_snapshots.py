from __future__ import annotations

import struct

import pytest

from qmpsnap.model.header import snapshot_table, snapshots_inside
from tests.each import each


def header(*, magic: bytes = b"QFI\xfb", version: int = 3, count: int = 1, offset: int = 4096) -> bytes:
    return magic + struct.pack(">I", version) + bytes(52) + struct.pack(">IQ", count, offset)


def entry(name: bytes, *, extra: int = 16) -> bytes:
    fixed = struct.pack(">QIHHIIQII", 0, 0, 1, len(name), 0, 0, 0, 0, extra)
    found = fixed + bytes(extra) + b"1" + name
    return found + bytes(-len(found) % 8)


def test_snapshot_table_tells_where_the_snapshots_are() -> None:
    assert snapshot_table(header(count=3)) == (4096, 3)


@each("data", [b"", header()[:-1], header(magic=b"KDMV"), header(version=1), header(offset=1 << 63)])
def test_snapshot_table_refuses_what_is_no_qcow2_image(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a qcow2|beyond"):
        snapshot_table(data)


def test_snapshots_inside_reads_each() -> None:
    found = snapshots_inside(entry(b"one") + entry(b"two", extra=24), 2)
    assert [(snapshot.name, size) for snapshot, size in found] == [("one", 0), ("two", 0)]
    assert snapshots_inside(b"", 0) == ()


@each(("table", "count"), [(b"", 1), (entry(b"one")[:30], 1), (entry(b"one")[:57], 1)])
def test_snapshots_inside_refuses_a_table_that_was_cut(table: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="truncated"):
        snapshots_inside(table, count)


def test_snapshots_inside_does_not_know_what_the_image_does_not_record() -> None:
    # Extra data of 16 bytes and more say it; images of old QEMUs have less.
    found = snapshots_inside(entry(b"old", extra=8) + entry(b"new") + entry(b"next", extra=24), 3)
    assert [(snapshot.name, size) for snapshot, size in found] == [("old", None), ("new", 0), ("next", 0)]
