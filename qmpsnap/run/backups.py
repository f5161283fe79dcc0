"""A directory of backups: each has a name that readers ignore until it is complete, and is then renamed.

A client that makes a backup holds a lock on its directory. So the next client recognises what a killed client
has left, and removes it.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH102, PTH112, PTH118, PTH120

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
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
from qmpsnap.run.disk import Stopped, rename_exclusively, sync_directory
from qmpsnap.run.log import get_logger
from qmpsnap.run.os_errors import reason, unusable
from qmpsnap.run.safe_open import create_file, open_directory, open_file, remove_tree

_log = get_logger("qmpsnap.backup")
_CHUNK = 1 << 20
_TIME = len("20240501T120000Z")
_ZEROES = bytes(_CHUNK)


class Partial:
    """A backup that is not complete; readers ignore it. Blocking.

    Args:
        place: The directory of backups.
        backup: The backup's id.

    Attributes:
        directory: Directory for its images.
    """

    def __init__(self, place: str, backup: str) -> None:
        self._place, self._backup = place, backup
        self.directory = os.path.join(place, backup + PARTIAL)
        self._is_new = False
        self._lock: int | None = None

    def create(self, *, need_bytes: int) -> None:
        """Create its directory, unless it was created, and the directory of backups if that does not exist.

        Raises:
            InvalidTarget: When it cannot be created, or there is too little space.
        """
        if self._lock is not None:
            return
        place = self._place
        try:
            self._is_new = _make(place)
            space = os.statvfs(place)
            if space.f_bavail * space.f_frsize < need_bytes:
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
        """Write the manifest, sync, and give the backup its final name; return its directory.

        Raises:
            InvalidTarget: When that fails; the backup stays incomplete.
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
        """Remove the backup, unless it was finished, and a directory that was created for it; unlock it."""
        if self.directory:
            if self._lock is not None:
                remove_tree(self.directory)
            if self._is_new:
                with contextlib.suppress(OSError):
                    os.rmdir(self._place)  # noqa: PTH106 - only if nothing else is in it
        if self._lock is not None:
            os.close(self._lock)


def find_backups(place: str) -> tuple[BackupRecord, ...]:
    """Every backup in a directory, the oldest first; one with a damaged manifest is logged. Blocking.

    Raises:
        InvalidTarget: When the directory cannot be read.
    """
    records, _ = _find(place)
    return records


def _find(place: str) -> tuple[tuple[BackupRecord, ...], tuple[InvalidTarget, ...]]:
    """The backups, and the refusal of each that has a damaged manifest; anything else is skipped."""
    try:
        names = [name for name in os.listdir(place) if is_backup_id(name)]  # noqa: PTH208
    except OSError as error:
        raise unusable(place, error, "read") from error
    records, damaged = [], []
    for name in sorted(names):
        try:
            records.append(_read(place, name))
        except InvalidTarget as error:
            _log.warning("backup.damaged", reason=error.message)
            damaged.append(error)
    return tuple(sorted(records, key=lambda record: (record.created, record.id))), tuple(damaged)


def choose(place: str, at: int | None) -> BackupRecord:
    """The backup number `at`, counted from 1 in the order of the list; None: the newest. Blocking.

    Raises:
        NotFound: When there is no such backup.
        InvalidTarget: When the directory cannot be read, or the newest backup has a damaged manifest.
    """
    records, damaged = _find(place)
    if not records and damaged:
        raise damaged[-1]
    if not records:
        raise NotFound(f"there is no backup in {place}")
    if at is None:
        newest = max((error.file.split("/")[-2] for error in damaged), default="")
        if newest[:_TIME] > records[-1].id[:_TIME]:
            raise InvalidTarget(
                f"the newest backup, {newest}, has a damaged manifest",
                file=os.path.join(place, newest, MANIFEST),
                hint=f"the newest of the others is number {len(records)}: --at {len(records)} (at=)",
            )
        return records[-1]
    if not 1 <= at <= len(records):
        raise NotFound(
            f"there is no backup number {at} in {place}",
            hint=f"they are numbered from 1, the oldest, to {len(records)}",
        )
    return records[at - 1]


