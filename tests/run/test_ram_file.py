from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import InvalidTarget
from qmpsnap.run.ram_file import PART_BYTES, RamFile, ram_file
from tests.model.test_ram_stream import BEGIN, DEVICES, EOS, FOOTER, PAGE, PART, SIZE, A, B, filled, page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[RamFile]:
    file = tmp_path / "memory"
    file.touch(0o600)
    os.truncate(file, SIZE)
    with ram_file(str(file), "pc.ram", SIZE) as opened:
        yield opened


def written(tmp_path: Path, stream: bytes) -> int:
    file = tmp_path / "stream"
    file.write_bytes(stream)
    return os.open(file, os.O_RDONLY)


def take_all(memory: RamFile, source: int) -> bytes:
    rest = b""
    while memory.take(source):
        rest += b"".join(memory.rest)
    os.close(source)
    return rest


def test_memory_is_written_and_the_rest_is_left(memory: RamFile, tmp_path: Path) -> None:
    stream = BEGIN + PART + page(1, A, "pc.ram") + page(2, B) + filled(3) + EOS + FOOTER + DEVICES
    rest = take_all(memory, written(tmp_path, stream))
    assert rest == BEGIN + PART + EOS + FOOTER + DEVICES
    assert (tmp_path / "memory").read_bytes() == bytes(PAGE) + A + B + bytes(5 * PAGE)


def test_stream_is_taken_that_is_longer_than_a_part(memory: RamFile, tmp_path: Path) -> None:
    """Pages come again and again, and the ends of the parts are within pages; the last of each stays."""
    pages = [bytes([number % 251]) * PAGE for number in range(3 * PART_BYTES // PAGE)]
    records = page(0, A, "pc.ram") + b"".join(page(number % 8, data) for number, data in enumerate(pages))
    rest = take_all(memory, written(tmp_path, BEGIN + PART + records + EOS + FOOTER + DEVICES))
    assert rest == BEGIN + PART + EOS + FOOTER + DEVICES
    assert (tmp_path / "memory").read_bytes() == b"".join(pages[-8:])


def test_memory_takes_no_space_for_zeros(memory: RamFile, tmp_path: Path) -> None:
    stream = BEGIN + PART + page(1, A, "pc.ram") + filled(2) + filled(3) + EOS + FOOTER + DEVICES
    take_all(memory, written(tmp_path, stream))
    assert (tmp_path / "memory").stat().st_blocks * 512 == PAGE


def test_memory_that_cannot_be_written_is_named(
    memory: RamFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = written(tmp_path, BEGIN + PART + page(1, A, "pc.ram") + EOS)
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(InvalidTarget, match=r"cannot write '.*/memory': no space left on the file system"):
        memory.take(source)
    os.close(source)


def test_write_that_is_cut_short_is_finished(
    memory: RamFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk becomes full, and the next write says so, or has room again."""
    monkeypatch.setattr(os, "pwritev", lambda file, views, at: os.pwrite(file, views[0][:1000], at))
    stream = BEGIN + PART + page(0, A, "pc.ram") + page(1, A) + page(2, B) + EOS + FOOTER + DEVICES
    take_all(memory, written(tmp_path, stream))
    assert (tmp_path / "memory").read_bytes() == A + A + B + bytes(5 * PAGE)


def test_stream_that_is_not_understood_is_refused(memory: RamFile, tmp_path: Path) -> None:
    source = written(tmp_path, BEGIN + PART + struct.pack(">Q", 0x120) + bytes(PAGE))
    with pytest.raises(InvalidTarget, match=r"the VM state for '.*/memory': it has a record with the flags"):
        memory.take(source)
    os.close(source)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTarget, match="cannot write"), ram_file(str(tmp_path / "no"), "pc.ram", SIZE):
        pass
