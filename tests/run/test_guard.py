"""What a guard does beside ending a group that QEMU is in, for which see test_process.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

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
# A process that starts guards while it is interrupted. It prints how many of them have ended by themselves,
# and which signals it no longer gets.
STARTS = """
import signal
from qmpsnap.run.guard import guarded

interrupted = ended = 0

def interrupt(*_):
    global interrupted
    interrupted += 1

signal.signal(signal.SIGINT, interrupt)
print("ready", flush=True)
while interrupted < 300:
    with guarded() as guard:
        ended += guard.poll() is not None
print(ended, signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)
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


def test_signals_that_whoever_ends_us_sends_to_the_guard_too_do_not_end_it(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    words = [sys.executable, "-c", LEADS, STUBBORN, str(place)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        group = [*map(int, leader.stdout.readline().split())]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            os.kill(group[0], number)
        leader.send_signal(signal.SIGKILL)
    assert gone_within(30, *group)
    assert not place.exists()


def test_ctrl_c_in_the_instant_in_which_a_guard_starts_does_not_end_it_and_is_not_lost():
    words = [sys.executable, "-c", STARTS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, process_group=0) as starts:
        assert starts.stdout is not None
        starts.stdout.readline()
        with suppress(ProcessLookupError):
            while starts.poll() is None:
                os.killpg(starts.pid, signal.SIGINT)  # as a terminal does
                time.sleep(0.0003)
        assert starts.stdout.read() == "0 set()\n"


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
