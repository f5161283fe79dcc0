from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import anyio
import pytest

from qmpsnap.errors import ConnectFailed, LinkLost
from qmpsnap.run.session import Event, connect
from qmpsnap.testing.server import GREETING, Emit, Fail, Hangup, Raw, Return

pytestmark = pytest.mark.usefixtures("nothing_stays")


# Connecting


async def test_connect_tells_who_is_there(server):
    async with connect(server.path) as session:
        assert (session.is_unix, session.peer_pid, session.address) == (True, os.getpid(), server.path)


async def test_connect_takes_a_connected_socket_and_closes_it(server):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(server.path)
    async with connect(sock, pid=42) as session:
        assert session.peer_pid == 42
        assert await session.query("query-status") == {"status": "running"}
    assert sock.fileno() == -1


async def test_connect_takes_tcp(server):
    listener = await asyncio.start_server(server.serve_client, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with connect(f"tcp:127.0.0.1:{port}") as session:
        assert (session.is_unix, session.peer_pid) == (False, None)
        assert await session.query("query-status") == {"status": "running"}
    listener.close()


async def test_connect_says_who_may_hold_the_monitor_when_no_greeting_comes(server):
    server.greeting = None
    with pytest.raises(ConnectFailed, match="no greeting") as caught:
        async with connect(server.path, greeting_limit=0.02):
            pytest.fail("connected")
    assert "another client may be connected to the monitor" in caught.value.hint
    assert f"process {os.getpid()}" in caught.value.hint


async def test_connect_serves_a_second_client_once_the_first_has_gone(server):
    async with connect(server.path):
        with pytest.raises(ConnectFailed, match=r"no greeting.*: this process itself is connected") as caught:
            async with connect(server.path, greeting_limit=0.02):
                pytest.fail("connected")
        assert "one client at a time" in caught.value.hint
    async with connect(server.path) as session:
        await session.query("query-status")


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b'{"foo": 1}\r\n',
        b'{"QMP": {"version": {}}}\r\n',
        b"[]\r\n",
        b"\xff\xfe\r\n",
        b"\r\n",
        b"[" * 100_000 + b"\r\n",
    ],
    ids=["http", "no QMP", "no capabilities", "list", "binary", "empty", "nested"],
)
async def test_connect_says_that_it_is_no_qmp_when_the_greeting_is_wrong(server, greeting):
    server.greeting = greeting
    with pytest.raises(ConnectFailed, match="does not speak QMP"):
        async with connect(server.path):
            pytest.fail("connected")


async def test_connect_gives_up_when_half_a_greeting_comes(server):
    server.greeting = GREETING[:40]
    with pytest.raises(ConnectFailed, match="no greeting"):
        async with connect(server.path, greeting_limit=0.02):
            pytest.fail("connected")


async def test_connect_fails_when_the_server_dies_before_its_greeting(tmp_path):
    listener = await asyncio.start_unix_server(
        lambda _, writer: writer.transport.abort(), str(tmp_path / "s")
    )
    with pytest.raises(ConnectFailed, match="closed the connection before"):
        async with connect(str(tmp_path / "s")):
            pytest.fail("connected")
    listener.close()


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (Hangup(), "closed the connection before"),
        (Fail("no"), "refused our greeting"),
        (Raw(b"{]\r\n"), "refused our greeting"),
    ],
    ids=["dies", "refuses", "babbles"],
)
async def test_connect_fails_when_capabilities_are_not_agreed(server, action, text):
    server.answer("qmp_capabilities", action)
    with pytest.raises(ConnectFailed, match=text):
        async with connect(server.path):
            pytest.fail("connected")


LATE_ERROR = b'{"error": {"class": "CommandNotFound", "desc": "late"}, "id": "__qmp#00007"}\r\n'
LATE_VALUE = b'{"return": {"status": "paused"}, "id": "__qmp#00007"}\r\n'


@pytest.mark.parametrize("late", [LATE_ERROR, LATE_VALUE], ids=["error", "value"])
async def test_connect_tries_again_when_a_reply_to_the_client_before_comes_first(server, late):
    server.late = late
    async with connect(server.path) as session:
        assert await session.query("query-status") == {"status": "running"}


@pytest.mark.parametrize("late", [LATE_ERROR, LATE_VALUE], ids=["error", "value"])
async def test_connect_succeeds_when_a_reply_to_the_client_before_follows_the_greeting(server, late):
    server.answer_once("qmp_capabilities", Raw(late), Return({}))
    async with connect(server.path) as session:
        assert await session.query("query-status") == {"status": "running"}


EVENT = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n'
WITHOUT_ID = b'{"return": {}}\r\n'


