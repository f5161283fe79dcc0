from __future__ import annotations

import base64
import re
import struct
import time
from itertools import chain

import pytest

from qmpsnap.errors import GuestFailed, Unsupported
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.shell import MIB, Ran, Shell
from qmpsnap.testing.wake import wake, wake_by_agent, wake_guest
from qmpsnap.vm import VM


class Recorder(Shell):
    """Runs nothing, and remembers what it was to run."""

    def __init__(self, *statuses: int) -> None:
        self.scripts: list[str] = []
        self.statuses = list(statuses)

    async def execute(self, script: str, *, limit: float = 30.0, most: int = MIB, stdin: bytes = b"") -> Ran:
        self.scripts.append(script)
        return Ran(self.statuses.pop(0) if self.statuses else 0, b"")


async def test_wake_gives_each_guest_another_seed_and_sets_the_clock():
    shells = Recorder(), Recorder()
    earlier = time.time_ns()
    for shell in shells:
        await wake(shell)
    programs = [
        base64.b64decode(re.findall(r"echo (\S+) \|", script)[0])
        for script in chain(*(shell.scripts for shell in shells))
    ]
    times = [struct.unpack_from("<qq", program, len(program) - 64 - 8 - 16) for program in programs]
    assert programs[0][: -64 - 8 - 16] == programs[1][: -64 - 8 - 16]
    assert programs[0][-64:] != programs[1][-64:]
    assert [earlier <= s * 10**9 + ns <= time.time_ns() for s, ns in times] == [True, True]


async def test_wake_sets_only_the_clock_or_the_seed():
    clock, seed = Recorder(), Recorder()
    await wake(clock, seed=False)
    await wake(seed, clock=False)
    assert [script[:13] for script in clock.scripts] == ["date -u -s @1"]
    (program,) = (base64.b64decode(re.findall(r"echo (\S+) \|", script)[0]) for script in seed.scripts)
    assert program[-64 - 8 - 13 : -64 - 8] == b"/dev/urandom\0"  # no time between path and pool


async def test_wake_sets_what_it_is_asked_for():
    shell = Recorder()
    await wake(shell, clock=False, seed=False, hostname="it's", macs={"eth0": "52:54:00:00:00:01"})
    hostname, mac = shell.scripts
    assert hostname == "hostname 'it'\"'\"'s'"
    assert mac.split(" && ") == [
        "ip link set dev eth0 down",
        "ip link set dev eth0 address 52:54:00:00:00:01",
        "ip link set dev eth0 up",
    ]


async def test_wake_says_when_the_guest_takes_no_seed():
    with pytest.raises(GuestFailed, match="ended with status 1"):
        await wake(Recorder(1))


@pytest.mark.parametrize("hook", [wake_guest, wake_by_agent])
async def test_wake_refuses_a_machine_whose_ports_it_does_not_know(hook):
    with pytest.raises(Unsupported, match="not started here"):
        await hook(VM(FakeTarget(graph(vda="base*"))))