def verify_image(file: str, disk: BackupDisk, stop: threading.Event) -> None:
    """Verify the checksum of an image in a backup. Blocking.

    Raises:
        InvalidTarget: When the image is missing, or damaged.
        Stopped: When `stop` is set.
    """
    try:
        crc, size = checksum(file, stop)
    except (OSError, ValueError) as error:
        raise unusable(file, error, "read") from error
    if (crc, size) != (disk.crc32, disk.image_bytes):
        raise _damaged(file)


def checksum(file: str, stop: threading.Event) -> tuple[int, int]:
    """The CRC of a regular file, and its size in bytes. Blocking.

    Raises:
        OSError: When the file cannot be read.
        Stopped: When `stop` is set.
    """
    descriptor = open_file(file)
    try:
        return _each_chunk(descriptor, lambda _, __: None, stop)
    finally:
        os.close(descriptor)


def restore_image(source: str, disk: BackupDisk, target: str, stop: threading.Event) -> None:
    """Copy an image out of a backup, and verify its checksum. Blocking.

    The target is created exclusively. It has another name until it is complete and synced.

    Raises:
        TargetExists: When the target exists.
        InvalidTarget: When the target cannot be created, or the image is damaged; no file is left.
        Stopped: When `stop` is set; no file is left.
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
            crc, size = _copy(source, descriptor, stop)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if (crc, size) != (disk.crc32, disk.image_bytes):
            raise _damaged(source)
        rename_exclusively(partial, target)
        sync_directory(os.path.dirname(target))
    except OSError as error:
        _unlink(partial)
        raise unusable(target, error, "write") from error
    except (InvalidTarget, Stopped):
        _unlink(partial)
        raise


def make_directory(place: str) -> bool:
    """Create a directory if it does not exist; return whether it was created. Blocking.

    Raises:
        InvalidTarget: When it cannot be created.
    """
    try:
        return _make(place)
    except OSError as error:
        raise unusable(place, error, "create") from error


def drop_directory(place: str) -> None:
    """Remove a directory that was created, if nothing is in it. Blocking."""
    with contextlib.suppress(OSError):
        os.rmdir(place)  # noqa: PTH106


def refuse_taken(files: Sequence[str]) -> None:
    """Refuse when one of the files exists. Blocking."""
    for file in files:
        if os.path.lexists(file):
            raise TargetExists(f"{file} exists already and was not touched", file=file)


def _copy(source: str, target: int, stop: threading.Event) -> tuple[int, int]:
    """Copy a file, with zeroes as holes; return its checksum and its size in bytes."""

    def put(data: memoryview, at: int) -> None:
        if data != memoryview(_ZEROES)[: len(data)]:
            _write(target, data, at)

    descriptor = open_file(source)
    try:
        crc, size = _each_chunk(descriptor, put, stop)
    finally:
        os.close(descriptor)
    os.ftruncate(target, size)
    return crc, size


def _each_chunk(
    descriptor: int, take: Callable[[memoryview, int], None], stop: threading.Event
) -> tuple[int, int]:
    """Call `take` with each chunk of a file and its offset; return the file's checksum and size in bytes."""
    crc, at, buffer = 0, 0, bytearray(_CHUNK)
    while count := os.readv(descriptor, [buffer]):
        if stop.is_set():
            raise Stopped
        data = memoryview(buffer)[:count]
        crc = zlib.crc32(data, crc)
        take(data, at)
        at += count
    return crc, at


def _damaged(file: str) -> InvalidTarget:
    return InvalidTarget(f"{file} is damaged: its checksum differs from that in the manifest", file=file)


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count


def _make(place: str) -> bool:
    """Create a directory unless it exists; return whether it was created."""
    try:
        os.mkdir(place, 0o700)
    except FileExistsError:
        if not os.path.isdir(place):
            raise InvalidTarget(
                f"{place!r} is not a directory",
                file=place,
                hint="name a directory, or one that does not exist yet",
            ) from None
        return False
    try:
        sync_directory(os.path.dirname(place))
    except OSError:
        drop_directory(place)
        raise
    return True


def _sweep(place: str) -> None:
    """Remove what killed clients have left: incomplete backups of our user that nobody has locked."""
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
                raise ValueError("it is not a regular file")
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
