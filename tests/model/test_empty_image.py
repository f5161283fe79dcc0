"""Every byte of an empty image; that QEMU takes it for one is seen in integration/test_images.py."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.model.empty_image import EmptyImage, empty_qcow2
from qmpsnap.model.header import Header, parse_header
from tests.each import each

HEADER = bytes.fromhex(
    "514649fb 00000003"  # magic, version
    "0000000000000088 00000005"  # the backing file's name: at 136, 5 bytes
    "00000010 0000000040000000 00000000"  # cluster bits, 1 GiB, not encrypted
    "00000002 0000000000030000"  # two entries in the L1 table at cluster 3
    "0000000000010000 00000001"  # refcount table: cluster 1, one cluster
    "00000000 0000000000000000"  # no internal snapshots
    "0000000000000000 0000000000000000 0000000000000000"  # no features
    "00000004 00000070 0000000000000000"  # refcounts of 16 bits, 112 bytes of header, zlib
    "e2792aca 00000003 7261770000000000"  # the backing file's format: raw
    "00000000 00000000"  # no more extensions
    "2f62617365"  # /base
)


def test_empty_image_of_a_gibibyte_to_the_byte():
    assert empty_qcow2(virtual_size=1 << 30, backing="/base", backing_format="raw") == EmptyImage(
        4 * 65536,
        (
            (0, HEADER),
            (65536, bytes.fromhex("0000000000020000")),
            (131072, bytes.fromhex("0001000100010001")),
        ),
    )


def test_empty_image_with_a_luks_header_has_that_behind_its_tables():
    luks = bytes(range(256)) * 300  # two clusters
    empty = empty_qcow2(virtual_size=1 << 20, luks=luks)
    assert (empty.size_bytes, empty.parts[-1]) == (6 * 65536, (4 * 65536, luks))
    assert empty.parts[2] == (131072, struct.pack(">H", 1) * 6)
    header = parse_header(empty.parts[0][1].ljust(4096, b"\0"))
    assert header == Header(
        "qcow2", 1 << 20, l1_offset=3 * 65536, l1_entries=1, luks=(4 * 65536, len(luks)), encryption=2
    )


@each(
    ("size", "rounded", "entries", "clusters"),
    [
        (0, 0, 0, 3),
        (1, 512, 1, 4),
        (512 << 20, 512 << 20, 1, 4),
        ((512 << 20) + 1, (512 << 20) + 512, 2, 4),
        (4 << 40, 4 << 40, 8192, 4),
        ((4 << 40) + 512, (4 << 40) + 512, 8193, 5),
        (2 << 50, 2 << 50, 4 << 20, 3 + 512),
    ],
)
def test_empty_image_has_a_table_for_its_size(size, rounded, entries, clusters):
    empty = empty_qcow2(virtual_size=size)
    header = parse_header(empty.parts[0][1].ljust(4096, b"\0"))
    assert header is not None
    assert (header.virtual_size, header.l1_entries) == (rounded, entries)
    assert empty.size_bytes == clusters * 65536
    assert empty.parts[2] == (131072, struct.pack(">H", 1) * clusters)


def test_empty_image_is_refused_beyond_the_largest_table():
    with pytest.raises(ValueError, match="cannot have"):
        empty_qcow2(virtual_size=(2 << 50) + 1)


@given(
    size=st.integers(0, 2 << 50),
    backing=st.none() | st.text(min_size=1, max_size=200).filter(lambda name: "\0" not in name),
    form=st.sampled_from(["raw", "qcow2", "vmdk"]),
)
def test_empty_image_says_what_was_asked(size, backing, form):
    form = form if backing else None
    empty = empty_qcow2(virtual_size=size, backing=backing, backing_format=form)
    found = parse_header(empty.parts[0][1])
    assert found == Header(
        format="qcow2",
        virtual_size=(size + 511) // 512 * 512,
        backing=backing,
        backing_format=form,
        l1_offset=3 * 65536,
        l1_entries=(size + (1 << 29) - 1) >> 29,
    )


def test_empty_image_has_a_mark_that_is_read_again() -> None:
    mark = bytes(range(16))
    ((_, header), *_) = empty_qcow2(virtual_size=1 << 20, mark=mark).parts
    found = parse_header(header)
    assert found is not None
    assert found.mark == "000102030405060708090a0b0c0d0e0f"


def test_header_has_no_mark_where_that_is_of_another_length() -> None:
    ((_, header), *_) = empty_qcow2(virtual_size=1 << 20, mark=b"short").parts
    found = parse_header(header)
    assert found is not None
    assert found.mark == ""
