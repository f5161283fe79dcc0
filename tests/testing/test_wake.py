from __future__ import annotations

import base64
import re
import struct

import pytest

from qmpsnap.errors import GuestFailed, Unsupported
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.shell import MIB, Ran, Shell
from qmpsnap.testing.wake import seeder, wake, wake_by_agent, wake_guest
from qmpsnap.vm import VM


class Recorder(Shell):
    """Runs nothing, and remembers what it was to run."""

    def __init__(self, *statuses: int) -> None:
        self.scripts: list[str] = []
        self.statuses = list(statuses)

    async def execute(self, script: str, *, limit: float = 30.0, most: int = MIB) -> Ran:
        self.scripts.append(script)
        return Ran(self.statuses.pop(0) if self.statuses else 0, b"")


def test_seeder_is_a_program_that_ends_with_its_data():
    program = seeder(b"0123456789abcdef")
    kind, machine, entry = struct.unpack_from("<HH4xQ", program, 16)
    offset, address, size = struct.unpack_from("<QQ8xQ", program, 64 + 8)
    assert (program[:4], kind, machine, offset, size) == (b"\x7fELF", 2, 62, 0, len(program))
    assert program[entry - address] == 0xB8  # mov eax, ...
    assert program.endswith(b"/dev/urandom\0" + struct.pack("<ii", 128, 16) + b"0123456789abcdef")


async def test_wake_gives_each_guest_another_seed_and_sets_the_clock():
    shells = Recorder(), Recorder()
    for shell in shells:
        await wake(shell)
    programs = [base64.b64decode(re.findall(r"echo (\S+) \|", shell.scripts[0])[0]) for shell in shells]
    assert programs[0][:-64] == programs[1][:-64]
    assert programs[0][-64:] != programs[1][-64:]
    assert [shell.scripts[1].startswith("date -u -s @") for shell in shells] == [True, True]


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
