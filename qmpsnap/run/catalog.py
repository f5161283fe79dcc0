"""Keeps records of intents and moments: one small JSON file each, beside the base image.

A record is created exclusively, synced, and only then given its name, so a reader never
sees an incomplete one. A directory that another user owns or may write to is
neither written nor read, because files named in a record are removed later.

The record of an operation that is running is locked (`flock`), so that nobody else ends it. The lock
belongs to the open file: it goes with the client, however that ends.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH102, PTH106, PTH118, PTH120, PTH208

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Collection, Sequence
from functools import partial

from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.record import IntentRecord, MomentRecord, Record, moment_of
from qmpsnap.model.record_file import check, from_json, to_json
from qmpsnap.run.disk import in_thread, rename_exclusively, sync_directory
from qmpsnap.run.os_errors import reason, unusable
from qmpsnap.run.safe_open import create_file, open_directory, open_file

_RECORD = re.compile(r"(intent|moment)-.*\.json", re.DOTALL)
_LONGEST = 16 << 20  # bytes of a record: fifty disks, two hundred layers each, at long paths


class Catalog:
    """Records beside the images. Every call works in a thread, to its end, also when it is cancelled.

    An intent's record is locked until it is finished, becomes a moment's record, or is released.
    """

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], int] = {}  # descriptor of each intent, by directory and id

    async def write_intent(self, record: IntentRecord, directory: str) -> IntentRecord:
        """Record an operation that is about to start; durable when it returns.

        After a failure nothing is left. After a cancellation the record may exist; `finish` removes it.

        Returns:
            The record, now knowing its directory, for `finish` and `to_moment`.

        Raises:
            TargetExists: When there is a record of that id.
            InvalidTarget: When it cannot be written there.
        """
        stored = replace(record, directory=directory)
        await self._write(stored)
        return stored

    def let_go(self, ids: Collection[str] | None = None) -> None:
        """Unlock the intents of these ids, or all of them, so that another client may finish them."""
        for key in [key for key in self._locks if ids is None or key[1] in ids]:
            os.close(self._locks.pop(key))

    async def finish(self, record: Record) -> None:
        """Remove a record, and its directory if nothing else is in it; idempotent.

        Raises:
            InvalidTarget: When it cannot be removed.
        """
        try:
            await in_thread(partial(_remove, record, self._locks))
        except OSError as error:
            raise _unusable(record, error, "remove") from error

    async def to_moment(self, intent: IntentRecord) -> MomentRecord:
        """Turn the intent of a snapshot that succeeded into its moment's record; durable when it returns.

        After a failure or cancellation the intent's record exists, or the moment's, or both; never neither.

        Raises:
            TargetExists: When there is such a moment.
            InvalidTarget: When it cannot be written.
        """
        moment = moment_of(intent)
        await self._write(moment, instead_of=intent)
        return moment

    async def rewrite(self, record: MomentRecord) -> None:
        """Replace a moment's record; durable when it returns.

        After a failure or cancellation the old or the new record exists, complete.

        Raises:
            InvalidTarget: When it cannot be written.
        """
        try:
            await in_thread(partial(_rewrite, record))
        except (OSError, ValueError) as error:
            raise _unusable(record, error, "write") from error

    async def read(self, directories: Sequence[str]) -> tuple[tuple[Record, ...], tuple[str, ...]]:
        """Read all records; returns them, and each file that is not a trusted record, as "PATH: REASON"."""
        return await in_thread(partial(read_records, tuple(directories)))

    async def _write(self, record: Record, *, instead_of: Record | None = None) -> None:
        try:
            await in_thread(partial(_write, record, instead_of, self._locks))
        except FileExistsError as error:
            file = os.path.join(record.directory, record.file_name)
            raise TargetExists(f"the record {file!r} exists already", file=file) from error
        except (OSError, ValueError) as error:
            raise _unusable(record, error, "write") from error


def read_records(directories: Sequence[str]) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Read the records in `directories`; one that does not exist has none; blocking.

    Returns:
        The records, by directory and name, and each file that is not a trusted record, as "PATH: REASON".
    """
    records: list[Record] = []
    bad: list[str] = []
    for directory in dict.fromkeys(directories):
        try:
            descriptor = _open_trusted(directory)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            bad.append(f"{directory}: {reason(error)}")
            continue
        try:
            for name in sorted(filter(_RECORD.fullmatch, os.listdir(descriptor))):
                try:
                    records.append(_read(descriptor, name, directory))
                except FileNotFoundError:  # finished meanwhile
                    continue
                except (OSError, ValueError) as error:
                    bad.append(f"{os.path.join(directory, name)}: {reason(error)}")
        finally:
            os.close(descriptor)
    return tuple(records), tuple(bad)


