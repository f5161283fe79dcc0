"""What a guard does beside ending a group that QEMU is in, for which see test_process.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from qmpsnap.run.guard import guarded, removed_at_death
from tests.run.test_process import gone_within

# A process that leads two programs, the second of which the first has started.
LEADS = """
import subprocess, sys, time
from qmpsnap.run.guard import guarded, removed_at_death

with guarded(sys.argv[2:3]) as guard, removed_at_death(*sys.argv[3:]):
    shell = ["/bin/sh", "-c", sys.argv[1]]
    program = subprocess.Popen(shell, process_group=guard.pid, stdout=subprocess.PIPE)
    print(guard.pid, program.pid, program.stdout.readline().decode(), flush=True)
    time.sleep(600)
"""
STUBBORN = "trap '' TERM; sleep 600 & echo $!; wait"


def test_programs_that_do_not_end_by_themselves_are_killed_when_we_are_and_our_files_removed(tmp_path):
    place, alone, other = (tmp_path / name for name in ("a place", "alone", "other"))
    for path in (place, alone, other):
        path.mkdir()
        (path / "file").touch()
    words = [sys.executable, "-c", LEADS, STUBBORN, str(place), str(alone)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        group = [*map(int, leader.stdout.readline().split())]
        leader.send_signal(signal.SIGKILL)
    assert len(group) == 3
    assert gone_within(30, *group)
    assert (place.exists(), (other / "file").exists()) == (False, True)
    end = time.monotonic() + 30
    while alone.exists():  # another guard removes it, which tells nobody
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("fails", [False, True])
def test_block_that_ends_ends_its_guard_and_removes_nothing(tmp_path, fails):
    (tmp_path / "file").touch()
    with pytest.raises(ZeroDivisionError) if fails else guarded(), removed_at_death(str(tmp_path)):
        with guarded([str(tmp_path)]) as guard:
            pass
        assert guard.returncode == -signal.SIGKILL
        if fails:
            raise ZeroDivisionError
    assert (tmp_path / "file").exists()
