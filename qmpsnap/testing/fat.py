"""Builds a small FAT file system with a few files, as bytes. Pure: it needs no tool and no root.

It is a FAT12 file system of 1.44 MB, as on a floppy disk, with long names (VFAT), which every firmware and
kernel can mount. The same files give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from qmpsnap.model.arguments import refuse

__all__ = ["build_fat"]

_SECTOR: Final = 512
_SECTORS: Final = 2880
_FAT_SECTORS: Final = 9
_ROOT_ENTRIES: Final = 224
_FIRST_DATA: Final = 1 + 2 * _FAT_SECTORS + _ROOT_ENTRIES * 32 // _SECTOR
_CLUSTERS: Final = _SECTORS - _FIRST_DATA
_END: Final = 0xFFF
_DATE: Final = (2000 - 1980) << 9 | 1 << 5 | 1  # 1 January 2000
_NAME_PART: Final = 13


def build_fat(files: Mapping[str, bytes], *, label: str) -> bytes:
    """Return a file system that holds these files.

    Args:
        files: Their contents, by name; a name is ASCII, without "/".
        label: The volume's label, at most 11 characters.

    Raises:
        BadArgument: When a name or the label cannot be used, or the files need more than 1.4 MB.
    """
    if not label.isascii() or not 0 < len(label) <= 11:
        refuse("label", label, "give 1 to 11 ASCII characters")
    root = bytearray(_entry(label.upper().ljust(11).encode(), attributes=0x08))
    fat = [0xFF0, _END]
    data = bytearray()
    for number, (name, content) in enumerate(files.items()):
        if not name.isascii() or not name.isprintable() or "/" in name or not 0 < len(name) <= 255:
            refuse("files", name, "give ASCII names without '/'")
        count = -(-len(content) // _SECTOR)
        first = len(fat) if count else 0
        fat += [*range(first + 1, first + count), _END] if count else []
        data += content.ljust(count * _SECTOR, b"\0")
        short = f"FILE{number:04}   ".encode()
        root += _long_name(name, short) + _entry(short, attributes=0x20, first=first, size=len(content))
    if len(fat) - 2 > _CLUSTERS or len(root) > _ROOT_ENTRIES * 32:
        refuse("files", list(files), "they need more than 1.4 MB")
    table = _pack(fat).ljust(_FAT_SECTORS * _SECTOR, b"\0")
    image = _boot_sector(label) + 2 * table + bytes(root).ljust(_ROOT_ENTRIES * 32, b"\0") + data
    return image.ljust(_SECTORS * _SECTOR, b"\0")


def _boot_sector(label: str) -> bytes:
    head = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        b"\xeb\x3c\x90", b"MSWIN4.1", _SECTOR, 1, 1, 2, _ROOT_ENTRIES, _SECTORS, 0xF0, _FAT_SECTORS,
        18, 2, 0, 0, 0x80, 0, 0x29, 0x716D7073, label.upper().ljust(11).encode(), b"FAT12   ",
    )  # fmt: skip
    return head.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"


def _entry(name: bytes, *, attributes: int, first: int = 0, size: int = 0) -> bytes:
    return struct.pack("<11sBBBHHHHHHHI", name, attributes, 0, 0, 0, _DATE, _DATE, 0, 0, _DATE, first, size)


def _long_name(name: str, short: bytes) -> bytes:
    """Return the entries that precede the short name's, last part first; each holds 13 UTF-16 units."""
    checksum = 0
    for byte in short:
        checksum = ((checksum & 1) << 7 | checksum >> 1) + byte & 0xFF
    parts = [name[at : at + _NAME_PART] for at in range(0, len(name), _NAME_PART)]
    entries = []
    for number, part in enumerate(parts, 1):
        text = part.encode("utf-16-le") + (b"\0\0" if len(part) < _NAME_PART else b"")
        text = text.ljust(2 * _NAME_PART, b"\xff")
        order = number | (0x40 if number == len(parts) else 0)
        head = bytes([order]) + text[:10] + bytes([0x0F, 0, checksum])
        entries.append(head + text[10:22] + b"\0\0" + text[22:])
    return b"".join(reversed(entries))


def _pack(fat: list[int]) -> bytes:
    """Pack the entries of the table into twelve bits each."""
    bits = sum(entry << 12 * number for number, entry in enumerate(fat))
    return bits.to_bytes(-(-12 * len(fat) // 8), "little")
