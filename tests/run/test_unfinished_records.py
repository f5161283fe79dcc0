from __future__ import annotations

import fcntl
import os
import time

import pytest

from qmpsnap.run.unfinished_records import lock_unfinished, remove_unfinished, unfinished_name

OLD = 120


@pytest.fixture
def directory(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def left(tmp_path, name, *, age=OLD):
    path = tmp_path / name
    path.write_text("{")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.mark.parametrize("record", ["intent-0a1b2c3d.json", "moment-x-y.json"])
def test_record_whose_writer_was_killed_is_removed(tmp_path, directory, record):
    left(tmp_path, unfinished_name(record))
    remove_unfinished(directory)
    assert list(tmp_path.iterdir()) == []


def test_record_that_a_client_writes_stays_however_old(tmp_path, directory):
    path = left(tmp_path, unfinished_name("intent-0a1b2c3d.json"))
    with path.open() as file:
        lock_unfinished(file.fileno())
        remove_unfinished(directory)
        assert path.exists()
    remove_unfinished(directory)
    assert not path.exists()


def test_nothing_else_is_removed(tmp_path, directory):
    left(tmp_path, "intent-0a1b2c3d.json")
    left(tmp_path, ".intent-0a1b2c3d.json.backup")
    left(tmp_path, unfinished_name("other.json"))
    left(tmp_path, unfinished_name("intent-00000000.json"), age=5)  # its writer may be about to lock it
    (tmp_path / unfinished_name("intent-11111111.json")).symlink_to("intent-0a1b2c3d.json")
    before = sorted(tmp_path.iterdir())
    remove_unfinished(directory)
    assert sorted(tmp_path.iterdir()) == before


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, directory, monkeypatch):
    def refuse(*_):
        raise OSError

    path = left(tmp_path, unfinished_name("intent-0a1b2c3d.json"))
    monkeypatch.setattr(fcntl, "flock", refuse)
    remove_unfinished(directory)
    assert path.exists()
