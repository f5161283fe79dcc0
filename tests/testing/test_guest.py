"""The guest's end of its port, played by the test; a real guest is in `integration/test_guest.py`."""

from __future__ import annotations

from collections import deque

import anyio
import pytest

from qmpsnap.errors import GuestFailed
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.initramfs import STARTED


class Port:
    """The agent's end: it begins the script that ends its guest, and sends `then` in place of an answer.

    Attributes:
        boots: Ids of the boots, the present one first.
    """

    def __init__(self, *then: str) -> None:
        self.boots = ["first", "second"]
        self._then = then
        self._lines: deque[str] = deque()
        self._closed = False

    async def send(self, data: bytes) -> None:
        text = data.decode().strip("\x04\0")
        if not text:
            return
        token, *_ = text.split(" ")
        if "boot_id" in text:
            self._lines.append(f"{token} 0 {self.boots[0]}")
            return
        del self.boots[0]
        for line in self._then:
            self._lines.append(line.replace("TOKEN", token))
        self._closed = not self._then or STARTED not in self._then

    async def receive(self) -> bytes:
        if self._lines:
            return f"{self._lines.popleft()}\n".encode()
        if self._closed:
            raise anyio.EndOfStream
        await anyio.sleep_forever()
        raise AssertionError


def guest(port: Port) -> Guest:
    return Guest(port)  # type: ignore[arg-type]


async def test_reset_returns_although_the_guest_reboots_before_it_has_answered():
    port = Port("TOKEN begin", STARTED)
    await guest(port).reset()
    assert port.boots == ["second"]


async def test_poweroff_returns_although_the_port_is_closed_before_the_answer():
    await guest(Port("TOKEN begin")).poweroff()


async def test_poweroff_fails_when_the_port_is_closed_before_the_script_has_begun():
    with pytest.raises(GuestFailed, match="port was closed"):
        await guest(Port()).poweroff()


async def test_command_fails_when_the_agent_starts_again_before_the_answer():
    with pytest.raises(GuestFailed, match="was killed, and has started again, during 'true'"):
        await guest(Port("TOKEN begin", STARTED)).run("true")
