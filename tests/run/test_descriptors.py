from __future__ import annotations

import os
import shutil
import struct
from contextlib import ExitStack
from subprocess import PIPE, Popen
from typing import IO, TYPE_CHECKING

import pytest

from qmpsnap.model.files import OpenFile, OpenName
from qmpsnap.run.descriptors import open_files, real_names, working_directory
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GONE = 2**22 + 1  # beyond Linux's highest pid
US = os.getpid()


def put(path: Path, *, size: int = 1 << 20, form: str = "qcow2") -> Path:
    """Make the beginning of an image of that size."""
    head = b"QFI\xfb" + struct.pack(">IQIIQ", 3, 0, 0, 16, size) if form == "qcow2" else bytes(size)
    path.write_bytes(head.ljust(512, b"\0"))
    return path


def wanted(path: Path, *, size: int = 1 << 20, form: str = "qcow2", spelled: str = "") -> OpenName:
    return OpenName(str(path), spelled or str(path), form, size)


def moved(before: Path, after: Path) -> str:
    shutil.move(before, after)
    return str(after)


def replaced(file: Path, other: Path) -> str:
    shutil.move(file, other)
    put(file)
    return str(other)


def linked_and_replaced(file: Path, other: Path) -> str:
    other = file.parent / "kept"
    other.hardlink_to(file)
    put(file.parent / "new").replace(file)
    return str(other)


def removed(file: Path, _: Path) -> str:
    file.unlink()
    return ""


def removed_and_made_anew(file: Path, _: Path) -> str:
    file.unlink()
    put(file)
    return ""


@pytest.mark.parametrize(
    ("happens", "state", "is_replaced"),
    [
        (lambda file, _: str(file), "same", False),
        (moved, "moved", False),
        (replaced, "moved", True),
        (linked_and_replaced, "moved", True),
        (removed, "unlinked", False),
        (removed_and_made_anew, "unlinked", True),
    ],
)
def test_open_files_tells_what_became_of_the_name(
    tmp_path: Path, happens: Callable[[Path, Path], str], state: str, is_replaced: bool
) -> None:
    file, kept = put(tmp_path / "vda.qcow2"), put(tmp_path / "vdb.qcow2")
    status = file.stat()
    (tmp_path / "elsewhere").mkdir()
    with file.open(), kept.open():
        path = happens(file, tmp_path / "elsewhere" / "x.qcow2")
        opened = open_files(US, [wanted(file), wanted(kept)])
    assert opened.same_view
    assert opened.proven
    assert opened.files[str(kept)].state == "same"
    assert opened.files[str(file)] == OpenFile(
        str(file),
        state,  # type: ignore[arg-type]
        path,
        status.st_dev,
        status.st_ino,
        replaced=is_replaced,
        reopens="same" if state == "same" else "other" if is_replaced else "nothing",
    )


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_open_files_takes_any_name_of_the_file(tmp_path: Path, link: str) -> None:
    file, other = put(tmp_path / "a"), tmp_path / "link"
    getattr(other, link)(file)
    with file.open():
        found = open_files(US, [wanted(other)]).files[str(other)]
    assert (found.state, found.path, found.inode) == ("same", str(other), file.stat().st_ino)


def test_open_files_sees_a_symlink_that_leads_elsewhere_by_now(tmp_path: Path) -> None:
    file, other, link = put(tmp_path / "a"), put(tmp_path / "b"), tmp_path / "link"
    link.symlink_to(file)
    with file.open():
        link.unlink()
        link.symlink_to(other)
        found = open_files(US, [wanted(link)]).files[str(link)]
    assert (found.state, found.path, found.replaced) == ("moved", str(file), True)


@pytest.mark.parametrize("form", ["qcow2", "raw"])
def test_open_files_tells_moved_images_apart_by_what_they_are(tmp_path: Path, form: str) -> None:
    small = put(tmp_path / "small", size=1 << 20, form=form)
    large = put(tmp_path / "large", size=2 << 20, form="qcow2")
    if form == "raw":
        os.truncate(small, 1 << 20)
    with small.open(), large.open(), (tmp_path / "vm.log").open("w"):
        shutil.move(large, tmp_path / "1")
        shutil.move(small, tmp_path / "2")
        names = [wanted(large, size=2 << 20), wanted(small, form=form)]
        found = open_files(US, names).files
    assert found[str(large)].path == str(tmp_path / "1")
    assert found[str(small)].path == str(tmp_path / "2")


