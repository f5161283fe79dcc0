"""The content of a directory of backups: one directory for each, with an image of each disk and a manifest.

DIR/20240501T120000Z-0a1b2c3d/vda.qcow2
                              manifest.json
DIR/20240501T120000Z-0a1b2c3d.partial/    while it is being made
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

import msgspec

from qmpsnap.model.frozen import Frozen, FrozenStruct, JsonStruct
from qmpsnap.model.host_process import HostProcess

MANIFEST: Final = "manifest.json"
PARTIAL: Final = ".partial"
VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 1 << 20

_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.qcow2")
_MOMENT = "backup-"
_OVERLAY = re.compile(rf".*\.({_MOMENT}{_ID.pattern})\.qcow2", re.DOTALL)


class BackupDisk(FrozenStruct, frozen=True):
    """One disk of a backup.

    Attributes:
        file: Name of its image, in the backup's directory.
        format: Format of the image.
        virtual_size: Bytes of the disk.
        image_bytes: Bytes of the image.
        crc32: Checksum of the image, as zlib.crc32 computes it.
        chain: Files that the disk was read from, newest first.
        backing: Id of the backup that its image needs; "" if the image is standalone, as in a full backup.
    """

    file: str
    format: Literal["qcow2"]
    virtual_size: int
    image_bytes: int
    crc32: int
    chain: tuple[str, ...] = ()
    backing: str = ""


class BackupRecord(FrozenStruct, frozen=True):
    """A backup: its disks, all as of one instant.

    Attributes:
        id: The name of the backup and of its directory.
        created: Time of the snapshot, ISO 8601 in UTC.
        disks: Each disk's image, by the disk's name.
        kind: "full": every image is standalone.
        version: Version of the manifest's format.
    """

    id: str
    created: str
    disks: Mapping[str, BackupDisk] = Frozen()
    kind: Literal["full"] = "full"
    version: int = VERSION

    @property
    def virtual_size(self) -> int:
        """Bytes of its disks."""
        return sum(disk.virtual_size for disk in self.disks.values())

    @property
    def image_bytes(self) -> int:
        """Bytes of its images."""
        return sum(disk.image_bytes for disk in self.disks.values())


def backup_id(now: str, token: str) -> str:
    """The name of a backup.

    Args:
        now: ISO 8601 time in UTC.
        token: Eight hex digits.
    """
    return f"{datetime.fromisoformat(now):%Y%m%dT%H%M%SZ}-{token}"


class RunningBackup(JsonStruct, frozen=True):
    """A backup that a client is making, which QEMU knows nothing of.

    Attributes:
        id: Name of the snapshot from which it copies.
        disks: Names of the disks.
        process: The client's process, if we see it.
    """

    id: str
    disks: tuple[str, ...]
    process: HostProcess | None = None

    @property
    def created(self) -> str:
        """When it began, in ISO 8601."""
        text = self.id.removeprefix(_MOMENT).partition("-")[0]
        return datetime.strptime(text, "%Y%m%dT%H%M%S%z").isoformat()

    @property
    def ends(self) -> str:
        """How it ends, as a hint."""
        stop = "Ctrl-C or SIGTERM stops it"
        return f"wait until it ends; {stop}{f' (kill {self.process.pid})' if self.process else ''}"


def is_backup_id(name: str) -> bool:
    """Whether a directory of that name may hold a backup."""
    return _ID.fullmatch(name) is not None


def moment_name(backup: str) -> str:
    """Name of the snapshot that the disks are copied from; it is merged back when they are."""
    return f"{_MOMENT}{backup}"


def is_backup_moment(name: str) -> bool:
    """Whether a snapshot's name says that it was taken for a backup."""
    return name.startswith(_MOMENT) and is_backup_id(name.removeprefix(_MOMENT))


def is_backup_overlay(file: str) -> bool:
    """Whether an overlay's name says that it began at such a snapshot."""
    return overlay_moment(file) != ""


def overlay_moment(file: str) -> str:
    """Name of the snapshot of a backup at which an overlay began, as the overlay's name says; else ""."""
    found = _OVERLAY.fullmatch(posixpath.basename(file))
    return found[1] if found is not None else ""


def to_manifest(record: BackupRecord) -> bytes:
    """The manifest's text."""
    return msgspec.json.format(msgspec.json.encode(record)) + b"\n"


def read_manifest(text: bytes, backup: str) -> BackupRecord:
    """The record in a manifest, which anybody may have written.

    Args:
        text: Its text.
        backup: Name of the directory that it lies in.

    Raises:
        ValueError: When it is none, or belongs to another directory.
    """
    record = msgspec.json.decode(text, type=BackupRecord)
    if record.version != VERSION:
        raise ValueError(f"its version {record.version} is unknown")
    if record.id != backup:
        raise ValueError(f"it belongs to the backup {record.id!r}")
    if not record.disks:
        raise ValueError("it names no disk")
    datetime.fromisoformat(record.created)
    for disk in record.disks.values():
        if _FILE.fullmatch(disk.file) is None:
            raise ValueError(f"{disk.file!r} is not the name of an image")
        if disk.backing:
            raise ValueError(f"{disk.file!r} needs another backup, which this version cannot read")
    return record
