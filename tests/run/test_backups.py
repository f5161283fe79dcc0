from __future__ import annotations

import errno
import fcntl
import os
import threading
import zlib
from pathlib import Path

import pytest
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, NotFound, TargetExists
from qmpsnap.model.backup import BackupDisk, BackupRecord
from qmpsnap.run.backups import (
    Partial,
    checksum,
    choose,
    find_backups,
    make_directory,
    refuse_taken,
    restore_image,
    verify_image,
)
from qmpsnap.run.disk import Stopped

ID = "20240501T120000Z-0a1b2c3d"
LATER = "20240501T120000Z-00000000"
DATA = b"\1" * 5 + bytes(3 << 20) + b"\2"
DISK = BackupDisk("vda.qcow2", "qcow2", 64, len(DATA), zlib.crc32(DATA))
GO_ON = threading.Event()  # never set
RECORD = BackupRecord(ID, "2024-05-01T12:00:00.1+00:00", {"vda": DISK})


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def created(place: Path, backup: str, *, need_bytes: int = 1) -> Partial:
    """An incomplete backup; if its directory cannot be created, it is closed."""
    partial = Partial(str(place), backup)
    try:
        partial.create(need_bytes=need_bytes)
    except InvalidTarget:
        partial.close()
        raise
    return partial


def made(place: Path, record: BackupRecord = RECORD) -> Path:
    """A backup with its image."""
    partial = created(place, record.id)
    (Path(partial.directory) / "vda.qcow2").write_bytes(DATA)
    directory = partial.finish(record)
    partial.close()
    return Path(directory)


def test_partial_is_no_backup_before_it_is_finished(tmp_path: Path) -> None:
    place = tmp_path / "b"
    partial = created(place, ID)
    assert (partial.directory, find_backups(str(place))) == (f"{place}/{ID}.partial", ())
    assert Path(partial.directory).stat().st_mode & 0o777 == 0o700
    assert partial.finish(RECORD) == f"{place}/{ID}"
    partial.close()
    assert find_backups(str(place)) == (RECORD,)
    assert names(place) == [ID]


def test_partial_that_is_given_up_is_removed_with_the_directory_that_it_made(tmp_path: Path) -> None:
    place = tmp_path / "b"
    partial = created(place, ID)
    (Path(partial.directory) / "vda.qcow2").touch()
    partial.close()
    assert names(tmp_path) == []
    place.mkdir()  # the user's
    created(place, ID).close()
    assert (names(tmp_path), names(place)) == (["b"], [])
    made(place)
    created(place, LATER).close()
    assert names(place) == [ID]


def test_partial_is_created_once_and_removes_nothing_that_it_has_not_created(tmp_path: Path) -> None:
    (tmp_path / f"{ID}.partial").mkdir()
    partial = Partial(str(tmp_path), ID)
    partial.close()
    assert names(tmp_path) == [f"{ID}.partial"]
    partial.create(need_bytes=1)
    (Path(partial.directory) / "vda.qcow2").touch()
    partial.create(need_bytes=1)
    assert names(Path(partial.directory)) == ["vda.qcow2"]
    partial.close()
    assert names(tmp_path) == []


def test_partial_is_refused_without_room_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidTarget, match="bytes free; the backup may need"):
        created(tmp_path / "b", ID, need_bytes=1 << 60)
    with pytest.raises(InvalidTarget, match="there is no directory"):
        created(tmp_path / "none" / "b", ID)
    assert names(tmp_path) == []


