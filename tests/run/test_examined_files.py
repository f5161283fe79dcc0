from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from qmpsnap.model.files import Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.run.examined_files import examine_files, other_writers
from qmpsnap.testing.drawing import chain, graph

if TYPE_CHECKING:
    from pathlib import Path

    from qmpsnap.model.graph import Graph


@pytest.fixture
def there(tmp_path: Path) -> Graph:
    for name in ("base", "s1"):
        (tmp_path / f"{name}.qcow2").write_bytes(b"x")
    return graph(chain("base <- s1*", directory=str(tmp_path)))


def test_room_is_that_of_the_layer_that_grows(there: Graph, tmp_path: Path) -> None:
    seen = examine_files(there, Files())
    assert list(seen.room) == [f"{tmp_path}/s1.qcow2"]
    assert seen.room[f"{tmp_path}/s1.qcow2"] > 0
    assert (seen.read_only, seen.missing) == ({}, frozenset())


def test_a_layer_beneath_has_to_be_writable(there: Graph, tmp_path: Path) -> None:
    base = f"{tmp_path}/base.qcow2"
    barred = Files(barred=Frozen({base: "it belongs to root"}))
    assert examine_files(there, barred).read_only == {base: "it belongs to root"}
    assert examine_files(there, barred, off=True).read_only == {}
    (tmp_path / "base.qcow2").unlink()
    assert examine_files(there, Files()).read_only == {}  # its name is lost


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any file")
def test_a_mode_that_forbids_writing_is_said(there: Graph, tmp_path: Path) -> None:
    (tmp_path / "base.qcow2").chmod(0o444)
    assert examine_files(there, Files()).read_only == {f"{tmp_path}/base.qcow2": "its mode is 0444"}


def test_another_writer_is_named_and_we_are_none(there: Graph, tmp_path: Path) -> None:
    with (tmp_path / "base.qcow2").open("r+b") as base:
        assert other_writers(there, None) == {}
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=base) as writer:
            seen = other_writers(there, None)
            assert list(seen) == [f"{tmp_path}/base.qcow2"]
            assert seen[f"{tmp_path}/base.qcow2"].startswith(f"process {writer.pid} (")
            assert other_writers(there, writer.pid) == {}
    assert other_writers(graph(chain("gone*", directory=str(tmp_path))), None) == {}


def test_missing_files_are_found(there: Graph, tmp_path: Path) -> None:
    asked = [f"{tmp_path}/base.qcow2", f"{tmp_path}/gone"]
    assert examine_files(there, Files(), asked=asked).missing == {f"{tmp_path}/gone"}
