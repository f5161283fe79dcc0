from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tracemalloc
from typing import Any

import anyio
import pytest
import structlog.testing
from qemu.qmp import Message, QMPClient, Runstate
from qemu.qmp.qmp_client import ExecInterruptedError

from qmpsnap.errors import Changed, CommandFailed, ConnectFailed, LinkLost, Malformed, TargetError
from qmpsnap.run.session import adopt, connect
from qmpsnap.run.session.change import Limits, Outcome
from qmpsnap.run.session.client import Reply
from qmpsnap.testing.server import GREETING, Emit, Fail, Hangup, Raw, Return, Wait

pytestmark = pytest.mark.usefixtures("nothing_stays")


# Asking


async def test_query_sends_arguments_given_either_way(server):
    server.compute("echo", lambda arguments: arguments)
    async with connect(server.path) as session:
        assert await session.query("echo", {"node-name": "a"}, flat=True) == {"node-name": "a", "flat": True}


async def test_reply_may_come_after_it_was_given_up():
    reply = Reply()
    reply.cancel()
    await reply.put(Message({"return": {}}))
    reply.put_nowait(ExecInterruptedError("Disconnected"))
    assert reply.cancelled()


async def test_trace_sees_every_command_before_it_is_sent(server):
    seen = []
    async with connect(server.path) as session:
        session.trace = lambda command: seen.append((command, list(server.commands)))
        await session.query("query-status")
        with pytest.raises(CommandFailed):
            await session.change("stop", {"a": 1})
    assert seen == [
        ({"execute": "query-status", "arguments": {}}, []),
        ({"execute": "stop", "arguments": {"a": 1}}, ["query-status"]),
    ]


@pytest.mark.parametrize("verb", ["query", "change"])
async def test_command_failed_carries_what_qemu_said(server, verb):
    server.answer("job-cancel", Fail("Job not found", "DeviceNotFound"))
    async with connect(server.path) as session:
        with pytest.raises(CommandFailed) as caught:
            await getattr(session, verb)("job-cancel", {"id": "j"})
    error = caught.value
    assert (error.command, error.arguments, error.qmp_class, error.desc) == (
        "job-cancel",
        {"id": "j"},
        "DeviceNotFound",
        "Job not found",
    )
    assert error.changed is Changed.NO


async def test_query_takes_a_reply_of_many_megabytes(server):
    name = "node" * 2_000_000
    server.answer("query-block", Return([name]))
    async with connect(server.path) as session:
        assert await session.query("query-block") == [name]


async def test_query_ends_at_its_limit_and_the_session_goes_on(server):
    go = asyncio.Event()
    server.answer_once("query-status", Wait(go), Return({"status": "late"}))
    async with connect(server.path, reply_limit=0.01) as session:
        with pytest.raises(TargetError, match=r"'query-status' within 0\.01 s") as caught:
            await session.query("query-status")
        assert f"process {os.getpid()}" in caught.value.hint
        go.set()
        session._limits = Limits()
        assert await session.query("query-status") == {"status": "running"}


async def test_query_ends_at_once_when_it_is_cancelled(server):
    go = asyncio.Event()
    server.answer_once("query-status", Wait(go), Fail("late"))
    async with connect(server.path) as session:
        with anyio.move_on_after(0.01) as scope:
            await session.query("query-status")
        assert scope.cancelled_caught
        go.set()
        assert await session.query("query-status") == {"status": "running"}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"id": "__qmp#00000"}\r\n', Malformed),
        (b'{"error": {"class": "GenericError"}, "id": "__qmp#00000"}\r\n', Malformed),
        (b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n', Malformed),
        (b"what?\r\n", Malformed),
        (b"\xff\xff\r\n", Malformed),
        (b"3\r\n", Malformed),
        (b"[" * 100_000 + b"\r\n", Malformed),
    ],
    ids=["neither", "half an error", "no id", "no JSON", "binary", "number", "nested"],
)
async def test_reply_that_is_no_qmp_is_malformed(server, data, error):
    server.answer("stop", Raw(data))
    server.answer("query-x", Raw(data))
    for verb, command, changed in (("query", "query-x", Changed.NO), ("change", "stop", Changed.UNKNOWN)):
        async with connect(server.path) as session:
            with anyio.fail_after(30), pytest.raises(error) as caught:
                await getattr(session, verb)(command)
        assert caught.value.changed is changed


async def test_half_a_reply_is_a_lost_link_when_the_server_dies(server):
    server.answer("stop", Raw(b'{"return": {"a'), Hangup())
    async with connect(server.path) as session:
        with anyio.fail_after(30), pytest.raises(LinkLost, match="in the middle of a message"):
            await session.change("stop")


