from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.keeper import KeptFor
from qmpsnap.run.keeper_state import claim, state_of
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


def test_image_of_a_template_is_needed_while_the_template_names_it(tmp_path: Path) -> None:
    file, directory = beside(tmp_path), str(tmp_path / "t1")
    owner = KeptFor("template", directory)
    assert state_of(file, owner) == "gone"
    partial = Partial(directory, 1 << 20)  # its process was killed
    assert state_of(file, owner) == "left"
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
