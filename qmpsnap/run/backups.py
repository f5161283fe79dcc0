"""A directory of backups: each is made under a name that no reader takes for one, and then renamed.

Whoever makes one holds a lock on its directory, so that what a killed client has left can be told apart, and
removed by the next.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH102, PTH112, PTH118, PTH120

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import zlib
from collections.abc import Callable, Sequence

from qmpsnap.errors import InvalidTarget, NotFound, TargetExists
from qmpsnap.model.backup import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PARTIAL,
    BackupDisk,
    BackupRecord,
    is_backup_id,
    read_manifest,
    to_manifest,
)
from qmpsnap.run.disk import rename_exclusively, sync_directory
from qmpsnap.run.os_errors import reason, unusable
from qmpsnap.run.safe_open import create_file, open_directory, open_file, remove_tree

_CHUNK = 1 << 20
_ZEROES = bytes(_CHUNK)


class Partial:
    """A backup that is being made; nobody takes it for one. Blocking.

    Attributes:
        directory: Where its images go.
    """

    def __init__(self, place: str, backup: str, *, need_bytes: int) -> None:
        """Create its directory, and the one that it lies in.

        Raises:
            InvalidTarget: When it cannot be created there, or there is no room.
        """
        self._place, self._backup = place, backup
        self.directory = os.path.join(place, backup + PARTIAL)
        try:
            made = _make(place)
            space = os.statvfs(place)
            if space.f_bavail * space.f_frsize < need_bytes:
                if made:
                    os.rmdir(place)  # noqa: PTH106
                raise InvalidTarget(
                    f"{place} has {space.f_bavail * space.f_frsize} bytes free; the backup may need "
                    f"{need_bytes}",
                    file=place,
                    hint="free some space there, or choose another directory",
                )
            _sweep(place)
            os.mkdir(self.directory, 0o700)
            self._lock = open_directory(self.directory, follow=False)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, ValueError) as error:
            raise unusable(self.directory, error, "create") from error

    def finish(self, record: BackupRecord) -> str:
        """Write the manifest, sync, and give the backup its name; returns its directory.

        Raises:
            InvalidTarget: When that cannot be done; it stays partial.
        """
        final = os.path.join(self._place, self._backup)
        try:
            with os.fdopen(create_file(os.path.join(self.directory, MANIFEST)), "wb") as file:
                file.write(to_manifest(record))
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self.directory)
            os.rename(self.directory, final)  # noqa: PTH104 - replaces no directory that holds anything
            sync_directory(self._place)
        except OSError as error:
            raise unusable(final, error, "create") from error
        self.directory = ""
        return final

    def close(self) -> None:
        """Remove it, unless it was finished."""
        if self.directory:
            remove_tree(self.directory)
            with contextlib.suppress(OSError):
                os.rmdir(self._place)  # noqa: PTH106 - only if nothing else is in it
        os.close(self._lock)


def find_backups(place: str) -> tuple[BackupRecord, ...]:
    """Every backup in a directory, the oldest first; what is none is skipped. Blocking.

    Raises:
        InvalidTarget: When the directory cannot be read, or holds a backup whose manifest is damaged.
    """
    try:
        names = [name for name in os.listdir(place) if is_backup_id(name)]  # noqa: PTH208
    except OSError as error:
        raise unusable(place, error, "read") from error
    found = [_read(place, name) for name in names]
    return tuple(sorted(found, key=lambda record: (record.created, record.id)))


def choose(place: str, at: int | None) -> BackupRecord:
    """One of the backups: the `at`-th, counted from 1 as they are listed; None: the newest. Blocking.

    Raises:
        NotFound: When there is none.
        InvalidTarget: As `find_backups`.
    """
    found = find_backups(place)
    if not found or (at is not None and not 1 <= at <= len(found)):
        what = "no backup" if not found else f"no backup number {at}"
        raise NotFound(f"there is {what} in {place}", hint=f"there are {len(found)}, the oldest is number 1")
    return found[-1 if at is None else at - 1]


def verify_image(file: str, disk: BackupDisk) -> None:
    """Check an image of a backup by its checksum. Blocking.

    Raises:
        InvalidTarget: When it is missing, or damaged.
    """
    try:
        found, count = checksum(file)
    except (OSError, ValueError) as error:
        raise unusable(file, error, "read") from error
    if (found, count) != (disk.crc32, disk.image_bytes):
        raise _damaged(file)


def checksum(file: str) -> tuple[int, int]:
    """The CRC of a regular file's bytes, and their number. Blocking.

    Raises:
        OSError: When it cannot be read.
    """
    descriptor = open_file(file)
    try:
        return _each_chunk(descriptor, lambda _, __: None)
    finally:
        os.close(descriptor)


def restore_image(source: str, disk: BackupDisk, target: str) -> None:
    """Copy an image out of a backup, and check it by its checksum. Blocking.

    The target is created exclusively, under another name until it is whole and synced.

    Raises:
        TargetExists: When the target exists.
        InvalidTarget: When it cannot be created, or the image is damaged; nothing is left.
    """
    if os.path.lexists(target):
        raise TargetExists(f"{target} exists already and was not touched", file=target)
    partial = target + PARTIAL
    try:
        descriptor = create_file(partial)
    except FileExistsError as error:
        raise TargetExists(
            f"{partial} exists already and was not touched",
            file=partial,
            hint="an interrupted restore left it",
        ) from error
    except (OSError, ValueError) as error:
        raise unusable(target, error, "create") from error
    try:
        try:
            found, count = _copy(source, descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if (found, count) != (disk.crc32, disk.image_bytes):
            raise _damaged(source)
        rename_exclusively(partial, target)
        sync_directory(os.path.dirname(target))
    except OSError as error:
        _unlink(partial)
        raise unusable(target, error, "write") from error
    except InvalidTarget:
        _unlink(partial)
        raise


def make_directory(place: str) -> None:
    """Create a directory where it is missing. Blocking.

    Raises:
        InvalidTarget: When it cannot be created.
    """
    try:
        _make(place)
    except OSError as error:
        raise unusable(place, error, "create") from error


def refuse_taken(files: Sequence[str]) -> None:
    """Refuse when one of the files exists. Blocking."""
    for file in files:
        if os.path.lexists(file):
            raise TargetExists(f"{file} exists already and was not touched", file=file)


def _copy(source: str, target: int) -> tuple[int, int]:
    """Copy a file, zeroes as holes; return its checksum and its bytes."""

    def put(data: memoryview, at: int) -> None:
        if data != memoryview(_ZEROES)[: len(data)]:
            _write(target, data, at)

    descriptor = open_file(source)
    try:
        found, size = _each_chunk(descriptor, put)
    finally:
        os.close(descriptor)
    os.ftruncate(target, size)
    return found, size


def _each_chunk(descriptor: int, take: Callable[[memoryview, int], None]) -> tuple[int, int]:
    """Read a file; return its checksum and its bytes."""
    found, at, buffer = 0, 0, bytearray(_CHUNK)
    while count := os.readv(descriptor, [buffer]):
        data = memoryview(buffer)[:count]
        found = zlib.crc32(data, found)
        take(data, at)
        at += count
    return found, at


def _damaged(file: str) -> InvalidTarget:
    return InvalidTarget(f"{file} is damaged: its checksum is not that of the backup", file=file)


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count


def _make(place: str) -> bool:
    try:
        os.mkdir(place, 0o700)
    except FileExistsError:
        if not os.path.isdir(place):
            raise
        return False
    sync_directory(os.path.dirname(place))
    return True


def _sweep(place: str) -> None:
    """Remove what killed clients have left: directories of ours that nobody holds the lock of."""
    for name in os.listdir(place):  # noqa: PTH208
        if not (name.endswith(PARTIAL) and is_backup_id(name.removesuffix(PARTIAL))):
            continue
        directory = os.path.join(place, name)
        with contextlib.suppress(OSError):
            if os.lstat(directory).st_uid != os.geteuid():
                continue
            descriptor = open_directory(directory, follow=False)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(directory)
            finally:
                os.close(descriptor)


def _read(place: str, name: str) -> BackupRecord:
    file = os.path.join(place, name, MANIFEST)
    try:
        descriptor = open_file(file)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("it is no regular file")
            return read_manifest(os.pread(descriptor, MAX_MANIFEST_BYTES, 0), name)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise InvalidTarget(
            f"{file} is not the manifest of a backup: {reason(error)}",
            file=file,
            hint="move that directory away; the other backups do not need it",
        ) from error


def _unlink(file: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(file)  # noqa: PTH108
