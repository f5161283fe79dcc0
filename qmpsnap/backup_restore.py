"""Backups that are complete: listed, verified and restored. No QEMU is needed for that."""

from __future__ import annotations

import os
import posixpath
from functools import partial

from qmpsnap.model.arguments import number, refuse
from qmpsnap.model.backup import BackupRecord
from qmpsnap.run import backups
from qmpsnap.run.copying import check_image
from qmpsnap.run.disk import in_long_thread, in_thread, made_in_thread
from qmpsnap.run.paths import absolute


async def list_backups(directory: str | os.PathLike[str]) -> tuple[BackupRecord, ...]:
    """Every backup in a directory, the oldest first. One with a damaged manifest is logged, and left out.

    Raises:
        InvalidTarget: When the directory cannot be read.
    """
    return await in_thread(partial(backups.find_backups, absolute("directory", directory)))


async def verify_backup(directory: str | os.PathLike[str], *, at: int | None = None) -> BackupRecord:
    """Check every image of a backup: its checksum, and that it is consistent and needs no other file.

    Args:
        directory: The directory of backups.
        at: Number of the backup, counted from 1 in the order of the list; None: the newest.

    Raises:
        NotFound: When there is no such backup.
        InvalidTarget: When an image is missing, or its checksum differs.
        CommandFailed: When qemu-img finds an image damaged.
    """
    place, record = await _chosen(directory, at)
    for disk in record.disks.values():
        file = posixpath.join(place, disk.file)
        await in_long_thread(partial(backups.verify_image, file, disk))
        await check_image(file)
    return record


async def restore_backup(
    directory: str | os.PathLike[str], to: str | os.PathLike[str], *, at: int | None = None
) -> dict[str, str]:
    """Copy the images of a backup out of it, and verify the checksum of each.

    No file is replaced, and a file gets its name only once it is complete and synced. After a failure, or a
    cancellation, the images that were complete stay, and nothing of the others.

    Args:
        directory: The directory of backups.
        to: Directory that receives `DISK.qcow2` of each disk; created if it does not exist.
        at: Number of the backup, counted from 1 in the order of the list; None: the newest.

    Returns:
        Path of each disk's image, by the disk's name: start the machine from these.

    Raises:
        NotFound: When there is no such backup.
        TargetExists: When a file exists; nothing was copied.
        InvalidTarget: When a file cannot be created, or an image in the backup is missing or damaged.
    """
    place, record = await _chosen(directory, at)
    target = absolute("to", to)
    files = {name: posixpath.join(target, disk.file) for name, disk in record.disks.items()}
    created = await made_in_thread(
        partial(backups.make_directory, target), lambda made: backups.drop_directory(target) if made else None
    )
    try:
        await in_thread(partial(backups.refuse_taken, tuple(files.values())))
        for name, disk in record.disks.items():
            source = posixpath.join(place, disk.file)
            await in_long_thread(partial(backups.restore_image, source, disk, files[name]))
    except BaseException:
        if created:
            backups.drop_directory(target)
        raise
    return files


async def _chosen(directory: str | os.PathLike[str], at: int | None) -> tuple[str, BackupRecord]:
    if at is not None and (not isinstance(at, int) or isinstance(at, bool)):
        refuse("at", at, "give a number, from 1, or None")
    if at is not None:
        number("at", at)
    place = absolute("directory", directory)
    record = await in_thread(partial(backups.choose, place, at))
    return posixpath.join(place, record.id), record