def test_open_files_names_no_file_when_two_fit(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a"), put(tmp_path / "b")
    with first.open(), second.open():
        shutil.move(first, tmp_path / "1")
        shutil.move(second, tmp_path / "2")
        found = open_files(US, [wanted(first), wanted(second)]).files[str(first)]
    assert (found.state, found.path, found.known) == ("moved", "", False)


def test_open_files_knows_nothing_of_a_process_without_the_file(tmp_path: Path) -> None:
    file = put(tmp_path / "a")
    opened = open_files(US, [wanted(file)])
    assert not opened.proven
    assert opened.files[str(file)] == OpenFile(str(file), "unknown", replaced=True)


def proven(file: Path, opened: IO[str]) -> bool:
    """Whether a process with nothing else open is one that has the file open."""
    with Popen(["/bin/cat"], pass_fds=[opened.fileno()], stdin=PIPE, stdout=PIPE, bufsize=0) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b".")
        assert child.stdout.read(1) == b"."  # it has closed its libraries by then
        return open_files(child.pid, [OpenName(str(file), str(file))]).proven


def test_open_files_does_not_take_a_log_for_the_image(tmp_path: Path) -> None:
    """Seen from a process of its own: pytest has files of its own open."""
    file = put(tmp_path / "a", form="raw")
    with (tmp_path / "log").open("w") as log:
        assert not proven(file, log)
    with file.open() as image:
        assert proven(file, image)


def test_open_files_knows_nothing_when_we_may_not_look(tmp_path: Path) -> None:
    file = put(tmp_path / "a")
    opened = open_files(GONE, [wanted(file)])
    assert not opened.same_view
    assert opened.files[str(file)] == OpenFile(str(file), "unknown")


@pytest.mark.parametrize(("other", "reopens"), [(False, "nothing"), (True, "other")])
def test_open_files_tells_whether_a_relative_name_would_lead_to_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bool, reopens: str
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    file = put(tmp_path / "a")
    if other:
        put(tmp_path / "cwd" / "a")
    with file.open():
        found = open_files(US, [wanted(file, spelled="a")]).files[str(file)]
    assert (found.state, found.reopens) == ("same", reopens)


def test_real_names_finds_relative_names_where_the_process_is(tmp_path: Path) -> None:
    file = put(tmp_path / "a")
    with file.open():
        assert real_names(US, ["a", "/b"], str(tmp_path), {}) == {"a": str(file)}


@pytest.mark.parametrize("name", ["img/a", "./img/a", "../x/img/a"])
def test_real_names_finds_them_when_the_process_has_gone_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "x" / "img").mkdir(parents=True)
    file, other = put(tmp_path / "x" / "img" / "a"), put(tmp_path / "a")
    with file.open(), other.open():
        assert real_names(US, [name, str(other)], "/", {}) == {name: str(file)}


def test_real_names_finds_a_symlink_when_no_other_file_is_left(tmp_path: Path) -> None:
    file, other = put(tmp_path / "a"), put(tmp_path / "b")
    with file.open(), other.open():
        assert real_names(US, ["link", str(other)], "/", {})["link"] == str(file)


def test_real_names_guesses_nothing_when_two_files_fit(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for where in ("1", "2"):
            (tmp_path / where).mkdir()
            stack.enter_context(put(tmp_path / where / "a").open())
        assert real_names(US, ["a"], "/", {}) == {}


def test_real_names_finds_the_file_of_a_descriptor_set(tmp_path: Path) -> None:
    file = put(tmp_path / "a")
    with file.open() as stream, put(tmp_path / "b").open():
        number = stream.fileno()
        found = real_names(US, ["/dev/fdset/3"], "/", {"/dev/fdset/3": (number,), "/dev/fdset/4": (0,)})
    assert found == {"/dev/fdset/3": str(file)}


@pytest.mark.parametrize("name", ["/proc/self/fd/{}", "/dev/fd/{}"])
def test_real_names_finds_the_file_of_a_descriptor(tmp_path: Path, name: str) -> None:
    file = put(tmp_path / "a")
    with file.open() as stream:
        spelled = name.format(stream.fileno())
        assert real_names(US, [spelled], "/", {}) == {spelled: str(file)}


def test_real_names_finds_nothing_when_we_may_not_look() -> None:
    assert real_names(GONE, ["a"], "/", {}) == {}
    assert real_names(None, ["a"], "/", {}) == {}


def test_working_directory_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert working_directory(os.getpid()) == str(tmp_path.resolve())


@each("pid", [None, GONE])
def test_working_directory_is_unknown_when_we_may_not_look(pid: int | None) -> None:
    assert working_directory(pid) == ""
