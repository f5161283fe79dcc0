from __future__ import annotations

import struct

import pytest

from qmpsnap.model.bitmap_directory import bitmaps_inside
from qmpsnap.model.graph import Bitmap


def entry(name: bytes, flags: int = 2, extra: bytes = b"") -> bytes:
    """An entry of the directory, padded to 8 bytes."""
    fixed = struct.pack(">QIIBBHI", 65536, 1, flags, 1, 16, len(name), len(extra))
    whole = fixed + extra + name
    return whole + bytes(-len(whole) % 8)


def test_names_and_flags_are_read() -> None:
    directory = entry(b"daily") + entry("ü".encode(), flags=1, extra=b"12345") + entry(b"more")
    assert bitmaps_inside(directory, 2) == (
        Bitmap("daily", persistent=True),
        Bitmap("ü", persistent=True, inconsistent=True),
    )
    assert bitmaps_inside(b"", 0) == ()


@pytest.mark.parametrize(
    "directory", [b"", entry(b"daily")[:20], entry(b"daily")[:26], entry(b"\xff"), entry(b"x" * 9)[:-8]]
)
def test_what_is_no_directory_is_refused(directory: bytes) -> None:
    with pytest.raises(ValueError, match=r"truncated|decode"):
        bitmaps_inside(directory, 1)
