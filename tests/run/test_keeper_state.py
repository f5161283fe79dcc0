from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.model.keeper import KeptFor
from qmpsnap.run.keeper_state import claim, state_of
from qmpsnap.run.scratch import Scratch
from qmpsnap.run.template_files import Partial
from tests.model.test_template import RECORD

if TYPE_CHECKING:
    from pathlib import Path


def beside(place: Path, name: str = "base.t1-0123abcd.template.qcow2") -> str:
    (place / name).touch()
    return str(place / name)


def test_locked_image_is_needed_whatever_it_is_for(tmp_path: Path) -> None:
    file, owner = beside(tmp_path), KeptFor("fork", str(tmp_path / "gone"))
    lock = claim(file)
    assert lock is not None
    assert state_of(file, owner) == "needed"
    os.close(lock)
    assert state_of(file, owner) == "left"
    os.unlink(file)  # noqa: PTH108
    assert claim(file) is None


def test_image_of_a_fork_is_needed_while_its_directory_is_locked(tmp_path: Path) -> None:
    file, scratch = beside(tmp_path), Scratch(str(tmp_path))
    owner = KeptFor("fork", f"{scratch.path}/template")
    assert state_of(file, owner) == "needed"  # its process may not have locked the image yet
    scratch.close()
    assert state_of(file, owner) == "left"


def test_image_of_a_fork_is_left_although_another_process_is_removing_its_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    locked = iter([True, True, False])
    monkeypatch.setattr("qmpsnap.run.keeper_state.is_locked", lambda _: next(locked))
    monkeypatch.setattr("qmpsnap.run.keeper_state._LOOK_SECONDS", 60.0)
    assert state_of(beside(tmp_path), KeptFor("fork", str(tmp_path / "scratch" / "template"))) == "left"


def test_image_that_another_process_keeps_locked_is_not_waited_for_without_a_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("qmpsnap.run.keeper_state._LOCK_SECONDS", 0.0)
    file = beside(tmp_path)
    lock = claim(file)
    assert lock is not None
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(TimeoutError, match="another process has locked it"):
        claim(file)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.close(lock)


def test_image_of_a_template_is_needed_while_the_template_names_it(tmp_path: Path) -> None:
    file, directory = beside(tmp_path), str(tmp_path / "t1")
    owner = KeptFor("template", directory)
    assert state_of(file, owner) == "gone"
    partial = Partial(directory, 1 << 20)
    assert state_of(file, owner) == "needed"  # its process is at work, and may not have locked the image yet
    (tmp_path / "t2").mkdir()
    os.rename(tmp_path / "t2", tmp_path / ".t2.partial")  # noqa: PTH104 - that of a process that was killed
    assert state_of(file, KeptFor("template", str(tmp_path / "t2"))) == "left"
    partial.finish(replace(RECORD, keepers={file: "/d/s1.qcow2"}))
    partial.close(keep=True)
    assert state_of(file, owner) == "needed"
    other = beside(tmp_path, "base.t1-77777777.template.qcow2")
    assert state_of(other, owner) == "left"  # another template has that directory now
    (tmp_path / "t1").chmod(0o777)
    assert state_of(other, owner) == "needed"  # nobody knows


def test_image_for_kept_overlays_is_needed_while_their_directory_is_there(tmp_path: Path) -> None:
    file, owner = beside(tmp_path), KeptFor("clone", str(tmp_path / "kept"))
    assert state_of(file, owner) == "gone"
    (tmp_path / "kept").mkdir()
    assert state_of(file, owner) == "needed"
