from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Changed, InvalidTarget, NotFound, TargetExists
from qmpsnap.run.template_files import (
    Partial,
    create_directory,
    read_template,
    refuse_changed,
    remove_files,
    remove_partial,
)
from tests.each import each
from tests.model.test_template import RECORD
from tests.run.test_lock_holders import opening

if TYPE_CHECKING:
    from pathlib import Path

    from qmpsnap.model.template import TemplateRecord

SIZE = 1 << 20
_KILLED = """
import os, sys
from qmpsnap.run.template_files import Partial
Partial(sys.argv[1], 1 << 20)
os.kill(os.getpid(), 9)
"""


def made(place: Path, *, sealed: bool = True) -> TemplateRecord:
    """A complete template without disks."""
    partial = Partial(str(place), SIZE)
    with open(partial.state, "xb") as file:  # noqa: PTH123
        file.write(b"state")
    memory, state = partial.seal(sealed=sealed)
    record = replace(RECORD, memory=memory, state=state, disks={}, keepers={})
    partial.finish(record)
    partial.close(keep=True)
    return record


def modes(place: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}


def test_template_has_its_name_once_it_is_complete(tmp_path: Path) -> None:
    record = made(tmp_path / "t1")
    assert [path.name for path in tmp_path.iterdir()] == ["t1"]
    assert modes(tmp_path / "t1") == {"memory": 0o400, "state": 0o400, "template.json": 0o400}
    assert (tmp_path / "t1" / "memory").stat().st_size == SIZE
    assert read_template(str(tmp_path / "t1")) == record
    refuse_changed(str(tmp_path / "t1"), record)


def test_files_of_a_template_that_is_not_renamed_have_their_names_from_the_beginning(tmp_path: Path) -> None:
    """So a QEMU can be started on its memory at any time, before and after it is complete."""
    partial = Partial(str(tmp_path / "t1"), SIZE, renamed=False)
    assert [path.name for path in tmp_path.iterdir()] == ["t1"]
    assert partial.memory == str(tmp_path / "t1" / "memory")
    with open(partial.state, "xb") as file:  # noqa: PTH123
        file.write(b"state")
    memory, state = partial.seal(sealed=True)
    record = replace(RECORD, memory=memory, state=state, disks={}, keepers={})
    with pytest.raises(NotFound):
        read_template(str(tmp_path / "t1"))
    partial.finish(record)
    partial.close(keep=True)
    assert sorted(modes(tmp_path / "t1")) == ["memory", "state", "template.json"]
    assert read_template(str(tmp_path / "t1")) == record
    with pytest.raises(TargetExists):
        Partial(str(tmp_path / "t1"), SIZE, renamed=False)


def test_template_whose_memory_qemu_opens_for_writing_stays_writable(tmp_path: Path) -> None:
    made(tmp_path / "t1", sealed=False)
    assert modes(tmp_path / "t1")["memory"] == 0o600


def test_template_that_is_not_complete_is_removed(tmp_path: Path) -> None:
    partial = Partial(str(tmp_path / "t1"), SIZE)
    assert [path.name for path in tmp_path.iterdir()] == [".t1.partial"]
    with pytest.raises(TargetExists, match="another process is making"):
        Partial(str(tmp_path / "t1"), SIZE)
    partial.close()
    assert list(tmp_path.iterdir()) == []


def test_template_that_another_process_makes_names_that_process(tmp_path: Path) -> None:
    (tmp_path / ".t1.partial").mkdir()
    with opening(str(tmp_path / ".t1.partial")) as pid, pytest.raises(TargetExists) as caught:
        Partial(str(tmp_path / "t1"), SIZE)
    assert caught.value.message.startswith(f"process {pid} (python")
    assert caught.value.message.endswith(f") is making '{tmp_path}/t1' now")


def test_template_whose_directory_cannot_be_locked_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuses)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(InvalidTarget, match="no locks available"):
        Partial(str(tmp_path / "t1"), 4096)
    assert (list(tmp_path.iterdir()), len(os.listdir("/proc/self/fd"))) == ([], before)  # noqa: PTH208


def test_lock_of_who_only_looks_at_the_directory_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = []

    def locks(descriptor: int, how: int) -> None:
        tried.append(how)
        if len(tried) == 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("qmpsnap.run.template_files._LOOK_SECONDS", 60.0)
    monkeypatch.setattr("fcntl.flock", locks)
    Partial(str(tmp_path / "t1"), 4096).close()
    assert (len(tried), list(tmp_path.iterdir())) == (2, [])