def _write(record: Record, instead_of: Record | None, locks: dict[tuple[str, str], int]) -> None:
    check(record)
    made = False
    for _ in range(8):  # whoever finishes the last record removes the directory
        try:
            descriptor = _open_trusted(record.directory)
            break
        except FileNotFoundError:
            made = _make_directory(record.directory) or made
    else:
        raise FileNotFoundError(record.directory)
    try:
        locked = _put(descriptor, record)
        if locked is not None:  # here, for what a cancelled call returns is lost
            locks[record.directory, record.id] = locked
        if instead_of is not None:
            _unlink(instead_of.file_name, descriptor)
        sync_directory(descriptor)
        if instead_of is not None:
            _unlock(instead_of, locks)
    except OSError:
        if made:
            _remove_empty(record.directory)
        raise
    finally:
        os.close(descriptor)


def _rewrite(record: MomentRecord) -> None:
    check(record)
    descriptor = _open_trusted(record.directory)
    try:
        _put(descriptor, record, replace=True)
        sync_directory(descriptor)
    finally:
        os.close(descriptor)


def _make_directory(directory: str) -> bool:
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return False
    sync_directory(os.path.dirname(directory))
    return True


def _put(descriptor: int, record: Record, *, replace: bool = False) -> int | None:
    """Write a record and give it its name; returns a descriptor that locks it, if it is an intent."""
    name = f".{record.file_name}.{os.urandom(4).hex()}"
    with os.fdopen(create_file(name, mode=0o644, directory=descriptor), "w", encoding="ascii") as file:
        try:
            file.write(to_json(record))
            file.flush()
            os.fsync(file.fileno())
            if isinstance(record, IntentRecord):
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if replace:
                os.rename(name, record.file_name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
            else:
                rename_exclusively(name, record.file_name, directory=descriptor)
            return os.dup(file.fileno()) if isinstance(record, IntentRecord) else None
        except OSError:
            _unlink(name, descriptor)
            raise


def _read(descriptor: int, name: str, directory: str) -> Record:
    with os.fdopen(open_file(name, directory=descriptor), "rb") as file:
        status = os.fstat(file.fileno())
        _trust(status)
        if status.st_size > _LONGEST:
            raise ValueError(f"{status.st_size} bytes are too large for a record")
        record = from_json(file.read(_LONGEST).decode("utf-8"), directory=directory)
        if isinstance(record, IntentRecord):
            record = replace(record, live=_is_locked(file.fileno()))
    if record.file_name != name:
        raise ValueError(f"holds the record {record.file_name!r}")
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


def _remove(record: Record, locks: dict[tuple[str, str], int]) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = _open_trusted(record.directory)
        try:
            _unlink(record.file_name, descriptor)
            sync_directory(descriptor)
        finally:
            os.close(descriptor)
        _remove_empty(record.directory)
    _unlock(record, locks)


def _unlock(record: Record, locks: dict[tuple[str, str], int]) -> None:
    """Close the file that locks an intent: slow, as its blocks are freed then."""
    locked = locks.pop((record.directory, record.id), None)
    if locked is not None:
        os.close(locked)


def _open_trusted(directory: str) -> int:
    descriptor = open_directory(directory, follow=False)
    try:
        _trust(os.fstat(descriptor))
    except ValueError:
        os.close(descriptor)
        raise
    return descriptor


def _trust(status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise ValueError(f"belongs to the user {status.st_uid}, so it is not trusted")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError("others may write to it, so it is not trusted")


def _unlink(name: str, descriptor: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=descriptor)


def _remove_empty(directory: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def _unusable(record: Record, error: OSError | ValueError, verb: str) -> InvalidTarget:
    file = os.path.join(record.directory, record.file_name)
    return unusable(file, error, f"{verb} the record")
