from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from qmpsnap.errors import CommandFailed, ConnectFailed, InvalidTarget, LinkLost, TargetExists
from qmpsnap.run.session import connect, recording
from qmpsnap.testing.replay import replay
from qmpsnap.testing.server import Emit, Return, serve

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def record(tmp_path):
    """A session with two queries, a change whose events surround its reply, and a secret."""
    file = str(tmp_path / "record")
    async with serve(str(tmp_path / "qemu")) as server:
        server.answer_once("query-status", Return({"status": "running"}))
        server.answer("query-status", Return({"status": "paused"}))
        server.answer("stop", Emit("STOP", {}, 1.5), Return(), Emit("LATE", {"n": 1}, 2.5))
        server.answer("object-add", Return())
        with recording(file) as recorder:
            async with connect(server.path, recorder=recorder) as session:
                await session.query("query-status")
                await session.change("stop")
                await session.change("object-add", {"qom-type": "secret", "id": "s", "data": "x"})
                await session.query("query-status")
    return file


async def test_replay_gives_the_recorded_replies_and_events_in_their_places(record, tmp_path):
    events = []
    async with replay(record, tmp_path / "s", patience=0.02) as server:
        async with connect(server.path) as session:
            with session.subscribe(lambda event: events.append((event.name, event.timestamp))):
                assert await session.query("query-status") == {"status": "running"}
                assert events == []
                assert await session.change("stop") == {}
                await session.change("object-add", {"qom-type": "secret", "id": "s", "data": "another"})
                assert await session.query("query-status") == {"status": "paused"}
        await server.played.wait()
    assert events == [("STOP", 1.5), ("LATE", 2.5)]
    assert server.refused == []


async def test_replay_says_what_was_expected_when_another_command_comes(record, tmp_path):
    async with replay(record, tmp_path / "s", patience=0.02) as server, connect(server.path) as session:
        await session.query("query-status")
        with pytest.raises(CommandFailed, match=r"no cont \{\} here: expected stop \{\}"):
            await session.change("cont")
        assert await session.change("stop") == {}  # it goes on where it was
        with pytest.raises(CommandFailed, match=r'expected object-add .*"data": "\*\*\*"'):
            await session.change("object-add", {"qom-type": "secret", "id": "t", "data": "x"})
    assert len(server.refused) == 2


async def test_replay_passes_over_queries_and_repeats_their_replies(record, tmp_path):
    async with replay(record, tmp_path / "s", patience=0.02) as server, connect(server.path) as session:
        await session.change("stop")  # without the query before it
        assert await session.query("query-status") == {"status": "running"}  # once more than recorded
        await session.change("object-add", {"qom-type": "secret", "id": "s", "data": "x"})
        for _ in range(2):
            assert await session.query("query-status") == {"status": "paused"}
        with pytest.raises(CommandFailed, match="the record has ended"):
            await session.change("stop")


async def test_replay_takes_commands_that_come_together_in_any_order(record, tmp_path):
    async with replay(record, tmp_path / "s", patience=0.02) as server, connect(server.path) as session:
        stopped = asyncio.create_task(session.change("stop"))
        await asyncio.sleep(0)
        assert await session.query("query-status") == {"status": "running"}
        assert await stopped == {}


async def test_replay_passes_over_a_query_that_was_sent_before_the_reply_to_another(tmp_path):
    file = str(tmp_path / "r")
    async with serve(str(tmp_path / "qemu")) as server:
        server.answer("query-status", Return({"status": "running"}))
        server.answer("query-kvm", Return({}))
        with recording(file) as recorder:
            async with connect(server.path, recorder=recorder) as session:
                await session.ask(("query-status", {}), ("query-kvm", {}))
    async with replay(file, tmp_path / "s", patience=0.02) as replayed, connect(replayed.path) as session:
        assert await session.query("query-status") == {"status": "running"}


async def test_replay_gives_each_client_the_next_session_and_none_after_the_last(record, tmp_path):
    twice = tmp_path / "twice"
    first, *lines = Path(record).read_text().splitlines(keepends=True)
    twice.write_text("".join([first, *lines, *lines]))
    async with replay(twice, tmp_path / "s") as server:
        for _ in range(2):
            assert not server.played.is_set()
            async with connect(server.path) as session:
                assert await session.query("query-status") == {"status": "running"}
        await server.played.wait()
        with pytest.raises(ConnectFailed):
            async with connect(server.path):
                pytest.fail("connected")


async def test_replay_of_a_record_that_was_cut_ends_where_it_ends(record, tmp_path):
    data = Path(record).read_bytes()
    (tmp_path / "cut").write_bytes(data[: data.index(b'"LATE"')])
    async with replay(tmp_path / "cut", tmp_path / "s") as server, connect(server.path) as session:
        await session.query("query-status")
        await session.change("stop")
        await session.wait_lost()
        with pytest.raises(LinkLost):
            await session.query("query-status")


async def test_replay_bears_clients_that_send_no_qmp(record, tmp_path):
    async with replay(record, tmp_path / "s", patience=0.02) as server:
        for data in (b"no json\n", b"\xff\n", b"[1] 2 {}", b"[" * 100_000, b'{"execute": ["x"], "id": {}}'):
            reader, writer = await asyncio.open_unix_connection(server.path)
            writer.write(data)
            writer.write_eof()
            with suppress(ConnectionResetError):
                await reader.read()
            writer.close()
    assert not (tmp_path / "s").exists()


async def test_replay_leaves_a_socket_alone_that_is_there_already(record, tmp_path):
    async with serve(str(tmp_path / "s")) as qemu:
        with pytest.raises(TargetExists, match="exists"):
            async with replay(record, tmp_path / "s"):
                pytest.fail("served")
        async with connect(qemu.path) as session:
            assert await session.query("query-commands") == []


async def test_replay_refuses_what_is_no_record_or_cannot_be_read(record, tmp_path):
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "fifo")
    for file in ("text", "none", "fifo"):
        with pytest.raises(InvalidTarget):
            async with replay(tmp_path / file, tmp_path / "s"):
                pytest.fail("served")
    with pytest.raises(InvalidTarget, match="cannot create the socket"):
        async with replay(record, tmp_path / "none" / "s"):
            pytest.fail("served")
