"""The only reader of image headers: parses the first bytes of an image, and its snapshot table.

Headers are untrusted: a guest may have written one into its raw disk. So every length and
offset is checked against the data, nothing is followed, and any error is a ValueError.

    qcow2   docs/interop/qcow2.txt ("Header", "Header extensions", "Bitmaps extension")
"""

from __future__ import annotations

import json
import posixpath
import struct

from msgspec import Struct

from qmpsnap.model.graph import InternalSnapshot

QCOW_MAGIC = b"QFI\xfb"
MAX_HEADER_BYTES = 2 << 20  # the largest cluster of qcow2; backing name and extensions lie in the first one

_LONGEST_REFCOUNTS = 8 << 20  # bytes; block/qcow2.h: QCOW_MAX_REFTABLE_SIZE
_TABLE_OFFSET = 0x00FF_FFFF_FFFF_FE00  # docs/interop/qcow2.rst: bits 9 to 55 of an entry

_LONGEST_NAME = 1023  # block/qcow2.c: qcow2_do_open refuses longer ones
_LONGEST_FORMAT = 15  # block/qcow2.c: bs->backing_format has 16 bytes

_EXT_END = 0
_EXT_BACKING_FORMAT = 0xE2792ACA
_EXT_DATA_FILE = 0x44415441
_EXT_BITMAPS = 0x23852875
_EXT_ENCRYPTION = 0x0537BE77
_BITMAPS_BYTES = 24
EXT_MARK = 0x514D5053  # "QMPS", ours: QEMU keeps extensions that it does not know
MARK_BYTES = 16
EXT_OWNER = 0x514D504F  # "QMPO", ours: see model/keeper.py

_LUKS = 2  # qcow2's method of encryption; 1 is AES, which QEMU's system emulators do not open
_LUKS_MAGIC = b"LUKS\xba\xbe\x00\x01"  # of version 1, which is all that QEMU knows
_LUKS_PAYLOAD = 104  # where a LUKS header says in which sector the data begin, which ends it
_LONGEST_LUKS = 16 << 20  # bytes; those of QEMU and cryptsetup have 2 MiB

_DATA_FILE = 4  # one of qcow2's incompatible features
_BITMAPS_VALID = 1  # one of its autoclear features

_FILE_DRIVERS = ("file", "host_device", "host_cdrom")


class Header(Struct, frozen=True):
    """The part of an image's header that a planner needs.

    Attributes:
        format: "qcow2".
        virtual_size: Bytes of the disk that the guest sees.
        backing: The backing file's name as recorded, or None.
        backing_format: Its format as recorded, or None: then opening the image would mean probing.
        data_file: Name of the external data file; "" when there is one without a name; None without one.
        snapshot_count: Number of internal snapshots.
        bitmaps: Number of persistent bitmaps that QEMU would load.
        bitmap_directory: Where the directory of these lies: offset and length in bytes; None without any.
        l1_offset: Where qcow2's table of data begins, in bytes.
        l1_entries: How many 8-byte entries that table has.
        luks: Where the LUKS header lies in the file: offset and length in bytes; None when there is none.
        encryption: qcow2's method of encryption; 0: its data are not encrypted.
        incompatible: Bits of qcow2's incompatible features.
        cluster_bits: Logarithm of qcow2's cluster size.
        mark: What tells an overlay of ours from every other image, whatever it is called, in hex digits; ""
            in an image that we have not created.
        owner: What needs the backing file, in an image that only shows this; else b"".
    """

    format: str
    virtual_size: int
    backing: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    snapshot_count: int = 0
    bitmaps: int = 0
    bitmap_directory: tuple[int, int] | None = None
    l1_offset: int = 0
    l1_entries: int = 0
    luks: tuple[int, int] | None = None
    encryption: int = 0
    incompatible: int = 0
    cluster_bits: int = 16
    mark: str = ""
    owner: bytes = b""