async def test_every_call_ends_when_the_server_dies_with_calls_open(server):
    server.answer("query-block")
    server.answer("transaction")
    async with connect(server.path) as session:
        calls = [asyncio.create_task(session.query("query-block")) for _ in range(3)]
        calls.append(asyncio.create_task(session.change("transaction")))
        await server.wait_for("transaction")
        server.hang_up()
        with anyio.fail_after(30):
            ends = await asyncio.gather(*calls, return_exceptions=True)
        lost = [end for end in ends if isinstance(end, LinkLost)]
        assert [end.changed for end in lost] == [Changed.NO] * 3 + [Changed.UNKNOWN]
        assert lost[3].step == "'transaction'"


async def test_commands_fail_at_once_when_the_link_was_lost(server):
    async with connect(server.path) as session:
        server.hang_up()
        await session.wait_lost()
        for call in (session.query("query-status"), session.change("stop")):
            with pytest.raises(LinkLost) as caught:
                await call
            assert caught.value.changed is Changed.NO
    assert server.commands == []
    assert session.close_reason == "the other side closed it"


async def test_commands_fail_when_the_block_has_ended(server):
    async with connect(server.path) as session:
        pass
    with pytest.raises(LinkLost, match="closed"):
        await session.query("query-status")


async def test_change_sends_nothing_when_it_was_cancelled_before(server):
    async with connect(server.path) as session:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.change("stop")
    assert server.commands == []


async def test_change_is_sent_once_and_answered_when_it_is_cancelled(server):
    go = asyncio.Event()
    server.answer("stop", Wait(go), Return())
    async with connect(server.path) as session:
        change = session.begin("stop")
        asyncio.get_running_loop().call_later(0.02, go.set)
        with anyio.move_on_after(0.001) as scope:
            await change.reply()
        assert scope.cancelled_caught
        assert change.outcome is Outcome.DONE
        assert await session.query("query-status") == {"status": "running"}
    assert server.commands == ["stop", "query-status"]


async def test_change_says_unknown_when_the_server_dies_after_a_cancellation(server):
    server.answer("stop")
    async with connect(server.path) as session:
        asyncio.get_running_loop().call_later(0.02, server.hang_up)
        change = session.begin("stop")
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.005, scope.cancel)
            with pytest.raises(LinkLost) as caught:
                await change.reply()
        assert (caught.value.changed, change.outcome) == (Changed.UNKNOWN, Outcome.UNKNOWN)


# Hearing


async def test_subscribe_hears_an_event_before_the_reply_behind_it(server):
    server.answer("job-cancel", Emit("STOP", {"a": 1}, 10.25), Return())
    heard: list[Any] = []
    async with connect(server.path) as session:
        with session.subscribe(heard.append):
            await session.change("job-cancel")
            assert [(event.name, event.data, event.timestamp) for event in heard] == [
                ("STOP", {"a": 1}, 10.25)
            ]


async def test_subscribe_survives_a_sink_that_raises(server, nothing_stays):
    def sink(event):
        raise RuntimeError(event.name)

    heard: list[Any] = []
    server.answer("job-cancel", Emit("STOP"), Return())
    async with connect(server.path) as session:
        with session.subscribe(sink), session.subscribe(heard.append):
            await session.change("job-cancel")
            assert await session.query("query-status") == {"status": "running"}
    assert [str(context["exception"]) for context in nothing_stays] == ["STOP"]
    nothing_stays.clear()
    assert len(heard) == 1


async def test_unknown_and_broken_events_do_no_harm(server):
    async with connect(server.path) as session:
        server.send(
            b'{"event": "COMET"}\r\n{"event": 5}\r\n{"event": "STOP", "data": 3, "timestamp": null}\r\n'
        )
        server.send(b'{"return": {}, "id": "never sent"}\r\n')
        assert await session.query("query-status") == {"status": "running"}


async def test_events_that_nobody_reads_are_not_kept(server):
    burst = [Emit("BLOCK_JOB_ERROR", {"device": f"job{n}", "operation": "write"}, 1.0) for n in range(1000)]
    async with connect(server.path) as session:
        await session.query("query-status")
        tracemalloc.start()
        for _ in range(3):
            server.emit(*burst)
            await session.query("query-status")
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert session._client.events.history == ()
    assert kept < 1_000_000


# A client of the embedder


@pytest.fixture
async def client(server):
    client = QMPClient("embedder")
    await client.connect(server.path)
    yield client
    with contextlib.suppress(EOFError, OSError):
        await client.disconnect()


