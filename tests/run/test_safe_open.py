"""No path in a directory that others may write to makes us wait, or lets us open what is not a file."""

from __future__ import annotations

import ast
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import qmpsnap.run
from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.files import Ask
from qmpsnap.model.machine import Fingerprint
from qmpsnap.run import cleanup, memory_files, survey
from qmpsnap.run.images import Images
from qmpsnap.run.memory_files import remove_state_file
from qmpsnap.run.record_search import read_records
from qmpsnap.run.safe_open import (
    WrongKind,
    append_file,
    create_fifo,
    create_file,
    kernel_text,
    open_block,
    open_directory,
    open_fifo,
    open_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEPT = Fingerprint("pc", 7, ("cpu",), {}, {})


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    (path.parent / "victim").write_text("precious")
    path.symlink_to(path.parent / "victim")


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.parent / "a fifo")
    path.symlink_to(path.parent / "a fifo")


def loop(path: Path) -> None:
    path.symlink_to(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(5, 0))  # /dev/tty: a terminal may be stolen by it
    except PermissionError:
        pytest.skip("making a device node needs privileges")


PLANTED: dict[str, Callable[[Path], None]] = {
    "fifo": fifo,
    "link": link,
    "link to a fifo": link_to_fifo,
    "loop": loop,
    "socket": listening,
    "directory": Path.mkdir,
    "device": device,
}


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    """Whatever waits is ended: a blocked open() of this thread, too."""

    def late(*_: object) -> None:
        raise TimeoutError("something waited for what was planted")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=PLANTED)
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "m"
    PLANTED[request.param](path)
    return path


@pytest.mark.parametrize("write", [False, True])
def test_open_file_refuses_at_once_what_is_no_file(planted: Path, write: bool) -> None:
    with pytest.raises(OSError, match=r"^(?!.*waited)"):
        open_file(str(planted), write=write)


def _sealed_memory(file: str) -> object:
    return memory_files.seal_memory(
        file, f"{file}.whole", id="id", name="c1", running=True, fingerprint=KEPT, layers=()
    )


def _sealed_store(file: str) -> object:
    return memory_files.seal_store(file, f"{file}.whole")


RAISES: dict[str, Callable[[str], object]] = {
    "seal_memory": _sealed_memory,
    "seal_store": _sealed_store,
    "reserve": lambda file: memory_files.reserve(file, 4096),
    "open_memory to read": lambda file: memory_files.open_memory(file, write=False),
    "open_memory to write": lambda file: memory_files.open_memory(file, write=True),
    "is_closed": memory_files.is_closed,
    "in_use": lambda file: cleanup.in_use(cleanup.Created(file, 0, 0)),
    "create_file": create_file,
}


@pytest.mark.parametrize("name", RAISES)
def test_what_changes_a_file_fails_at_once_on_what_is_none(name: str, planted: Path) -> None:
    with pytest.raises(OSError, match=r"^(?!.*waited)"):
        RAISES[name](str(planted))
    victim = planted.parent / "victim"
    assert not victim.exists() or victim.read_text() == "precious"
    assert os.path.lexists(planted)


def test_what_looks_says_at_once_what_is_there(planted: Path) -> None:
    file = str(planted)
    assert memory_files.look([file])[file].problem
    assert cleanup.fresh(file, None) is None
    assert cleanup.identity(file) is None
    assert not remove_state_file(file, "id", "") if not planted.is_symlink() else True
    fact = survey.look(Ask(files=(file,), survey=(str(planted.parent),))).files[file]
    assert fact.header is None
    assert os.path.lexists(planted)


def test_a_record_that_is_none_is_named_at_once(planted: Path, tmp_path: Path) -> None:
    directory = tmp_path / "base.qmpsnap"
    directory.mkdir(mode=0o700)
    planted.rename(directory / "intent-x.json")
    records, bad = read_records([str(directory)])
    assert (records, len(bad)) == ((), 1)


def test_a_directory_of_records_that_is_none_is_named_at_once(planted: Path) -> None:
    records, bad = read_records([str(planted)])
    assert (records, len(bad)) == ((), 0 if planted.is_dir() else 1)


async def test_making_and_putting_away_fail_at_once_on_what_is_planted(planted: Path) -> None:
    images = Images()
    with pytest.raises(TargetExists):
        await images.create_image(str(planted), size_bytes=512, format="raw", like=None)
    with pytest.raises(InvalidTarget):
        await images.remove_orphan(str(planted), None)
    assert os.path.lexists(planted)


