from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio
import pytest

from qmpsnap.errors import InvalidTarget
from qmpsnap.run.safe_open import private_directory
from qmpsnap.run.scratch import Scratch, in_scratch, sweep
from tests.run.limits import free_descriptors

_KILLED = """
import os, sys
from qmpsnap.run.scratch import Scratch
made = Scratch(sys.argv[1])
open(made.path + "/overlay", "w").close()
os.kill(os.getpid(), 9)
"""


def test_scratch_is_private_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    made = Scratch(str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert (made.path, stat.S_IMODE(path.stat().st_mode)) == (str(path), 0o700)
    (path / "overlay").write_bytes(b"x")
    made.close()
    assert list(tmp_path.iterdir()) == []


async def test_directory_of_a_block_goes_with_it_also_when_the_block_is_cancelled(tmp_path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with in_scratch(str(tmp_path)) as path:
            assert [*map(str, tmp_path.iterdir())] == [path]
            scope.cancel()
            await anyio.sleep_forever()
    assert (scope.cancelled_caught, list(tmp_path.iterdir())) == (True, [])


async def test_directory_that_is_created_while_its_block_is_cancelled_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.CancelScope() as scope:
        cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, scope.cancel)

        def private(longest: int, *, prefix: str, parent: str) -> str:
            cancel()
            return private_directory(longest, prefix=prefix, parent=parent)

        monkeypatch.setattr("qmpsnap.run.scratch.private_directory", private)
        async with in_scratch(str(tmp_path)):
            raise AssertionError
    assert (scope.cancelled_caught, list(tmp_path.iterdir())) == (True, [])


def test_scratch_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    mine = Scratch(str(tmp_path))
    shared = tmp_path / "qmpsnap-run-shared"
    shared.mkdir(mode=0o755)
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob("*/overlay"))) == 1
    other = Scratch(str(tmp_path))
    assert {*map(str, tmp_path.iterdir())} == {mine.path, other.path, str(shared)}
    mine.close()
    other.close()


def test_sweep_removes_what_a_killed_process_left_also_from_the_usual_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual, named = tmp_path / "usual", tmp_path / "named"
    for place in (usual, named):
        place.mkdir()
        subprocess.run([sys.executable, "-c", _KILLED, str(place)], check=False)
    monkeypatch.setattr("tempfile.tempdir", str(usual))
    mine = Scratch(str(tmp_path))
    sweep([str(named), str(tmp_path), str(tmp_path / "missing")])
    assert (list(named.iterdir()), len(list(usual.iterdir())), os.path.isdir(mine.path)) == ([], 1, True)  # noqa: PTH112
    sweep([""])
    assert list(usual.iterdir()) == []
    mine.close()


def test_scratch_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    (tmp_path / "theirs" / "file").touch()
    (tmp_path / "qmpsnap-run-link").symlink_to("theirs")
    Scratch(str(tmp_path)).close()
    assert (tmp_path / "theirs" / "file").exists()


def test_scratch_leaves_room_for_the_name_of_a_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    made = Scratch()
    made.close()
    assert Path(made.path).parent == Path("/tmp")


def test_scratch_of_a_process_at_its_limit_of_open_files_leaves_nothing(tmp_path: Path) -> None:
    with free_descriptors(0), pytest.raises(InvalidTarget, match="too many files open"):
        Scratch(str(tmp_path))  # it cannot be locked
    assert list(tmp_path.iterdir()) == []
    with free_descriptors(1):
        made = Scratch(str(tmp_path))  # the directory cannot be swept
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_scratch_says_why_it_cannot_be_created(tmp_path: Path) -> None:
    with pytest.raises(InvalidTarget, match="no such file") as caught:
        Scratch(str(tmp_path / "missing"))
    assert caught.value.file == os.fspath(tmp_path / "missing")