@pytest.mark.parametrize(
    "first", [EVENT * 500, LATE_ERROR * 9, WITHOUT_ID + EVENT], ids=["events", "late", "both"]
)
@pytest.mark.parametrize("given", [False, True], ids=["path", "socket"])
async def test_connect_passes_over_what_is_not_for_us(server, first, given):
    server.late = first
    server.answer_once("qmp_capabilities", Raw(first), Return({}), Raw(EVENT))
    address = server.path
    if given:  # there is but one try
        address = socket.socket(socket.AF_UNIX)
        address.connect(server.path)
    async with connect(address) as session:
        assert await session.query("query-status") == {"status": "running"}
    assert [one["execute"] for one in server.received] == ["qmp_capabilities", "query-status"]


async def test_connect_listens_from_the_answer_to_its_greeting_on(server):
    server.answer_once("qmp_capabilities", Raw(EVENT), Return({}))
    server.answer("query-status", Raw(EVENT.replace(b"STOP", b"RESUME")), Return({}))
    heard: list[Event] = []
    async with connect(server.path) as session:
        with session.subscribe(heard.append):
            await session.query("query-status")
    assert [one.name for one in heard] == ["RESUME"]


async def test_connect_gives_up_when_nothing_but_events_comes(server):
    server.answer("qmp_capabilities", Raw(EVENT * 100))
    with pytest.raises(ConnectFailed, match="no answer to our greeting"):
        async with connect(server.path, greeting_limit=1):
            pytest.fail("connected")


async def test_connect_gives_up_when_capabilities_are_not_answered(server):
    server.answer("qmp_capabilities")
    with pytest.raises(ConnectFailed, match="no answer to our greeting"):
        async with connect(server.path, greeting_limit=1):
            pytest.fail("connected")


@pytest.mark.parametrize("way", ["asyncio", "anyio"])
@pytest.mark.parametrize("phase", ["backlog", "greeting", "capabilities", "body"])
async def test_connect_leaves_nothing_when_it_is_cancelled(server, phase, way):
    async def run():
        async with connect(server.path) as session:
            await session.wait_lost()

    if phase == "greeting":
        server.greeting = None
    if phase == "capabilities":
        server.answer("qmp_capabilities")
    blockers = []
    if phase == "backlog":
        server.greeting = None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(server.path + "2")
            listener.listen(0)
            blockers.append(socket.socket(socket.AF_UNIX))
            blockers[0].connect(server.path + "2")
            server.path += "2"
            await cancelled_after(run, 0.01, way)
        blockers[0].close()
        return
    await cancelled_after(run, 0.01, way)


async def cancelled_after(run, seconds, way):
    if way == "anyio":
        with anyio.move_on_after(seconds) as scope:
            await run()
        assert scope.cancelled_caught
        return
    task = asyncio.create_task(run())
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("way", ["asyncio", "anyio"])
async def test_connect_leaves_nothing_when_it_is_cancelled_at_any_step(server, way):
    async def run():
        async with connect(server.path) as session:
            await session.query("query-status")

    for steps in range(30):
        async with anyio.create_task_group() as group:
            if way == "asyncio":
                task = asyncio.create_task(run())
            else:
                group.start_soon(run)
            for _ in range(steps):
                await asyncio.sleep(0)
            if way == "asyncio":
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            else:
                group.cancel_scope.cancel()
        assert [t for t in asyncio.all_tasks() if t.get_name().startswith("qmpsnap")] == []
    async with connect(server.path, greeting_limit=30) as session:
        await session.query("query-status")


async def test_connect_ends_quietly_when_qemu_quits(server):
    server.answer("quit", Emit("SHUTDOWN", {"reason": "host-qmp-quit"}), Return(), Hangup())
    async with connect(server.path) as session:
        assert await session.change("quit") == {}
        with anyio.fail_after(30):
            await session.wait_lost()
    assert session.close_reason == "QEMU ended (host-qmp-quit)"


async def test_connect_ends_in_time_when_the_server_reads_no_more(tmp_path):
    async def deaf(_, writer):
        writer.write(GREETING)
        await _.read(1000)
        writer.write(b'{"return": {}}\r\n')
        await asyncio.sleep(30)

    tasks = set()
    listener = await asyncio.start_unix_server(
        lambda r, w: tasks.add((asyncio.create_task(deaf(r, w)), w)), str(tmp_path / "s"), limit=100
    )
    with anyio.fail_after(20):
        async with connect(str(tmp_path / "s")) as session:
            query = asyncio.create_task(session.query("query-much", {"x": "x" * 10_000_000}))
            await asyncio.sleep(0.01)
    with pytest.raises(LinkLost):
        await query
    listener.close()
    for task, writer in tasks:
        task.cancel()
        await asyncio.wait({task})
        writer.transport.abort()
