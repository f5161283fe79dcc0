"""The memory of our own process, and of one that has ended."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading

import pytest

from qmpsnap.run.descriptors import identity
from qmpsnap.run.occupied_memory import code_bytes, occupied_bytes, runs_threads
from tests.each import each

US = identity(os.getpid())
MIB = 1 << 20


def now() -> int:
    found = occupied_bytes(US)
    assert found is not None
    return found


@each(("flags", "written"), [(mmap.MAP_PRIVATE, True), (mmap.MAP_SHARED, True), (mmap.MAP_SHARED, False)])
def test_occupied_bytes_grow_by_what_is_written_or_may_be_shared(flags: int, *, written: bool) -> None:
    before = now()
    with mmap.mmap(-1, 64 * MIB, flags=flags | mmap.MAP_ANONYMOUS) as memory:
        if written:
            for page in range(0, len(memory), mmap.PAGESIZE):
                memory[page] = 1
        assert now() - before >= 60 * MIB


def test_occupied_bytes_do_not_grow_by_private_memory_that_is_only_read() -> None:
    before = now()
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        assert sum(memory[page] for page in range(0, len(memory), mmap.PAGESIZE)) == 0
        assert now() - before < 32 * MIB


def test_code_bytes_are_taken_off_what_is_occupied() -> None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    try:
        memory = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)
    except PermissionError:
        pytest.skip("this host allows no memory that is both written and run")
    with memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
        code = code_bytes(US)
        assert sum(code.values()) >= 64 * MIB
        without = occupied_bytes(US, code)
        assert without is not None
        assert now() - without >= 60 * MIB


def test_nothing_is_known_of_a_process_that_has_ended_or_of_none() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = identity(child.pid)
        assert occupied_bytes(process) is not None
    for gone in (process, "", "1:1", f"{os.getpid()}.1"):
        assert occupied_bytes(gone) is None
        assert code_bytes(gone) == {}


def test_runs_threads_only_if_there_are_some_and_all_are_its_own() -> None:
    us, thread = os.getpid(), threading.get_native_id()
    assert runs_threads(us, [thread])
    assert not runs_threads(us, [])
    assert not runs_threads(us, [thread, 1 << 22])
    assert not runs_threads(os.getppid(), [thread])
