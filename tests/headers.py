"""Hand-made image headers, for tests without qemu-img; they contain nothing but a header."""

from __future__ import annotations

import struct


def qcow2_bytes(  # as many as the header has fields
    *,
    backing: str | None = None,
    backing_format: str | None = None,
    data_file: str | None = None,
    version: int = 3,
    virtual_size: int = 1 << 30,
    cluster_bits: int = 16,
    snapshots: int = 0,
    bitmaps: int = 0,
    pad: int = 0,
) -> bytes:
    """Return the first bytes of a qcow2 file, up to the end of its backing file's name.

    Args:
        backing: Name of the backing file as it is to be recorded.
        backing_format: Recorded in an extension; None records none.
        data_file: Name of an external data file.
        version: 2 or 3; 2 has no flags.
        virtual_size: In bytes.
        cluster_bits: Logarithm of the cluster size.
        snapshots: Count of internal snapshots that is claimed.
        bitmaps: Count of persistent bitmaps that is claimed.
        pad: Bytes of an unknown extension before the others.
    """
    extensions = _extension(0x0BADF00D, bytes(pad)) if pad else b""
    if backing_format is not None:
        extensions += _extension(0xE2792ACA, backing_format.encode())
    if data_file is not None:
        extensions += _extension(0x44415441, data_file.encode())
    if bitmaps:
        extensions += _extension(0x23852875, struct.pack(">IIQQ", bitmaps, 0, 64, 1 << 16))
    extensions += _extension(0, b"")
    name = (backing or "").encode("utf-8", "surrogateescape")
    length = 104 if version == 3 else 72
    offset = length + len(extensions) if name else 0
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", version, offset, len(name), cluster_bits, virtual_size)
    head += struct.pack(
        ">IIQQIIQ",
        0,
        -(-virtual_size >> (2 * cluster_bits - 3)),
        3 << cluster_bits,
        1 << cluster_bits,
        1,
        snapshots,
        0,
    )
    if version == 3:
        incompatible = (data_file is not None) << 2
        head += struct.pack(">QQQII", incompatible, 0, bool(bitmaps), 4, length)
    return head + extensions + name


def with_tables(header: bytes) -> bytes:
    """A file of that header whose tables are empty, up to their end."""
    return header.ljust((3 << 16) + 512, b"\0")


def patched(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    """The data with these values packed at that offset."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