def test_template_that_a_killed_process_left_is_removed_but_not_the_files_of_others(tmp_path: Path) -> None:
    directory = str(tmp_path / "t1")
    assert not remove_partial(directory)
    partial = Partial(directory, 4096)
    with pytest.raises(TargetExists, match="is making"):
        remove_partial(directory)
    os.close(partial._lock)  # as if the process was killed
    for name in ("notes", "state", "state.partial", "state.0a1b2c3d.partial"):
        (tmp_path / ".t1.partial" / name).touch()
    assert remove_partial(directory)
    assert list((tmp_path / ".t1.partial").iterdir()) == [tmp_path / ".t1.partial" / "notes"]


def test_complete_template_that_nobody_is_to_get_is_removed(tmp_path: Path) -> None:
    """As after a cancellation while it got its name."""
    partial = Partial(str(tmp_path / "t1"), SIZE)
    partial.finish(RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["t1"]
    partial.close()
    assert list(tmp_path.iterdir()) == []


def test_template_that_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "t1")], check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".t1.partial"]
    made(tmp_path / "t1")
    assert [path.name for path in tmp_path.iterdir()] == ["t1"]


def test_template_is_not_made_where_there_is_anything(tmp_path: Path) -> None:
    (tmp_path / "t1").symlink_to("nowhere")
    with pytest.raises(TargetExists):
        Partial(str(tmp_path / "t1"), SIZE)
    with pytest.raises(TargetExists):
        create_directory(str(tmp_path / "t1"))
    assert [path.name for path in tmp_path.iterdir()] == ["t1"]


def test_template_is_refused_where_there_is_too_little_space(tmp_path: Path) -> None:
    with pytest.raises(InvalidTarget, match="bytes free; the guest's memory needs"):
        Partial(str(tmp_path / "t1"), 1 << 60)
    assert list(tmp_path.iterdir()) == []


@each("name", ["memory", "state"])
def test_template_is_refused_once_a_file_was_written_to(name: str, tmp_path: Path) -> None:
    place = tmp_path / f"of-{name}"
    record = made(place)
    file = place / name
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.write(b"x")
    os.utime(file, ns=(1, 1))
    with pytest.raises(InvalidTarget, match=f"{name} has been written to"):
        refuse_changed(str(place), record)
    file.unlink()
    with pytest.raises(InvalidTarget, match=f"{name} is gone"):
        refuse_changed(str(place), record)


def test_template_of_somebody_else_is_not_read(tmp_path: Path) -> None:
    made(tmp_path / "t1")
    (tmp_path / "t1").chmod(0o770)
    with pytest.raises(InvalidTarget, match="others may write to it"):
        read_template(str(tmp_path / "t1"))
    (tmp_path / "t1").chmod(0o700)
    (tmp_path / "t1" / "template.json").chmod(0o622)
    with pytest.raises(InvalidTarget, match="others may write to it"):
        read_template(str(tmp_path / "t1"))


def test_what_is_no_template_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no template"):
        read_template(str(tmp_path / "t1"))
    with pytest.raises(NotFound, match=r"no template\.json"):
        read_template(str(tmp_path))
    (tmp_path / "template.json").write_text("{}")
    with pytest.raises(InvalidTarget, match="version none"):
        read_template(str(tmp_path))
    (tmp_path / "template.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(InvalidTarget, match="too long"):
        read_template(str(tmp_path))


def test_remove_leaves_what_is_not_the_template_s(tmp_path: Path) -> None:
    made(tmp_path / "t1")
    (tmp_path / "t1" / "notes").touch()
    remove_files(str(tmp_path / "t1"))
    assert [path.name for path in (tmp_path / "t1").iterdir()] == ["notes"]
    (tmp_path / "t1" / "notes").unlink()
    for _ in range(2):  # the second time it is gone
        remove_files(str(tmp_path / "t1"))
        assert list(tmp_path.iterdir()) == []


@each(("first", "changed"), [("memory", Changed.NO), ("state", Changed.YES)])
def test_remove_that_fails_says_whether_anything_was_removed(
    first: str, changed: Changed, tmp_path: Path
) -> None:
    place = tmp_path / first
    made(place)
    (place / first).unlink()
    (place / first).mkdir()  # which unlink() refuses
    with pytest.raises(InvalidTarget) as caught:
        remove_files(str(place))
    assert (caught.value.changed, (place / "template.json").exists()) == (changed, True)
