"""Reads one record, if nobody else may have written it; what was read once is kept in memory. Blocking.

A directory that another user owns or may write to is not read, because files named in a record are removed
later.
"""

from __future__ import annotations

import fcntl
import os
import stat

from msgspec.structs import replace

from qmpsnap.model.record import IntentRecord, MomentRecord, Record
from qmpsnap.model.record_file import from_json
from qmpsnap.run.safe_open import open_directory, open_file

_LONGEST = 16 << 20  # bytes of a record: fifty disks, two hundred layers each, at long paths
_KEPT = 4096  # records that are kept in memory


class ReadBefore:
    """Records of moments that have been read: each is written under a new inode, and never changed."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], tuple[tuple[int, ...], MomentRecord]] = {}

    def get(self, directory: str, name: str, status: os.stat_result) -> MomentRecord | None:
        """The record under that name, if it is still the same file."""
        identity, record = self._records.get((directory, name), ((), None))
        return record if identity == _identity(status) else None

    def put(self, directory: str, name: str, status: os.stat_result, record: MomentRecord) -> None:
        """Keep a record; of the many thousands that no machine has, the oldest go."""
        if len(self._records) >= _KEPT:
            del self._records[next(iter(self._records))]
        self._records[directory, name] = _identity(status), record


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def open_trusted(directory: str) -> int:
    """Open a directory of records; the descriptor is the caller's to close.

    Raises:
        ValueError: When others may write to it.
        OSError: When it cannot be opened.
    """
    descriptor = open_directory(directory, follow=False)
    try:
        _trust(os.fstat(descriptor))
    except ValueError:
        os.close(descriptor)
        raise
    return descriptor


def read_record(descriptor: int, name: str, directory: str, before: ReadBefore | None = None) -> Record:
    """Read one record, if it may be trusted.

    Args:
        descriptor: The open directory.
        name: The record's file in it.
        directory: The directory's path.
        before: Records that were read before; None: none is kept.

    Raises:
        ValueError: When it is not to be trusted, or is no record.
        OSError: When it cannot be read.
    """
    if before is not None and name.startswith("moment-"):
        known = before.get(directory, name, status := os.stat(name, dir_fd=descriptor, follow_symlinks=False))
        if known is not None:
            _trust(status)
            return known
    with os.fdopen(open_file(name, directory=descriptor), "rb") as file:
        status = os.fstat(file.fileno())
        _trust(status)
        if status.st_size > _LONGEST:
            raise ValueError(f"{status.st_size} bytes are too large for a record")
        record = from_json(file.read(_LONGEST).decode("utf-8"), directory=directory)
        if isinstance(record, IntentRecord):
            record = replace(record, live=_is_locked(file.fileno()))
    # A client that was killed may have changed the keys in the name, and not the record.
    if not name.startswith(record.prefix if isinstance(record, MomentRecord) else record.file_name):
        raise ValueError(f"holds the record {record.file_name!r}")
    if before is not None and isinstance(record, MomentRecord):
        before.put(directory, name, status, record)
    return record


def _is_locked(descriptor: int) -> bool:
    """Whether another client holds an exclusive lock on the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _trust(status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise ValueError(f"belongs to the user {status.st_uid}, so it is not trusted")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError("others may write to it, so it is not trusted")
