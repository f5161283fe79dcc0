from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from qmpsnap.run.shared import holds, working_directory

if TYPE_CHECKING:
    from pathlib import Path

GONE = 2**22 + 1  # beyond Linux's highest pid


def test_holds_is_true_when_the_process_has_every_file_open(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    with first.open("w"), second.open("w"):
        assert holds(os.getpid(), [str(first), str(second)])


def test_holds_is_true_under_another_name_of_the_file(tmp_path: Path) -> None:
    file, link = tmp_path / "a", tmp_path / "link"
    link.symlink_to(file)
    with file.open("w"):
        assert holds(os.getpid(), [str(link)])


def test_holds_is_false_when_one_file_is_not_open(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    second.touch()
    with first.open("w"):
        assert not holds(os.getpid(), [str(first), str(second)])


def test_holds_is_false_when_another_file_has_the_name(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with file.open("w"):
        shutil.move(file, tmp_path / "moved")
        file.touch()  # as in another mount namespace: the same path, another file
        assert not holds(os.getpid(), [str(file)])


@pytest.mark.parametrize("file", ["/nowhere/x", "relative", "nul\0"])
def test_holds_is_false_when_we_do_not_see_the_file(file: str) -> None:
    assert not holds(os.getpid(), [file])


def test_holds_is_false_when_we_may_not_look_at_the_process(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with file.open("w"):
        assert not holds(GONE, [str(file)])


def test_working_directory_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert working_directory(os.getpid()) == str(tmp_path.resolve())


@pytest.mark.parametrize("pid", [None, GONE])
def test_working_directory_is_unknown_when_we_may_not_look(pid: int | None) -> None:
    assert working_directory(pid) == ""