def parse_header(data: bytes) -> Header | None:
    """Read an image's header from the first bytes of its file.

    Args:
        data: The beginning of the file; `MAX_HEADER_BYTES` always suffice, 4096 nearly always.

    Returns:
        The header; None without a known magic (raw, or a format that we do not read).

    Raises:
        ValueError: When there is a magic, but the rest is invalid or truncated.
    """
    if data[:4] != QCOW_MAGIC:
        return None
    version = _unpack(data, ">I", 4)[0]
    if version not in {2, 3}:
        raise ValueError(f"qcow2 of unknown version {version}")
    offset, length, cluster_bits, size, encryption, l1_entries, l1_offset = _unpack(data, ">QIIQIIQ", 8)
    (snapshots,) = _unpack(data, ">I", 60)
    if not 9 <= cluster_bits <= 21:
        raise ValueError(f"cluster bits {cluster_bits} are not within 9 and 21")
    cluster = 1 << cluster_bits
    incompatible, autoclear, header_length = 0, 0, 72
    if version == 3:
        incompatible, _, autoclear, _, header_length = _unpack(data, ">QQQII", 72)
        if header_length < 104 or header_length > cluster:
            raise ValueError(
                f"header length {header_length} is not within 104 and the cluster's {cluster} bytes"
            )
    backing = _name(data, offset, length, cluster)
    extensions = _extensions(data, header_length, offset or cluster)
    data_file = extensions.get(_EXT_DATA_FILE, b"") if incompatible & _DATA_FILE else None
    backing_format = extensions.get(_EXT_BACKING_FORMAT)
    if backing_format is not None and len(backing_format) > _LONGEST_FORMAT:
        raise ValueError(
            f"backing format of {len(backing_format)} bytes, at most {_LONGEST_FORMAT} are allowed"
        )
    bitmaps = extensions.get(_EXT_BITMAPS)
    count, directory = _bitmaps(bitmaps) if bitmaps is not None and autoclear & _BITMAPS_VALID else (0, None)
    mark = extensions.get(EXT_MARK, b"")
    return Header(
        format="qcow2",
        virtual_size=size,
        backing=backing,
        backing_format=_text(backing_format) or None if backing_format is not None else None,
        data_file=_text(data_file) if data_file is not None else None,
        snapshot_count=snapshots,
        bitmaps=count,
        bitmap_directory=directory,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        luks=_luks(extensions.get(_EXT_ENCRYPTION)) if encryption == _LUKS else None,
        mark=mark.hex() if len(mark) == MARK_BYTES else "",
        owner=extensions.get(EXT_OWNER, b""),
        encryption=encryption,
        incompatible=incompatible,
        cluster_bits=cluster_bits,
    )


def luks_place(data: bytes) -> tuple[int, int] | None:
    """Where the LUKS header of a file that begins with it lies: offset and length in bytes, or None."""
    if data[: len(_LUKS_MAGIC)] != _LUKS_MAGIC:
        return None
    length = _unpack(data, ">I", _LUKS_PAYLOAD)[0] * 512
    return (0, length) if 0 < length <= _LONGEST_LUKS else None


def _bitmaps(extension: bytes) -> tuple[int, tuple[int, int] | None]:
    """The number of bitmaps, and where their directory lies."""
    (count,) = _unpack(extension, ">I", 0)
    if not count or len(extension) < _BITMAPS_BYTES:
        return count, None
    length, offset = _unpack(extension, ">QQ", 8)
    return count, (offset, length) if offset < 1 << 63 and length < 1 << 63 else None


def _luks(pointer: bytes | None) -> tuple[int, int] | None:
    if pointer is None:
        return None
    offset, length = _unpack(pointer, ">QQ", 0)
    return (offset, length) if offset < 1 << 63 and 0 < length <= _LONGEST_LUKS else None


