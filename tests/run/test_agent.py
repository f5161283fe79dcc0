from __future__ import annotations

import json
from contextlib import asynccontextmanager

import anyio
import pytest

from qmpsnap.errors import CommandFailed, GuestFailed
from qmpsnap.run import agent as agents
from qmpsnap.run.agent import Agent

SYNC = b"\xff"


class Guest:
    """The agent's end: answers a synchronisation, and each command with the next of `answers`."""

    def __init__(self, *answers: bytes | None, deaf: int = 0) -> None:
        self.answers = list(answers)
        self.deaf = deaf
        self.commands: list[str] = []
        self._out, self._in = anyio.create_memory_object_stream[bytes](100)

    async def send(self, item: bytes) -> None:
        for line in item.replace(SYNC, b"").splitlines():
            request = json.loads(line)
            self.commands.append(request["execute"])
            if request["execute"] == "guest-sync-delimited":
                self.deaf -= 1
                if self.deaf < 0:
                    await self._out.send(
                        SYNC + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n"
                    )
            elif (answer := self.answers.pop(0)) is None:
                self._out.close()
            else:
                for byte in (answer[:3], answer[3:]):
                    await self._out.send(byte)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._in.receive()


@asynccontextmanager
async def opened(*answers: bytes | None, deaf: int = 0):
    guest = Guest(*answers, deaf=deaf)
    with guest._out, guest._in:
        yield guest, Agent(guest)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(agents, "_SYNC_LIMIT_S", 0.02)


async def test_execute_returns_what_the_agent_returns():
    async with opened(b'{"return": {"version": "7.2"}}\n', b'{"return": 3}\r\n') as (guest, agent):
        await agent.wait_ready()
        assert await agent.execute("guest-info") == {"version": "7.2"}
        assert await agent.execute("guest-fsfreeze-thaw") == 3
    assert guest.commands == ["guest-sync-delimited", "guest-info", "guest-fsfreeze-thaw"]


async def test_wait_ready_asks_until_there_is_an_agent():
    async with opened(deaf=2) as (guest, agent):
        await agent.wait_ready()
    assert guest.commands == ["guest-sync-delimited"] * 3


async def test_execute_raises_the_agents_error():
    answer = b'{"error": {"class": "CommandNotFound", "desc": "the command guest-exec has been disabled"}}\n'
    async with opened(answer) as (_, agent):
        with pytest.raises(
            CommandFailed, match=r"the agent refuses guest-exec: .* has been disabled"
        ) as failed:
            await agent.execute("guest-exec", {"path": "/bin/sh"})
    assert (failed.value.qmp_class, failed.value.command) == ("CommandNotFound", "guest-exec")


async def test_execute_skips_an_answer_that_came_too_late():
    async with opened(b"", b'{"return": 2}\n') as (guest, agent):
        with pytest.raises(GuestFailed, match=r"did not answer guest-exec within 1 s"):
            await agent.execute("guest-exec", limit=1)
        await guest._out.send(b'{"return": 1}\n')
        assert await agent.execute("guest-info") == 2


async def test_execute_skips_the_answer_of_a_cancelled_call():
    async with opened(b"", b'{"return": 2}\n') as (guest, agent):
        with anyio.move_on_after(0.02):
            await agent.execute("guest-exec")
        await guest._out.send(b'{"return": 1}\n')
        assert await agent.execute("guest-info") == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"nonsense\n", "no JSON: b'nonsense'"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        (b"[1]\n", "neither a result nor an error"),
        (b"{}\n", "neither a result nor an error"),
        (None, "port was closed"),
    ],
)
async def test_execute_takes_no_other_answer(answer, reason):
    async with opened(answer) as (_, agent):
        with pytest.raises(GuestFailed, match=reason):
            await agent.execute("guest-info")


async def test_execute_reads_no_more_than_an_agent_may_answer(monkeypatch):
    monkeypatch.setattr(agents, "_ANSWER_BYTES", 100)
    async with opened(b"x" * 200, b'\n{"return": 2}\n') as (_, agent):
        with pytest.raises(GuestFailed, match="more than 100 bytes"):
            await agent.execute("guest-info")
