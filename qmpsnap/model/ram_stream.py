"""Finds the pages of the guest's memory in a migration stream, so that they need not be loaded by a QEMU.

Format: QEMU's migration/savevm.c (sections) and migration/ram.c (records), the same in 7.2 to 11.1. First
comes a section that lists the blocks of memory, then sections with records, each of which is a page, or says
that a page is filled with one byte. The devices follow.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

PAGE_BYTES: Final = 4096  # of x86; a stream of another machine has a subsection that is not known here

_MAGIC: Final = b"QEVM\0\0\0\3"
_START, _PART, _END, _FULL, _CONFIGURATION, _COMMAND, _FOOTER = 1, 2, 3, 4, 7, 8, 0x7E
_FLAGS: Final = PAGE_BYTES - 1  # of a record: the bits below those of the page's offset in its block
_ZERO, _LIST, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_NEXT_PAGE, _NEXT_ZERO = _PAGE | _CONTINUE, _ZERO | _CONTINUE
_HEAD_BYTES: Final = 8
# Records with _NEXT_ZERO, one after the other; the flags are the lowest 12 bits of the first 8 bytes.
_ZEROS: Final = re.compile(
    rb"(?:.{6}[\x00\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0]\x22\0)+", re.DOTALL
)
_ZERO_PAGE: Final = memoryview(bytes(PAGE_BYTES))
_MOST_LIST_BYTES: Final = 1 << 16

_word = struct.Struct(">Q").unpack_from
_kind_and_number = struct.Struct(">BI").unpack_from


@dataclass(slots=True)
class Split:
    """What a part of a stream was split into; all are views of it.

    Attributes:
        pages: Pages that follow each other in the block, each group with the offset of its first byte there.
        rest: All other bytes.
        used_bytes: How many bytes of the part these are; the rest has to be given again, with more.
    """

    pages: list[tuple[int, list[memoryview]]] = field(default_factory=list)
    rest: list[memoryview] = field(default_factory=list)
    used_bytes: int = 0


class _TooShortError(Exception):
    """More of the stream is needed."""


class RamStream:
    """Splits a stream into the pages of one block of memory, and the rest.

    The rest is a stream that loads everything else. A QEMU that loads it does not touch that block.

    A stream in which something else than memory is saved in several sections, or that begins in a way that is
    not known here, is not split: all is rest.
    """

    def __init__(self, block: str, size_bytes: int) -> None:
        """Begin a stream.

        Args:
            block: Name of the block; its memory is zero where nothing is written.
            size_bytes: Its size.
        """
        self._block = block.encode(errors="replace")
        self._size_bytes = size_bytes
        self._written = bytearray(size_bytes // PAGE_BYTES)
        self._section = 0
        self._ours = False  # whether the last record was of the block
        self._state: Callable[[memoryview, int, Split], int] = self._list

    def split(self, part: memoryview) -> Split:
        """Split the next part of the stream.

        Args:
            part: The bytes that were not used before, and what follows them.

        Raises:
            ValueError: When there is something in it that is not known here.
        """
        split = Split()
        try:
            while split.used_bytes < len(part):
                split.used_bytes = self._state(part, split.used_bytes, split)
        except _TooShortError:
            pass
        return split

    def _list(self, part: memoryview, at: int, split: Split) -> int:
        """Read all up to the first section with records: the list of blocks is in it."""
        try:
            end = self._list_end(part)
        except _TooShortError:
            if len(part) < _MOST_LIST_BYTES:
                raise
            end = 0
        split.rest.append(part[at:end])
        self._state = self._between if end else self._all
        return end

    def _list_end(self, part: memoryview) -> int:
        """Return where the list's section ends; 0 if this stream is not to be split."""
        if bytes(_of(part, 0, len(_MAGIC))) != _MAGIC:
            return 0
        at = len(_MAGIC)
        if _of(part, at, 1)[0] == _CONFIGURATION:
            at += 5 + int.from_bytes(_of(part, at + 1, 4), "big")
        start = bytes(_of(part, at, 9))
        if start[0] != _START or bytes(_of(part, at + 5, 4)) != b"\3ram":
            return 0
        self._section = int.from_bytes(start[1:5], "big")
        at += 5 + 4 + 8  # the name, the instance and the version
        (total,) = _word(_of(part, at, _HEAD_BYTES))
        at += _HEAD_BYTES
        if total & _FLAGS != _LIST:
            return 0
        left, has_block = total - _LIST, False
        while left > 0:
            length = _of(part, at, 1)[0]
            name = bytes(_of(part, at + 1, length))
            (size,) = _word(_of(part, at + 1 + length, 8))
            at += 1 + length + 8
            left -= size
            has_block |= name == self._block and size == self._size_bytes
        if left or not has_block or _word(_of(part, at, _HEAD_BYTES))[0] != _EOS:
            return 0
        at += _HEAD_BYTES
        if _kind_and_number(_of(part, at, 5)) != (_FOOTER, self._section):
            return 0
        at += 5
        return (
            at if _kind_and_number(_of(part, at, 5)) in {(_PART, self._section), (_END, self._section)} else 0
        )

    def _between(self, part: memoryview, at: int, split: Split) -> int:
        """Read the footer or the beginning of a section, or a command; the first device ends the memory."""
        kind = part[at]
        if kind == _FULL:
            self._state = self._all
            return at
        if kind == _COMMAND:
            length = 5 + int.from_bytes(_of(part, at + 3, 2), "big")
        elif kind in {_FOOTER, _PART, _END}:
            length = 5
            if _kind_and_number(_of(part, at, 5))[1] != self._section:
                raise ValueError("it has a section that is not of the memory")
        else:
            raise ValueError(f"it has a section of the type {kind:#x} amid the memory")
        split.rest.append(_of(part, at, length))
        if kind in {_PART, _END}:
            self._state = self._records
        return at + length

    def _records(self, part: memoryview, at: int, split: Split) -> int:
        """Read records up to the end of the section, or of the part."""
        pages, written, end = split.pages, self._written, len(part)
        views: list[memoryview] = []
        follows = -1
        while end - at >= _HEAD_BYTES:
            (head,) = _word(part, at)
            flags = head & _FLAGS
            offset = head - flags
            if flags == _NEXT_PAGE and self._ours:  # by far the most frequent, with the next one
                after = at + _HEAD_BYTES + PAGE_BYTES
                if after > end:
                    break
                if offset != follows:
                    views = []
                    pages.append((offset, views))
                views.append(part[at + _HEAD_BYTES : after])
                written[self._number(offset)] = 1
                follows, at = offset + PAGE_BYTES, after
            elif flags == _NEXT_ZERO and self._ours and (zeros := _ZEROS.match(part, at)):
                for (head,) in struct.iter_unpack(">Qx", part[at : zeros.end()]):
                    if written[self._number(head - _NEXT_ZERO)]:
                        pages.append((head - _NEXT_ZERO, [_ZERO_PAGE]))
                follows, at = -1, zeros.end()
            elif flags == _EOS:
                split.rest.append(part[at : at + _HEAD_BYTES])
                self._state = self._between
                return at + _HEAD_BYTES
            else:
                split.used_bytes = at
                follows, at = -1, self._record(part, at, flags, split)
        split.used_bytes = at
        raise _TooShortError

    def _record(self, part: memoryview, at: int, flags: int, split: Split) -> int:
        """Read one record, of any block."""
        if flags & ~_CONTINUE not in {_ZERO, _PAGE}:
            raise ValueError(f"it has a record with the flags {flags:#x}")
        body = at + _HEAD_BYTES
        ours = self._ours
        if not flags & _CONTINUE:
            length = _of(part, body, 1)[0]
            ours = bytes(_of(part, body + 1, length)) == self._block
            body += 1 + length
        content = _of(part, body, PAGE_BYTES if flags & _PAGE else 1)
        self._ours, end = ours, body + len(content)
        if not ours:
            split.rest.append(part[at:end])
            return end
        offset = _word(part, at)[0] - flags
        number = self._number(offset)
        if flags & _ZERO:
            content = memoryview(bytes(content) * PAGE_BYTES)
        if self._written[number] or content != _ZERO_PAGE:
            split.pages.append((offset, [content]))
            self._written[number] = 1
        return end

    def _number(self, offset: int) -> int:
        """The number of a page of the block."""
        if offset >= self._size_bytes:
            raise ValueError(f"it has a page at {offset:#x}, beyond the memory")
        return offset // PAGE_BYTES

    def _all(self, part: memoryview, at: int, split: Split) -> int:
        """Leave the rest of the stream as it is."""
        split.rest.append(part[at:])
        return len(part)


def _of(part: memoryview, at: int, length: int) -> memoryview:
    """Bytes of a part."""
    if at + length > len(part):
        raise _TooShortError
    return part[at : at + length]