def test_partial_removes_what_killed_clients_have_left_and_nothing_else(tmp_path: Path) -> None:
    left, used, others = (tmp_path / f"20240401T120000Z-0000000{number}.partial" for number in range(3))
    for directory in (left, used, others, tmp_path / "mine.partial"):
        directory.mkdir()
        (directory / "vda.qcow2").touch()
    others.rename(tmp_path / "elsewhere")
    others.symlink_to("elsewhere")
    lock = os.open(used, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    created(tmp_path, ID).close()
    os.close(lock)
    assert names(tmp_path) == sorted([used.name, others.name, "elsewhere", "mine.partial"])
    assert (tmp_path / "elsewhere" / "vda.qcow2").exists()


def test_backups_are_listed_by_their_time_and_chosen_by_their_number(tmp_path: Path) -> None:
    later = replace(RECORD, id=LATER, created="2024-05-01T12:00:00.2+00:00")
    made(tmp_path, later)
    made(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert find_backups(str(tmp_path)) == (RECORD, later)
    assert [choose(str(tmp_path), at) for at in (None, 1, 2)] == [later, RECORD, later]
    with pytest.raises(NotFound, match="no backup number 3") as caught:
        choose(str(tmp_path), 3)
    assert caught.value.hint == "they are numbered from 1, the oldest, to 2"


def test_backups_of_a_directory_without_any(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no backup in"):
        choose(str(tmp_path), None)
    with pytest.raises(InvalidTarget, match="cannot read"):
        find_backups(str(tmp_path / "none"))


def test_backup_with_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    file = made(tmp_path) / "manifest.json"
    file.write_bytes(b"{")
    with pytest.raises(InvalidTarget, match="is not the manifest of a backup") as caught:
        choose(str(tmp_path), None)
    assert caught.value.file == str(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InvalidTarget, match="it is a FIFO"):
        choose(str(tmp_path), None)


def test_backup_with_a_damaged_manifest_hides_no_other(tmp_path: Path) -> None:
    later = replace(RECORD, id=LATER, created="2024-05-01T12:00:00.2+00:00")
    old = made(tmp_path)
    made(tmp_path, later)
    aside = old.rename(tmp_path / "20240401T120000Z-00000000")
    (aside / "manifest.json").write_bytes(b"{")
    assert find_backups(str(tmp_path)) == (later,)
    assert [choose(str(tmp_path), at) for at in (None, 1)] == [later, later]
    aside.rename(tmp_path / "20240601T120000Z-00000000")
    with pytest.raises(InvalidTarget, match="the newest backup, 20240601T120000Z-00000000, has") as caught:
        choose(str(tmp_path), None)
    assert caught.value.hint.endswith("is number 1: --at 1 (at=)")


def test_restore_gives_the_image_back_with_its_holes(tmp_path: Path) -> None:
    source, target = made(tmp_path / "b") / "vda.qcow2", tmp_path / "vda.qcow2"
    restore_image(str(source), DISK, str(target), GO_ON)
    assert target.read_bytes() == DATA
    assert target.stat().st_blocks * 512 < len(DATA)
    assert target.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["b", "vda.qcow2"]


def test_restore_replaces_nothing(tmp_path: Path) -> None:
    source, target = made(tmp_path / "b") / "vda.qcow2", tmp_path / "vda.qcow2"
    for taken in (target, Path(f"{target}.partial")):
        taken.symlink_to("nowhere")
        with pytest.raises(TargetExists, match=r"exists already and was not touched"):
            restore_image(str(source), DISK, str(target), GO_ON)
        assert taken.is_symlink()
        taken.unlink()
    refuse_taken([str(target)])
    target.touch()
    with pytest.raises(TargetExists):
        refuse_taken([str(target)])


def test_damaged_image_is_neither_restored_nor_verified(tmp_path: Path) -> None:
    source, target = made(tmp_path / "b") / "vda.qcow2", tmp_path / "vda.qcow2"
    verify_image(str(source), DISK, GO_ON)
    source.write_bytes(DATA[:-1] + b"\3")
    with pytest.raises(InvalidTarget, match="is damaged"):
        restore_image(str(source), DISK, str(target), GO_ON)
    with pytest.raises(InvalidTarget, match="is damaged"):
        verify_image(str(source), DISK, GO_ON)
    source.unlink()
    with pytest.raises(InvalidTarget, match="cannot read"):
        verify_image(str(source), DISK, GO_ON)
    with pytest.raises(InvalidTarget, match="cannot write"):
        restore_image(str(source), DISK, str(target), GO_ON)
    assert names(tmp_path) == ["b"]


def test_directory_that_cannot_be_synced_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: str) -> None:
        raise OSError(errno.EIO, "it broke")

    monkeypatch.setattr("qmpsnap.run.backups.sync_directory", failing)
    with pytest.raises(InvalidTarget, match="the disk reports an error"):
        make_directory(str(tmp_path / "new"))
    assert names(tmp_path) == []


def test_restore_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    source, stop = made(tmp_path / "b") / "vda.qcow2", threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        restore_image(str(source), DISK, str(tmp_path / "vda.qcow2"), stop)
    with pytest.raises(Stopped):
        verify_image(str(source), DISK, stop)
    assert names(tmp_path) == ["b"]


def test_restore_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    source = made(tmp_path / "b") / "vda.qcow2"
    with pytest.raises(InvalidTarget, match="there is no directory"):
        restore_image(str(source), DISK, str(tmp_path / "none" / "vda.qcow2"), GO_ON)
    with pytest.raises(InvalidTarget, match="cannot create"):
        make_directory(str(tmp_path / "none" / "there"))
    (tmp_path / "file").touch()
    for refused in (make_directory, lambda place: Partial(place, ID).create(need_bytes=1)):
        with pytest.raises(InvalidTarget, match=r"file' is not a directory"):
            refused(str(tmp_path / "file"))
    make_directory(str(tmp_path))


def test_checksum_is_that_of_zlib_and_counts_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    assert checksum(str(tmp_path / "f"), GO_ON) == (zlib.crc32(DATA), len(DATA))
