"""Reads the headers of image files. Blocking; opens regular files only, read-only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from qmpsnap.model.bitmap_directory import MAX_DIRECTORY_BYTES, bitmaps_inside
from qmpsnap.model.graph import Bitmap, InternalSnapshot
from qmpsnap.model.header import (
    HEADER_BYTES,
    MAX_HEADER_BYTES,
    QCOW_MAGIC,
    Header,
    lost_table,
    luks_place,
    parse_header,
    refcount_table,
    snapshot_table,
    snapshots_inside,
)
from qmpsnap.model.image_chain import ImageLayer
from qmpsnap.model.image_graph import ImageFact
from qmpsnap.model.names import is_invalid_name
from qmpsnap.plan.commands.files import LuksHeader
from qmpsnap.run.safe_open import WrongKind, open_file

T = TypeVar("T")

_MAX_TABLE_BYTES = 64 << 20  # block/qcow2.h: QCOW_MAX_SNAPSHOTS_SIZE
_BLOCK = 512  # bytes of st_blocks
_READS = (4096, 1 << 16, MAX_HEADER_BYTES)  # bytes; nearly every header ends within the first


def descriptor_header(descriptor: int) -> Header | None:
    """Read the header of an open file, in steps, as most are short.

    Raises:
        ValueError: When there is a magic, but the rest is invalid.
        OSError: When it cannot be read.
    """
    data = os.pread(descriptor, _READS[0], 0)
    if data[:4] != QCOW_MAGIC:
        return None
    for longer in _READS[1:]:
        try:
            return parse_header(data)
        except ValueError:
            known = len(data)
            data = os.pread(descriptor, longer, 0)
            if len(data) == known:
                raise
    return parse_header(data)


def file_header(path: str) -> Header | None:
    """Read the header of a regular file; None for anything else, and for an image without a magic.

    Raises:
        ValueError: When there is a magic, but the rest is invalid.
        OSError: When it cannot be opened or read.
    """
    return _of_regular(path, descriptor_header)


def header_with_status(path: str) -> tuple[Header | None, os.stat_result]:
    """Read the header of a regular file as `file_header`, and the status of that very file.

    Raises:
        WrongKind: When it is not a regular file.
        ValueError, OSError: As `file_header`.
    """
    descriptor = open_file(path, follow=True)
    try:
        return descriptor_header(descriptor), os.fstat(descriptor)
    finally:
        os.close(descriptor)


def image_fact(layer: ImageLayer) -> ImageFact:
    """What the file of an image tells beyond its header: its size on the host, snapshots and bitmaps inside.

    Raises:
        ValueError: When it is another file by now, or a table in it is invalid.
        OSError: When it cannot be opened or read.
    """
    with _layer(layer) as (descriptor, status):
        snapshots: tuple[InternalSnapshot, ...] = ()
        if layer.header is not None and layer.header.snapshot_count:
            offset, count = snapshot_table(os.pread(descriptor, HEADER_BYTES, 0))
            table = os.pread(descriptor, _MAX_TABLE_BYTES, offset)
            snapshots = tuple(snapshot for snapshot, _ in snapshots_inside(table, count))
        return ImageFact(status.st_blocks * _BLOCK, snapshots, _bitmaps(descriptor, layer.header))


def _bitmaps(descriptor: int, header: Header | None) -> tuple[Bitmap, ...]:
    if header is None or header.bitmap_directory is None:
        return ()
    offset, length = header.bitmap_directory
    return bitmaps_inside(os.pread(descriptor, min(length, MAX_DIRECTORY_BYTES), offset), header.bitmaps)


def truncated_table(layer: ImageLayer) -> str:
    """The table of a qcow2 image that lies beyond the end of its file; "" if none does. See `lost_table`.

    Raises:
        ValueError: When it is another file by now, or its refcount table is invalid.
        OSError: When it cannot be opened or read.
    """
    if layer.header is None:
        return ""
    with _layer(layer) as (descriptor, status):
        offset, length = refcount_table(os.pread(descriptor, HEADER_BYTES, 0))
        return lost_table(
            layer.header,
            status.st_size,
            refcounts=os.pread(descriptor, length, offset),
            refcounts_bytes=length,
            l1=os.pread(descriptor, 8 * layer.header.l1_entries, layer.header.l1_offset),
        )


@contextmanager
def _layer(layer: ImageLayer) -> Iterator[tuple[int, os.stat_result]]:
    """Open the file of a layer that was read before; its descriptor and status."""
    descriptor = open_file(layer.file, follow=True)
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != (layer.device, layer.inode):
            raise ValueError("another file has its name by now")
        yield descriptor, status
    finally:
        os.close(descriptor)


def file_mark(path: str) -> str:
    """The mark of a regular file with its inode, as "MARK-INODE"; "" without one, or left behind by a commit.

    A copy has the same mark, and another inode.

    Raises:
        ValueError, OSError: As `file_header`.
    """
    return "" if is_invalid_name(path) else _of_regular(path, _mark) or ""


def marks_in(directory: str) -> dict[str, list[str]]:
    """The images in a directory that have a mark, by this, as `file_mark`.

    Raises:
        OSError: When the directory cannot be read.
    """
    found: dict[str, list[str]] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError, ValueError):
                if mark := file_mark(entry.path):
                    found.setdefault(mark, []).append(entry.path)
    return found


def luks_header(wanted: LuksHeader) -> bytes:
    """Read the LUKS header of an encrypted image, with its key slots.

    Raises:
        ValueError: When it is another file by now, has no such header, or ends within it.
        OSError: When it cannot be opened or read.
    """
    descriptor = open_file(wanted.file, follow=True)
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != (wanted.device, wanted.inode):
            raise ValueError(f"another file is called {wanted.file!r} by now")
        place = _luks_place(descriptor)
        if place is None:
            raise ValueError(f"{wanted.file!r} has no LUKS header")
        offset, length = place
        data = os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
    if len(data) != length:
        raise ValueError(f"{wanted.file!r} is truncated in its LUKS header")
    return data


def has_luks(path: str) -> bool:
    """Whether a file that is no image of another format begins with a LUKS header.

    Raises:
        OSError: When it cannot be opened or read.
    """
    return _of_regular(path, _bare_luks_place) is not None


def _mark(descriptor: int) -> str:
    header = descriptor_header(descriptor)
    return f"{header.mark}-{os.fstat(descriptor).st_ino}" if header is not None and header.mark else ""


def _luks_place(descriptor: int) -> tuple[int, int] | None:
    header = descriptor_header(descriptor)
    return header.luks if header is not None else _bare_luks_place(descriptor)


def _bare_luks_place(descriptor: int) -> tuple[int, int] | None:
    return luks_place(os.pread(descriptor, _READS[0], 0))


def _of_regular(path: str, read: Callable[[int], T]) -> T | None:
    """What is read from a regular file; None for anything else."""
    try:
        descriptor = open_file(path, follow=True)
    except WrongKind:
        return None
    try:
        return read(descriptor)
    finally:
        os.close(descriptor)
