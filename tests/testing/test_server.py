from __future__ import annotations

import asyncio
import json

import pytest

from qmpsnap.testing.jobs import ScriptedJobs, job_turns
from qmpsnap.testing.server import GREETING, Emit, Fail, Hangup, Raw, Return, Wait, serve


@pytest.fixture
async def server(tmp_path):
    async with serve(str(tmp_path / "s")) as server:
        yield server


class Wire:
    """A client that sees the bytes."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def say(self, data):
        self.writer.write(data)
        return json.loads(await self.hear())

    async def hear(self):
        return await asyncio.wait_for(self.reader.readline(), 60)


@pytest.fixture
async def wire(server):
    reader, writer = await asyncio.open_unix_connection(server.path)
    wire = Wire(reader, writer)
    assert await wire.hear() == GREETING
    yield wire
    writer.close()
    await writer.wait_closed()


async def test_server_replies_with_the_id_of_the_command(server, wire):
    server.answer("query-status", Return({"running": True}))
    assert await wire.say(b'{"execute": "query-status", "id": 7}') == {"return": {"running": True}, "id": 7}


async def test_server_knows_no_command_without_an_answer(server, wire):
    error = (await wire.say(b'{"execute": "stop"}'))["error"]
    assert error == {"class": "CommandNotFound", "desc": "The command stop has not been found"}


async def test_server_takes_commands_that_come_in_pieces_and_without_newlines(server, wire):
    server.answer("stop", Return())
    wire.writer.write(b'{"execute": "stop"}{"exe')
    await wire.hear()
    await wire.say(b'cute": "stop"}')
    assert server.commands == ["stop", "stop"]


async def test_server_acts_in_order_and_once_before_always(server, wire):
    server.answer("stop", Return("always"))
    server.answer_once("stop", Emit("STOP", {"a": 1}, 10.5), Raw(b"raw\n"), Fail("once"))
    event = {"timestamp": {"seconds": 10, "microseconds": 500000}, "event": "STOP", "data": {"a": 1}}
    assert await wire.say(b'{"execute": "stop"}') == event
    assert await wire.hear() == b"raw\n"
    assert json.loads(await wire.hear())["error"] == {"class": "GenericError", "desc": "once"}
    assert (await wire.say(b'{"execute": "stop"}'))["return"] == "always"


async def test_server_computes_replies_from_arguments(server, wire):
    server.compute("echo", lambda arguments: arguments)
    assert (await wire.say(b'{"execute": "echo", "arguments": {"a": 1}}'))["return"] == {"a": 1}


async def test_server_waits_and_hangs_up_on_request(server, wire):
    go = asyncio.Event()
    server.answer("quit", Return(), Wait(go), Hangup())
    assert (await wire.say(b'{"execute": "quit"}'))["return"] == {}
    go.set()
    assert await wire.hear() == b""


async def test_server_greets_a_second_client_when_the_first_has_gone(server, wire):
    reader, writer = await asyncio.open_unix_connection(server.path)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readline(), 0.01)
    wire.writer.close()
    assert await asyncio.wait_for(reader.readline(), 60) == GREETING
    writer.close()
    await writer.wait_closed()


async def test_wait_for_returns_when_the_command_has_come(server, wire):
    waiter = asyncio.create_task(server.wait_for("stop", count=2))
    await wire.say(b'{"execute": "stop"}')
    assert not waiter.done()
    await wire.say(b'{"execute": "stop"}')
    await asyncio.wait_for(waiter, 60)


async def test_scripted_jobs_answer_with_what_was_put(server, wire):
    jobs = ScriptedJobs(server)
    jobs.put("a", "ready", offset=8)
    jobs.put("b", "concluded", error="no")
    jobs.remove("a")
    reply = await wire.say(b'{"execute": "query-jobs"}')
    assert [(job["id"], job["status"], job["error"]) for job in reply["return"]] == [("b", "concluded", "no")]


def test_job_turns_are_a_second_apart():
    expected = [
        Emit("JOB_STATUS_CHANGE", {"id": "a", "status": state}, at) for state, at in (("x", 5), ("y", 6))
    ]
    assert job_turns("a", "x", "y", at=5) == expected
