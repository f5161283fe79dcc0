from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qmpsnap.run.holders import Holder
from qmpsnap.run.view_lock import Locks, held, hold, reader

if TYPE_CHECKING:
    from pathlib import Path


def test_hold_says_that_one_moment_is_read_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    file = str(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"")
    first, second = hold(file, "c1"), hold(file, "c1")
    assert first is not None
    assert second is not None
    assert (held(file, "c1"), held(file, "c2")) == (True, False)
    os.close(first)
    assert held(file, "c1")
    os.close(second)
    assert not held(file, "c1")


def test_reader_is_the_process_that_marks_that_moment(tmp_path: Path) -> None:
    file = str(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"")
    assert reader(file, "c1") == reader(str(tmp_path / "gone"), "c1") == Holder()
    (descriptor,) = (each for each in [hold(file, "c1")] if each is not None)
    assert (reader(file, "c1").pid, reader(file, "c2").pid) == (os.getpid(), None)
    os.close(descriptor)
    assert reader(file, "c1") == Holder()


def test_locks_mark_several_files_until_they_are_closed(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("f", "g")]
    for file in files:
        (tmp_path / file).write_bytes(b"")
    locks = Locks("c1")
    locks.hold(files[:1])
    locks.hold([*files, str(tmp_path)])
    assert bool(locks)
    assert [held(file, "c1") for file in files] == [True, True]
    locks.close()
    assert [held(file, "c1") for file in files] == [False, False]
    locks.hold([str(tmp_path)])  # what is no file cannot be marked
    assert not locks


def test_hold_of_what_is_no_file_says_nothing(tmp_path: Path) -> None:
    assert hold(str(tmp_path), "c1") is None
    assert not held(str(tmp_path), "c1")
    assert not held(str(tmp_path / "missing"), "c1")


def test_hold_raises_when_the_file_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "f").chmod(0)
    if os.geteuid():
        with pytest.raises(PermissionError):
            hold(str(tmp_path / "f"), "c1")
