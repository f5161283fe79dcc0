from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qmpsnap.run.view_lock import held, hold

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
