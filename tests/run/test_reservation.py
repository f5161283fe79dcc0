"""Disk space for a file, by what a process has in memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from qmpsnap.run.cleanup import Created
from qmpsnap.run.descriptors import identity
from qmpsnap.run.reservation import Reservation

US = identity(os.getpid())
MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "m.partial"
    made.touch(mode=0o600)
    return made


def reservation(file: Path) -> Reservation:
    status = file.stat()
    return Reservation(str(file), Created(str(file), status.st_dev, status.st_ino))


def blocks(file: Path) -> int:
    return file.stat().st_blocks * 512


def test_extend_reserves_what_the_process_has_in_memory_and_later_what_was_added(file: Path) -> None:
    reserved = reservation(file)
    reserved.extend(US, 4096 * MIB)
    first = reserved.size_bytes
    assert 0 < first <= blocks(file) < 4096 * MIB
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
        reserved.extend(US, 4096 * MIB)
        assert reserved.size_bytes >= first + 60 * MIB
        assert blocks(file) >= reserved.size_bytes
    second = reserved.size_bytes
    reserved.extend(US, 4096 * MIB)  # nothing is given back
    assert reserved.size_bytes == second
    assert file.stat().st_size == 0


def test_extend_reserves_the_most_where_the_process_is_not_known(file: Path) -> None:
    reserved = reservation(file)
    reserved.extend("", 3 * MIB)
    assert (reserved.size_bytes, blocks(file) >= 3 * MIB) == (3 * MIB, True)


def test_extend_that_finds_no_room_keeps_what_is_reserved(file: Path) -> None:
    reserved = reservation(file)
    reserved.extend("", MIB)
    with pytest.raises(OSError, match="No space left"):
        reserved.extend("", 1 << 62)
    assert (reserved.size_bytes, blocks(file) < 1 << 40) == (MIB, True)
