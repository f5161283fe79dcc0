from __future__ import annotations

from typing import Any

import msgspec
import pytest

from qmpsnap.model.backup import (
    BackupDisk,
    BackupRecord,
    RunningBackup,
    backup_id,
    is_backup_id,
    is_backup_moment,
    is_backup_overlay,
    moment_name,
    overlay_moment,
    read_manifest,
    to_manifest,
)
from qmpsnap.model.host_process import HostProcess
from qmpsnap.model.names import check_name, overlay_files
from tests.each import each

ID = "20240501T120000Z-0a1b2c3d"
DISK = BackupDisk("vda.qcow2", "qcow2", 64, 7, 0xABCD, ("/images/s1", "/images/base"))
RECORD = BackupRecord(ID, "2024-05-01T12:00:00.5+00:00", {"vda": DISK})


def test_backup_id_has_the_time_and_is_known_again() -> None:
    assert backup_id("2024-05-01T12:00:00.5+00:00", "0a1b2c3d") == ID
    assert is_backup_id(ID)
    assert not any(map(is_backup_id, (f"{ID}.partial", "x", "", ID.upper(), f"{ID}/..")))


def test_moment_of_a_backup_is_a_valid_name_and_is_known_again() -> None:
    assert check_name(moment_name(ID)) == f"backup-{ID}"
    assert is_backup_moment(moment_name(ID))
    assert not any(map(is_backup_moment, (ID, "backup-mine", "backup-")))


def test_overlay_of_a_backup_is_known_by_its_name() -> None:
    bases = ("base.qcow2", f"{'x' * 250}.img", "raw")
    disks = {str(n): ("/images/s1.qcow2", f"/images/{base}") for n, base in enumerate((*bases, *bases))}
    made = overlay_files(disks, moment_name(ID)).values()
    assert len(set(made)) == len(disks)
    assert all(map(is_backup_overlay, made))
    assert {*map(overlay_moment, made)} == {moment_name(ID)}
    others = (
        "",
        "/b/base.backup-mine.qcow2",
        f"/backup-{ID}.qcow2/s1.qcow2",
        f"/b/base.backup-{ID}.qcow2.invalid",
    )
    assert not any(map(is_backup_overlay, others))
    assert {*map(overlay_moment, others)} == {""}


def test_manifest_is_read_as_it_was_written() -> None:
    assert read_manifest(to_manifest(RECORD), ID) == RECORD
    assert (RECORD.virtual_size, RECORD.image_bytes) == (64, 7)


@each(
    ("changes", "text"),
    [
        ({"id": "20240501T120000Z-ffffffff"}, "belongs to the backup"),
        ({"disks": {}}, "names no disk"),
        ({"created": "yesterday"}, "isoformat"),
        ({"version": 2}, "its version 2 is unknown"),
        ({"kind": "incremental"}, "Invalid enum value"),
        ({"disks": {"vda": {"file": "../vda.qcow2"}}}, "is not the name of an image"),
        ({"disks": {"vda": {"file": ".qcow2"}}}, "is not the name of an image"),
        ({"disks": {"vda": {"file": "a.raw"}}}, "is not the name of an image"),
        ({"disks": {"vda": {"format": "raw"}}}, "Invalid enum value"),
        ({"disks": {"vda": {"crc32": "1"}}}, "Expected `int`"),
        ({"disks": {"vda": {"backing": "20240401T120000Z-00000000"}}}, "needs another backup"),
    ],
)
def test_manifest_that_is_none_is_refused(changes: dict[str, Any], text: str) -> None:
    data = msgspec.to_builtins(RECORD)
    disks = changes.pop("disks", None)
    if disks is not None:
        data["disks"] = {name: msgspec.to_builtins(DISK) | disk for name, disk in disks.items()}
    with pytest.raises(ValueError, match=text):
        read_manifest(msgspec.json.encode(data | changes), ID)


def test_manifest_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="malformed"):
        read_manifest(b"qcow2", ID)


def test_running_backup_says_when_it_began_and_how_it_ends() -> None:
    backup = RunningBackup("backup-20240501T120000Z-0a1b2c3d", ("vda",), HostProcess(7, "qmpsnap", "alice"))
    assert backup.created == "2024-05-01T12:00:00+00:00"
    assert backup.ends == "wait until it ends; Ctrl-C or SIGTERM stops it (kill 7)"
    assert backup.to_json() == {
        "id": backup.id,
        "disks": ("vda",),
        "process": {"pid": 7, "program": "qmpsnap", "user": "alice"},
    }
    assert RunningBackup(backup.id, ()).ends == "wait until it ends; Ctrl-C or SIGTERM stops it"
