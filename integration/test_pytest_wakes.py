"""After a reset the plugin sets the clock and the random seed of qmpsnap's own guest."""

from __future__ import annotations

import pytest

from integration.suites import NOTHING, Suite

pytestmark = pytest.mark.one_qemu

# The guest boots with the clock of 2001. Just before its state is saved it draws a byte, so that its
# generator has a fresh key: without a new seed it would draw the same numbers after each reset.
STALE = """
import re
import time
from dataclasses import replace

import pytest
import qmpsnap
from qmpsnap.testing.guest import open_guest
from qmpsnap.testing.machine import guest_machine

drawn = set()

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

@pytest.fixture(scope="session")
def qmpsnap_machine():
    disk = qmpsnap.MachineDisk(name="vda", file="BASE")
    return replace(guest_machine(disks=[disk], memory_mib=128), arguments=["-rtc", "base=2001-01-01"])

@pytest.fixture(scope="session")
def qmpsnap_ready():
    return ready

async def ready(vm):
    chardevs = str(await vm.execute("query-chardev"))
    async with open_guest(re.search(r"unix:([^,']*/qmpsnap[.]guest)", chardevs)[1]) as guest:
        await guest.run("head -c 1 /dev/urandom > /dev/null")

async def test_clock_is_that_of_the_first_state_without_the_plugin_s_guest(vm, qmpsnap_directory):
    async with open_guest(qmpsnap_directory / "qmpsnap.guest") as guest:
        assert await guest.run("date +%Y") == "2001"

@pytest.mark.parametrize("number", range(4))
def test_clock_is_that_of_the_host_and_numbers_are_new(guest, number):
    seconds, uuid = guest.run("date +%s; cat /proc/sys/kernel/random/uuid").split()
    assert abs(int(seconds) - time.time()) < 24 * 3600
    assert uuid not in drawn
    drawn.add(uuid)
"""


@pytest.mark.parametrize("reset", ["memory", "clone"])
def test_guest_has_the_host_s_clock_and_draws_new_numbers_after_a_reset(qemu, tmp_path, temporary, reset):
    suite = Suite(qemu, tmp_path, temporary)
    ended = suite.run(STALE, f"--qmpsnap-reset={reset}", "-o", "asyncio_mode=auto")
    assert (ended.code, ended.counts["passed"]) == (0, 5)
    assert f"reset: {reset}, as chosen; 1 boot(s), 4 reset(s)" in ended.out
    assert suite.left() == NOTHING
