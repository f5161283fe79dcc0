from __future__ import annotations

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import InvalidTarget
from qmpsnap.run.fifo import Fifo, opened
from qmpsnap.run.ram_file import ram_file
from qmpsnap.run.safe_open import open_fifo
from tests.model.test_ram_stream import BEGIN, DEVICES, EOS, FOOTER, PAGE, SIZE, B, page
from tests.model.test_ram_stream import PART as PART_OF_MEMORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

LIMIT = 30  # seconds
PART = os.urandom(1 << 20) + b"end"


@pytest.fixture
def written(tmp_path: Path) -> Iterator[FileIO]:
    """A file as QEMU writes it: locked until it is closed."""
    file = tmp_path / "m.partial"
    file.touch(0o600)
    with file.open("wb", buffering=0) as output:
        fcntl.flock(output, fcntl.LOCK_EX)
        yield output


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    made = Fifo(str(tmp_path / "fifo"))
    yield made
    made.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def read(fifo: Fifo, size: int, more: threading.Event | None = None) -> bytes:
    """Read so many bytes; say so, and read on to the end."""
    descriptor = open_fifo(fifo.path)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "rb") as source:
        first = source.read(size)
        if more is None:
            return first
        more.set()
        return first + source.read()


def test_fifo_passes_on_what_is_written_until_the_file_is_closed(
    written: FileIO, fifo: Fifo, threads: ThreadPoolExecutor
) -> None:
    """Also what is more than it holds, and what comes just before the end."""
    more = threading.Event()
    got = threads.submit(read, fifo, len(PART), more)
    with opened(str(written.name)) as file:
        passing = threads.submit(fifo.pass_on, file)
        written.write(PART)
        assert more.wait(LIMIT)
        assert not passing.done()
        for _ in range(3):
            written.write(PART)
        written.close()
        assert got.result(LIMIT) == PART * 4
        passing.result(LIMIT)
    assert fifo.error is None


def test_fifo_keeps_what_was_passed_on_until_it_is_read(written: FileIO, fifo: Fifo) -> None:
    written.write(b"all")
    written.close()
    with opened(str(written.name)) as file:
        fifo.pass_on(file)
    assert read(fifo, 10) == b"all"


@pytest.mark.parametrize("when", ["before", "while it waits", "while it is full"])
def test_fifo_that_is_stopped_shows_its_end_to_its_reader(
    written: FileIO, fifo: Fifo, threads: ThreadPoolExecutor, when: str
) -> None:
    more = threading.Event()
    data = b"" if when == "before" else b"abc" if when == "while it waits" else PART * 4
    written.write(data)
    with opened(str(written.name)) as file:
        if when == "before":
            fifo.stop()
            assert read(fifo, 1) == b""
        passing = threads.submit(fifo.pass_on, file)
        if when == "while it waits":
            got = threads.submit(read, fifo, 3, more)
            assert more.wait(LIMIT)
            fifo.stop()
            assert got.result(LIMIT) == data
        elif when == "while it is full":
            assert read(fifo, 3) == data[:3]
            fifo.stop()
        passing.result(LIMIT)
    assert fifo.error is None


def test_fifo_says_why_a_file_cannot_be_read(
    written: FileIO, fifo: Fifo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "splice", fails)
    with opened(str(written.name)) as file:
        fifo.pass_on(file)
    assert read(fifo, 10) == b""
    assert isinstance(fifo.error, OSError)
    assert fifo.error.errno == 5


def test_fifo_is_not_made_where_there_is_something(tmp_path: Path) -> None:
    (tmp_path / "fifo").touch()
    with pytest.raises(FileExistsError):
        Fifo(str(tmp_path / "fifo"))


def test_opened_takes_private_files_alone(written: FileIO) -> None:
    os.fchmod(written.fileno(), 0o644)
    with pytest.raises(OSError, match="it is not a file of ours"), opened(str(written.name)):
        pass


def test_opened_takes_the_file_that_is_meant_whoever_may_read_it(written: FileIO) -> None:
    os.fchmod(written.fileno(), 0o644)
    inode = os.fstat(written.fileno()).st_ino
    with opened(str(written.name), inode=inode) as file:
        assert os.fstat(file).st_ino == inode
    with pytest.raises(OSError, match="it is not a file of ours"), opened(str(written.name), inode=inode + 1):
        pass


def test_fifo_passes_on_what_is_written_just_before_the_file_is_closed(
    written: FileIO, fifo: Fifo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look at the file, and before the first at its lock."""

    def closes(_: int) -> bool:
        if not written.closed:
            written.write(b", last")
            written.close()
        return True

    monkeypatch.setattr("qmpsnap.run.fifo._is_closed", closes)
    written.write(b"first")
    with opened(str(written.name)) as file:
        fifo.pass_on(file)
    assert read(fifo, 20) == b"first, last"


def test_fifo_passes_on_only_what_is_not_memory(
    written: FileIO, fifo: Fifo, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """Here that is more than it holds, and the memory is written while the file is."""
    image = tmp_path / "memory"
    image.touch(0o600)
    os.truncate(image, SIZE)
    more = threading.Event()
    got = threads.submit(read, fifo, len(BEGIN), more)
    with opened(str(written.name)) as file, ram_file(str(image), "pc.ram", SIZE) as memory:
        passing = threads.submit(fifo.pass_on, file, memory)
        written.write(BEGIN + PART_OF_MEMORY)
        assert more.wait(LIMIT)
        written.write(page(1, B, "pc.ram") + EOS + FOOTER + DEVICES + PART * 2)
        written.close()
        assert got.result(LIMIT) == BEGIN + PART_OF_MEMORY + EOS + FOOTER + DEVICES + PART * 2
        passing.result(LIMIT)
    assert fifo.error is None
    assert image.read_bytes() == bytes(PAGE) + B + bytes(SIZE - 2 * PAGE)


def test_fifo_says_that_the_memory_cannot_be_written(
    written: FileIO, fifo: Fifo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    image = tmp_path / "memory"
    image.touch(0o600)
    written.write(BEGIN + PART_OF_MEMORY + page(1, B, "pc.ram") + EOS + FOOTER + DEVICES)
    monkeypatch.setattr(os, "pwritev", fails)
    with opened(str(written.name)) as file, ram_file(str(image), "pc.ram", SIZE) as memory:
        fifo.pass_on(file, memory)
    assert isinstance(fifo.error, InvalidTarget)
    assert fifo.error.file == str(image)
    assert read(fifo, 10) == b""