def test_open_file_does_not_wait_for_a_lease(tmp_path: Path) -> None:
    """The owner of a file can make everybody's open() wait for 45 seconds (fcntl.h: F_SETLEASE)."""
    file = tmp_path / "m"
    file.write_text("data")
    lease = (
        "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDWR); "
        "fcntl.fcntl(d, fcntl.F_SETSIG, 23); fcntl.fcntl(d, fcntl.F_SETLEASE, fcntl.F_WRLCK); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", lease, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError):
            open_file(str(file))
        holder.communicate()


def test_open_file_opens_a_file_and_follows_links_on_request(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("data")
    (tmp_path / "l").symlink_to("m")
    for name, follow in (("m", False), ("m", True), ("l", True)):
        descriptor = open_file(f"{tmp_path}/{name}", follow=follow)
        assert os.read(descriptor, 9) == b"data"
        assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(descriptor)
    with pytest.raises(WrongKind, match="symbolic link"):
        open_file(f"{tmp_path}/l")
    with pytest.raises(FileNotFoundError):
        open_file(f"{tmp_path}/none")


def test_open_file_counts_a_name_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("data")
    directory = open_directory(str(tmp_path))
    descriptor = open_file("m", directory=directory)
    assert os.read(descriptor, 9) == b"data"
    os.close(descriptor)
    os.close(create_file("n", directory=directory))
    assert (tmp_path / "n").stat().st_mode & 0o777 == 0o600
    os.close(directory)


def test_open_directory_follows_no_link_on_request(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("d")
    os.close(open_directory(f"{tmp_path}/l"))
    with pytest.raises(NotADirectoryError):
        open_directory(f"{tmp_path}/l", follow=False)


def test_open_block_opens_block_devices_alone(planted: Path) -> None:
    with pytest.raises(OSError, match=r"^(?!.*waited)"):
        open_block(str(planted))


def test_open_fifo_opens_a_fifo_at_once_and_nothing_else(tmp_path: Path) -> None:
    fifo, file, link = (str(tmp_path / name) for name in ("fifo", "file", "link"))
    create_fifo(fifo)
    assert stat.S_IMODE(Path(fifo).stat().st_mode) == 0o600
    Path(link).symlink_to(fifo)
    Path(file).touch()
    with pytest.raises(FileExistsError):
        create_fifo(file)
    with pytest.raises(OSError, match="No such device or address"):  # nobody reads
        open_fifo(fifo, write=True)
    reader = open_fifo(fifo)
    writer = open_fifo(fifo, write=True)
    os.write(writer, b"data")
    assert os.read(reader, 9) == b"data"
    os.close(reader)
    os.close(writer)
    for other in (file, link):
        with pytest.raises(WrongKind):
            open_fifo(other)


def test_append_file_appends_and_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    for text in (b"one", b"two"):
        descriptor = append_file(f"{tmp_path}/log")
        os.write(descriptor, text)
        os.close(descriptor)
    assert (tmp_path / "log").read_bytes() == b"onetwo"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device or address"):
        append_file(f"{tmp_path}/fifo")


def test_kernel_text_reads_what_the_kernel_says() -> None:
    assert kernel_text("/proc/self/stat").startswith(f"{os.getpid()} ")


OPENERS = {"read_text", "read_bytes", "write_text", "write_bytes", "touch", "mkfifo", "fopen"}


def _opens(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="open")):
                yield node.lineno
            case ast.Call(func=ast.Attribute(attr=name)) if name in OPENERS or name == "open":
                yield node.lineno
            case (
                ast.ImportFrom(module="os" | "io" | "shutil" | "tempfile")
                | ast.Import(names=[ast.alias(name="shutil" | "tempfile" | "io")])
            ):
                yield node.lineno


def test_nothing_else_in_run_opens_a_file() -> None:
    """One function opens a stranger's path: whoever opens another way has not thought of a FIFO."""
    (where,) = qmpsnap.run.__path__
    found = [
        f"{file.name}:{line}"
        for file in sorted(Path(where).rglob("*.py"))
        if file.name != "safe_open.py"
        for line in _opens(ast.parse(file.read_text()))
    ]
    assert found == []


def test_the_look_above_sees_each_way_to_open() -> None:
    for text in ("open(f)", "os.open(f, 0)", "Path(f).open()", "p.read_text()", "import shutil"):
        assert list(_opens(ast.parse(text))) == [1], text
