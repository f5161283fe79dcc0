"""Reads the headers of image files. Blocking; opens regular files only, read-only."""

from __future__ import annotations

import os

from qmpsnap.model.header import MAX_HEADER_BYTES, QCOW_MAGIC, Header, parse_header
from qmpsnap.run.safe_open import WrongKind, open_file

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
    try:
        descriptor = open_file(path, follow=True)
    except WrongKind:
        return None
    try:
        return descriptor_header(descriptor)
    finally:
        os.close(descriptor)