def _extensions(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """Read the header extensions from `start` up to `end` (excluded); the last one of a type counts."""
    found: dict[int, bytes] = {}
    at = start
    while at < end:
        kind, length = _unpack(data, ">II", at)
        at += 8
        if kind == _EXT_END:
            break
        if length > end - at:
            raise ValueError(f"header extension {kind:#x} of {length} bytes extends beyond the header")
        if at + length > len(data):
            raise ValueError(f"truncated in header extension {kind:#x}")
        found[kind] = data[at : at + length]
        at += (length + 7) & ~7
    return found


def _name(data: bytes, offset: int, length: int, end: int) -> str | None:
    """Read a backing file's name, which lies before `end`; None when none is written."""
    if offset == 0 or length == 0:
        return None
    if length > _LONGEST_NAME:
        raise ValueError(f"backing file name of {length} bytes, at most {_LONGEST_NAME} are allowed")
    if offset + length > end:
        raise ValueError(f"backing file name at {offset} extends beyond the header")
    if offset + length > len(data):
        raise ValueError("truncated in the backing file's name")
    return _text(data[offset : offset + length]) or None


def _text(raw: bytes) -> str:
    """Decode a name as the file system does; to QEMU it ends at the first NUL, as a C string."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _unpack(data: bytes, layout: str, offset: int) -> tuple[int, ...]:
    if len(data) < offset + struct.calcsize(layout):
        raise ValueError(f"truncated at byte {len(data)}")
    return struct.unpack_from(layout, data, offset)


def backing_path(recorded: str, *, of: str) -> str | None:
    """Resolve a recorded backing file name as QEMU does.

    A plain relative name is relative to the overlay's directory (block.c: path_combine). One within
    "file:" or "json:" is relative to the directory of the process that opens it, which is
    recorded nowhere; the overlay's directory is the best guess for that too.

    Args:
        recorded: The name as the header has it.
        of: Absolute path of the overlay.

    Returns:
        An absolute path, not normalized, because only the file system can resolve ".." behind a symlink; None
        when it is not a local file (nbd:, rbd:, http:, a json: without a file).
    """
    name = _json_file(recorded) if recorded.startswith("json:") else _plain_file(recorded)
    if not name or "\0" in name:
        return None
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a json: name can spell what no file system holds
        return None
    return posixpath.join(posixpath.dirname(of), name)


def is_plain_name(name: str) -> bool:
    """Whether a recorded name is that of a file, in the overlay's directory if it is relative."""
    return _protocol(name) is None or name.startswith("file:/")


def _plain_file(name: str) -> str | None:
    protocol = _protocol(name)
    if protocol is None:
        return name
    return name[len(protocol) + 1 :] if protocol in _FILE_DRIVERS else None


def _protocol(name: str) -> str | None:
    """Return what precedes a colon that comes before any slash (block.c: path_has_protocol)."""
    head, colon, _ = name.partition(":")
    return head if colon and "/" not in head else None


def _json_file(name: str) -> str | None:
    """Find the file at the bottom of a json: name, whose options nest by objects or by dots."""
    try:
        options = json.loads(name.removeprefix("json:"))
    except (ValueError, RecursionError):
        return None
    flat: dict[str, object] = {}
    pending: list[tuple[str, object]] = [("", options)]
    while pending:
        prefix, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{prefix}.{key}" if prefix else key, inner) for key, inner in value.items()]
        else:
            flat[prefix] = value
    prefix = ""
    while any(key.startswith(prefix) for key in flat):
        filename = flat.get(prefix + "filename")
        if isinstance(filename, str):
            if flat.get(prefix + "driver") in _FILE_DRIVERS:
                return filename
            return _plain_file(filename)
        prefix += "file."
    return None


HEADER_BYTES = 72
MAX_TABLE_BYTES = 1 << 20  # our stores have one entry, of some hundred bytes
_TABLE = struct.Struct(">IQ")  # count and offset, at byte 60
_EXTRA = struct.Struct(">QQ")  # bytes of VM state, and of the disk
_ENTRY = struct.Struct(">QIHHIIQII")  # table, its size, length of id and name, date (2), clock, state, extra


def snapshot_table(header: bytes) -> tuple[int, int]:
    """Offset of the snapshot table, and the number of entries.

    Raises:
        ValueError: When it is not a qcow2 image.
    """
    if (
        len(header) < HEADER_BYTES
        or header[:4] != QCOW_MAGIC
        or header[4:8] not in {b"\0\0\0\2", b"\0\0\0\3"}
    ):
        raise ValueError("not a qcow2 image")
    count, offset = _TABLE.unpack_from(header, 60)
    if offset >= 1 << 63:
        raise ValueError("its snapshot table lies beyond the end of any file")
    return int(offset), int(count)


def refcount_table(header: bytes) -> tuple[int, int]:
    """Offset of the refcount table, and its size in bytes.

    Args:
        header: The first bytes of a qcow2 image, whose header was read.

    Raises:
        ValueError: When no file has such a table.
    """
    offset, clusters = _unpack(header, ">QI", 48)
    length = clusters << _unpack(header, ">I", 20)[0]
    if offset >= 1 << 63 or length > _LONGEST_REFCOUNTS:
        raise ValueError(f"a refcount table of {length} bytes at {offset}")
    return offset, length


def lost_table(header: Header, size: int, *, refcounts: bytes, refcounts_bytes: int, l1: bytes) -> str:
    """The table that lies beyond the end of an image's file, because the file is truncated; "" if none does.

    Whether the file has all of the data can be read only in the L2 tables, which can be large.

    Args:
        header: The image's header.
        size: Bytes of its file.
        refcounts: The refcount table, as far as the file has it.
        refcounts_bytes: Bytes that it has to have.
        l1: The L1 table, as far as the file has it.
    """
    if len(refcounts) < refcounts_bytes:
        return "refcount table"
    if len(l1) < 8 * header.l1_entries:
        return "L1 table"
    for what, table in (("refcount block", refcounts), ("L2 table", l1)):
        if any(entry & _TABLE_OFFSET >= size for (entry,) in struct.iter_unpack(">Q", table)):
            return what
    return ""


def snapshots_inside(table: bytes, count: int) -> tuple[tuple[InternalSnapshot, int | None], ...]:
    """The first `count` snapshots, each with the disk's size in bytes then; None: not recorded.

    Raises:
        ValueError: When the table is truncated, or a name is not text.
    """
    found = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(table):
            raise ValueError("the snapshot table is truncated")
        _, _, id_length, name_length, seconds, nanoseconds, _, state, extra = _ENTRY.unpack_from(table, at)
        start = at + _ENTRY.size + extra
        end = start + id_length + name_length
        if end > len(table):
            raise ValueError("the snapshot table is truncated")
        large, size = _EXTRA.unpack_from(table, at + _ENTRY.size) if extra >= _EXTRA.size else (0, None)
        number = table[start : start + id_length].decode("utf-8")
        name = table[start + id_length : end].decode("utf-8")
        date = seconds + nanoseconds / 1e9
        found.append((InternalSnapshot(number, name, vm_state_size=large or state, date=date), size))
        at = (end + 7) & ~7
    return tuple(found)