async def test_adopt_refuses_a_client_that_is_not_connected():
    with pytest.raises(ConnectFailed, match="IDLE"):
        async with adopt(QMPClient("embedder")):
            pytest.fail("adopted")


async def test_adopt_leaves_the_client_as_it_was(server, client):
    server.answer("stop", Emit("STOP"), Return())
    before = (list(client._listeners), client.readbuflen, client.name, client.events.event_filter)
    heard: list[Any] = []
    async with adopt(client) as session:
        assert (session.is_unix, session.peer_pid) == (True, os.getpid())
        with session.subscribe(heard.append):
            await session.change("stop")
    assert [event.name for event in heard] == ["STOP"]
    assert [event["event"] for event in client.events.history] == ["STOP"]
    assert (await client.events.get())["event"] == "STOP"
    assert (list(client._listeners), client.readbuflen, client.name, client.events.event_filter) == before
    assert client.runstate is Runstate.RUNNING
    assert await client.execute("query-status") == {"status": "running"}


async def test_adopt_tells_soon_that_the_link_was_lost(server, client):
    server.answer("transaction")
    async with adopt(client) as session:
        call = asyncio.create_task(session.change("transaction"))
        await server.wait_for("transaction")
        server.hang_up()
        with anyio.fail_after(30):
            await session.wait_lost()
            with pytest.raises(LinkLost):
                await call
    assert client.runstate is Runstate.DISCONNECTING


async def test_adopt_tells_of_a_loss_that_came_before_its_watch_began(server, client):
    async with adopt(client) as session:
        client._schedule_disconnect()  # what its reader does at EOF; no await has come yet
        with anyio.fail_after(30):
            await session.wait_lost()


async def test_change_says_that_nothing_was_sent_when_the_client_was_just_disconnecting(server, client):
    async with adopt(client) as session:
        client._schedule_disconnect()
        with pytest.raises(LinkLost) as caught:
            await session.change("stop")
        assert caught.value.changed is Changed.NO


async def test_adopt_stays_lost_when_the_embedder_connects_the_client_again(server, client):
    async with adopt(client) as session:
        await client.disconnect()
        await client.connect(server.path)
        with anyio.fail_after(30):
            await session.wait_lost()
        with pytest.raises(LinkLost):
            await session.query("query-status")
    assert await client.execute("query-status") == {"status": "running"}


async def test_adopt_twice_at_a_time_does_no_harm(server, client):
    async with adopt(client) as first, adopt(client) as second:
        assert await first.query("query-status") == await second.query("query-status")


async def test_loss_is_logged_once(server):
    with structlog.testing.capture_logs() as logs:
        async with connect(server.path) as session:
            server.hang_up()
            await session.wait_lost()
        async with connect(server.path):
            pass
    assert [entry["event"] for entry in logs].count("session.lost") == 1


# Passing a descriptor


async def test_change_passes_a_descriptor_that_stays_the_callers(tmp_path):
    file = tmp_path / "m"
    file.write_bytes(b"the file itself")
    arrived: list[bytes] = []
    ours, qemus = socket.socketpair()

    def qemu():
        qemus.sendall(GREETING)
        commands = []
        while "getfd" not in commands:
            heard = b""
            while not heard.endswith(b"}"):
                data, descriptors, *_ = socket.recv_fds(qemus, 65536, 4)
                heard += data
                for one in descriptors:
                    arrived.append(os.pread(one, 99, 0))
                    os.close(one)
            command = json.loads(heard)
            commands.append(command["execute"])
            qemus.sendall(json.dumps({"return": {}, "id": command.get("id")}).encode() + b"\r\n")
        return commands

    answering = asyncio.create_task(asyncio.to_thread(qemu))
    descriptor = os.open(file, os.O_RDONLY)
    try:
        async with connect(ours) as session:
            await session.change("getfd", {"fdname": "x"}, fd=descriptor)
            assert await answering == ["qmp_capabilities", "getfd"]
        assert os.pread(descriptor, 3, 0) == b"the"
    finally:
        os.close(descriptor)
        qemus.close()
    assert arrived == [b"the file itself"]


async def test_change_lets_qemu_say_that_no_descriptor_came_where_none_can(server):
    server.answer("getfd", Fail("No file descriptor supplied via SCM_RIGHTS"))
    async with connect(server.path) as session:
        with pytest.raises(CommandFailed, match="No file descriptor"):
            await session.change("getfd", {"fdname": "x"}, fd=1 << 20)
