"""A run with pytest-xdist that is killed, or a worker of it: QEMUs, sockets and files go with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from integration.machines import wait_for
from integration.suites import BARE, NOTHING, Suite

pytestmark = pytest.mark.one_qemu

WAITS = """
import os, pathlib

@pytest.mark.parametrize("number", range(2))
def test_waits(vm, number):
    begun = pathlib.Path("BASE").with_name(f"begun-{number}")
    begun.with_suffix(".new").write_text(f"{os.getpid()} {vm.pid}")
    begun.with_suffix(".new").rename(begun)
    time.sleep(200)
"""
SOON = 120  # seconds; execnet gives a worker whose controller is gone ten


@pytest.fixture
def suite(qemu, tmp_path, temporary):
    return Suite(qemu, tmp_path, temporary)


def begun(suite, number):
    """The process of the worker that runs a test, and that of its QEMU, as soon as it runs."""
    file = suite.folder / f"begun-{number}"
    wait_for(file.exists, f"test {number}", limit=SOON)
    return tuple(map(int, file.read_text().split()))


def is_there(process):
    """Whether the process is there; a zombie is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_controller_of_two_workers_is_ended_by_a_signal(suite, number):
    with suite.start(BARE + WAITS, "-n", "2") as process:
        processes = [one for test in range(2) for one in begun(suite, test)]
        assert len(set(processes)) == 4
        process.send_signal(number)
        wait_for(lambda: suite.left() == NOTHING, "the end of all that was started", limit=SOON)
        wait_for(lambda: not any(map(is_there, processes)), "the end of the workers", limit=SOON)
        process.communicate(timeout=SOON)


def test_nothing_is_left_when_the_controller_and_both_workers_are_killed_at_once(suite):
    """As by kill -9 of their process group: no Python is left that could end a QEMU."""
    with suite.start(BARE + WAITS, "-n", "2") as process:
        (first, *_), (second, *_) = started = [begun(suite, test) for test in range(2)]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # no worker ends by itself when the controller goes
            for one in (process.pid, first, second):
                os.kill(one, number)
        wait_for(lambda: suite.left() == NOTHING, "the end of all that was started", limit=SOON)
        processes = [one for pair in started for one in pair]
        wait_for(lambda: not any(map(is_there, processes)), "the end of the workers", limit=SOON)
        process.communicate(timeout=SOON)


def test_qemu_of_a_worker_that_is_killed_goes_with_it_and_the_other_worker_s_stays(suite):
    with suite.start(BARE + WAITS, "-n", "2") as process:
        (killed, its_qemu), (other, other_qemu) = (begun(suite, test) for test in range(2))
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: not is_there(its_qemu), "the end of the killed worker's QEMU", limit=SOON)
        assert (is_there(other), is_there(other_qemu)) == (True, True)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: suite.left() == NOTHING, "the end of all that was started", limit=SOON)
        process.communicate(timeout=SOON)
