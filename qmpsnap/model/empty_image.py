"""The bytes of an empty qcow2 image; the only writer of image headers.

What `qemu-img create` writes by default: version 3, clusters of 64 KiB, refcounts of 16 bits.

    docs/interop/qcow2.txt ("Header", "Header extensions", "Host cluster management", "Cluster mapping")
"""

from __future__ import annotations

import struct

from msgspec import Struct

from qmpsnap.model.header import EXT_MARK, EXT_OWNER

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_HEADER_BYTES = 112  # with the compression type and its padding (qcow2.h: QCowHeader)
_REFCOUNT_ORDER = 4  # refcounts of 16 bits
_REFCOUNTS_A_BLOCK = _CLUSTER * 8 >> _REFCOUNT_ORDER
_L1_ENTRY_COVERS = _CLUSTER * (_CLUSTER // 8)  # bytes: a table of 8-byte entries, a cluster each
_LONGEST_L1 = 32 << 20  # bytes; block/qcow2.h: QCOW_MAX_L1_SIZE
_SECTOR = 512

# Clusters, in their order: header, refcount table, refcount block, L1 table; LUKS header, if any.
_REFCOUNT_TABLE, _REFCOUNT_BLOCK, _L1_TABLE = 1, 2, 3

_EXT_END = 0
_EXT_BACKING_FORMAT = 0xE2792ACA
_EXT_ENCRYPTION = 0x0537BE77
_LUKS = 2  # the method of encryption


class EmptyImage(Struct, frozen=True):
    """An image that holds no data.

    Attributes:
        size_bytes: Length of the file; bytes outside the parts read as zeros.
        parts: What to write once the file has its length, in order, each with its offset in bytes. The
            header comes first, so that a file whose writer was killed is known to have no data.
    """

    size_bytes: int
    parts: tuple[tuple[int, bytes], ...]


def empty_qcow2(
    *,
    virtual_size: int,
    backing: str | None = None,
    backing_format: str | None = None,
    luks: bytes = b"",
    mark: bytes = b"",
    owner: bytes = b"",
) -> EmptyImage:
    """Lay out an empty qcow2 image.

    Args:
        virtual_size: Bytes that the guest sees; rounded up to whole sectors, as QEMU does.
        backing: Name of the backing file, recorded as it is; at most 1023 bytes.
        backing_format: Its format; always given with `backing`.
        luks: LUKS header of another image, with whose secret and key its data are encrypted; b"": not.
        mark: Sixteen bytes that no other image has; b"": none.
        owner: What needs the backing file, in an image that only shows this; b"": nothing.

    Raises:
        ValueError: When no qcow2 image of this cluster size is that large, or a name does not fit.
    """
    size = -(-virtual_size // _SECTOR) * _SECTOR
    l1_entries = -(-size // _L1_ENTRY_COVERS)
    if l1_entries * 8 > _LONGEST_L1:
        raise ValueError(f"a qcow2 image with clusters of {_CLUSTER} bytes cannot have {size} bytes")
    luks_at = _L1_TABLE + -(-l1_entries * 8 // _CLUSTER)
    clusters = luks_at + -(-len(luks) // _CLUSTER)
    place = (luks_at * _CLUSTER, len(luks)) if luks else None
    if clusters > _REFCOUNTS_A_BLOCK:
        raise ValueError("the tables of an empty image do not fit one refcount block")
    return EmptyImage(
        clusters * _CLUSTER,
        (
            (0, _header(size, l1_entries, backing or "", backing_format, place, mark, owner)),
            (_REFCOUNT_TABLE * _CLUSTER, struct.pack(">Q", _REFCOUNT_BLOCK * _CLUSTER)),
            (_REFCOUNT_BLOCK * _CLUSTER, struct.pack(">H", 1) * clusters),
            *(((place[0], luks),) if place else ()),
        ),
    )


def _header(
    size: int,
    l1_entries: int,
    backing: str,
    backing_format: str | None,
    luks: tuple[int, int] | None,
    mark: bytes,
    owner: bytes,
) -> bytes:
    extensions = b""
    if backing_format is not None:
        extensions += _extension(_EXT_BACKING_FORMAT, backing_format.encode("ascii"))
    if luks is not None:
        extensions += _extension(_EXT_ENCRYPTION, struct.pack(">QQ", *luks))
    if mark:
        extensions += _extension(EXT_MARK, mark)
    if owner:
        extensions += _extension(EXT_OWNER, owner)
    extensions += _extension(_EXT_END, b"")
    name = backing.encode("utf-8", "surrogateescape")
    fields = struct.pack(
        ">4sIQIIQIIQQIIQQQQIIQ",
        b"QFI\xfb",
        3,
        _HEADER_BYTES + len(extensions) if name else 0,
        len(name),
        _CLUSTER_BITS,
        size,
        0 if luks is None else _LUKS,
        l1_entries,
        _L1_TABLE * _CLUSTER,
        _REFCOUNT_TABLE * _CLUSTER,
        1,  # cluster of the refcount table
        0,  # no internal snapshots
        0,
        0,  # incompatible, compatible and autoclear features: none
        0,
        0,
        _REFCOUNT_ORDER,
        _HEADER_BYTES,
        0,  # compression by zlib, and padding
    )
    return fields + extensions + name


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
