from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qmpsnap.model.record import MomentRecord
from qmpsnap.run.record_directories import link, link_all, remove_empty, sync_all, unlink_all, within
from qmpsnap.run.record_search import link_name

if TYPE_CHECKING:
    from pathlib import Path


def test_within_makes_the_directory_and_tells_that_its_parent_is_to_be_synced(tmp_path: Path) -> None:
    place, changed = str(tmp_path / "base.qmpsnap"), set[str]()
    for expected in ({str(tmp_path)}, set[str]()):
        changed.clear()
        within(place, lambda descriptor: os.close(os.dup(descriptor)), changed)
        assert changed == expected


def test_within_makes_it_again_when_another_client_removes_it_meanwhile(tmp_path: Path) -> None:
    place, calls = tmp_path / "base.qmpsnap", []

    def write(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            place.rmdir()
        os.close(os.open("record", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))

    within(str(place), write, set())
    assert (len(calls), [path.name for path in place.iterdir()]) == (2, ["record"])


def test_within_removes_what_it_has_made_when_nothing_can_be_written(tmp_path: Path) -> None:
    def write(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        within(str(tmp_path / "base.qmpsnap"), write, set())
    assert list(tmp_path.iterdir()) == []


def test_link_tells_each_directory_that_it_has_changed(tmp_path: Path) -> None:
    place, to = tmp_path / "b.qmpsnap", str(tmp_path / "a.qmpsnap")
    assert link(str(place), to) == {str(place), str(tmp_path)}
    assert link(str(place), to) == set()
    assert (place / link_name(to)).readlink() == tmp_path / "a.qmpsnap"


def test_links_of_a_record_on_three_disks_change_each_directory_once_and_go_with_it(tmp_path: Path) -> None:
    disks = {name: f"{tmp_path}/{name}.qcow2" for name in ("vda", "vdb", "vdc")}
    own = f"{tmp_path}/vda.qmpsnap"
    record = MomentRecord(
        id="qmpsnap-snapshot-keep-00000000",
        name="m",
        created="2026-01-01T00:00:00+00:00",
        overlays={disk: f"{tmp_path}/{disk}.m.qcow2" for disk in disks},
        covered=disks,
        chains={disk: (file,) for disk, file in disks.items()},
        directory=own,
    )
    changed = link_all(record)
    assert changed == {str(tmp_path), f"{tmp_path}/vdb.qmpsnap", f"{tmp_path}/vdc.qmpsnap"}
    (tmp_path / "vdc.qmpsnap" / "other").touch()
    unlink_all(record)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["other", "vdc.qmpsnap"]


def test_sync_all_passes_over_what_was_removed_meanwhile(tmp_path: Path) -> None:
    sync_all([str(tmp_path), str(tmp_path / "gone")])
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_all([str(tmp_path / "file")])


def test_remove_empty_keeps_what_has_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not remove_empty(str(tmp_path))
    (tmp_path / "file").unlink()
    assert remove_empty(str(tmp_path))
