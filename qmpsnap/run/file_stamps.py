"""Stamps of layers' files: see `model/layer_stamps.py`. Blocking; opens regular files only, read-only."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from qmpsnap.model.layer_stamps import stamp_of
from qmpsnap.run.image_headers import header_with_status
from qmpsnap.run.mounts import remote_mounts


def file_stamps(files: Collection[str]) -> dict[str, str]:
    """The stamp of each of the files that has one.

    A file that is missing, cannot be read, or is no regular file has none. Nor has a file on another host's
    file system, where that host may set the time later; nor an image with dirty bitmaps, which QEMU writes
    anew when it opens the image for writing and closes it.
    """
    return dict(_stamps(files)) if files else {}


def _stamps(files: Collection[str]) -> Iterator[tuple[str, str]]:
    remote = {*remote_mounts(os.getpid()).values()}
    for file in sorted(files):
        try:
            header, status = header_with_status(file)
        except (OSError, ValueError):
            continue
        if status.st_dev not in remote and not (header is not None and header.bitmaps):
            yield file, stamp_of(header, modified_ns=status.st_mtime_ns, inode=status.st_ino)
