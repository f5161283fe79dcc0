from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from qmpsnap.errors import Busy, Malformed
from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.query_guard import QueryGuard
from qmpsnap.run.session import connect
from qmpsnap.testing.jobs import ScriptedJobs, job_turns
from qmpsnap.testing.server import Return

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from qmpsnap.testing.server import QmpServer

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]


def schema(*arguments: str) -> list[dict[str, object]]:
    """What query-qmp-schema says of block-stream, by numbered types as QEMU does."""
    members = [{"name": name, "type": "str"} for name in arguments]
    return [
        {"name": "block-stream", "meta-type": "command", "arg-type": "17", "ret-type": "0"},
        {"name": "17", "meta-type": "object", "members": members},
        {"name": "0", "meta-type": "object", "members": []},
    ]


class Streams(ScriptedJobs):
    """Jobs of which each is a stream."""

    def jobs(self) -> list[dict[str, object]]:
        return [one | {"type": "stream"} for one in super().jobs()]


@pytest.fixture
def jobs(server: QmpServer) -> Streams:
    server.answer("query-qmp-schema", Return(schema("job-id", "device", "base-node")))
    return Streams(server)


@pytest.fixture
async def watcher(server: QmpServer, jobs: Streams) -> AsyncIterator[QueryGuard]:
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        streams = QueryGuard(session, monitor)
        with session.subscribe(streams.note):
            yield streams


async def heard(watcher: QueryGuard) -> None:
    await watcher._session.query("query-jobs")


async def test_check_asks_nothing_while_no_job_has_concluded(server: QmpServer, watcher: QueryGuard) -> None:
    server.emit(*job_turns("qmpsnap-stream-keep-00000000", "created", "running"))
    await heard(watcher)
    before = len(server.commands)
    await watcher.check()
    assert len(server.commands) == before


async def test_check_refuses_while_a_concluded_stream_waits_for_its_dismissal(
    server: QmpServer, jobs: Streams, watcher: QueryGuard
) -> None:
    jobs.put("s", "concluded")
    server.emit(*job_turns("s", "running", "concluded"))
    await heard(watcher)
    with pytest.raises(Busy) as caught:
        await watcher.check()
    assert caught.value.job_id == "s"
    assert "query-named-block-nodes" not in server.commands


async def test_check_passes_again_when_the_job_was_dismissed(server: QmpServer, watcher: QueryGuard) -> None:
    server.emit(*job_turns("s", "running", "concluded", "null"))
    await heard(watcher)
    before = len(server.commands)
    await watcher.check()
    assert len(server.commands) == before


async def test_check_passes_when_the_concluded_job_is_no_stream(server: QmpServer) -> None:
    server.answer("query-qmp-schema", Return(schema("device")))
    jobs = ScriptedJobs(server)  # mirrors
    jobs.put("m", "concluded")
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        await QueryGuard(session, monitor).check()
    assert "query-qmp-schema" in server.commands


async def test_check_refuses_a_stream_that_had_concluded_before_we_came(
    server: QmpServer, jobs: Streams
) -> None:
    jobs.put("s", "concluded")
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        with pytest.raises(Busy):
            await QueryGuard(session, monitor).check()


async def test_check_passes_on_a_qemu_without_the_fault_and_asks_for_its_schema_once(
    server: QmpServer, jobs: Streams
) -> None:
    server.answer("query-qmp-schema", Return(schema("device", "backing-mask-protocol")))
    jobs.put("s", "concluded")
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        streams = QueryGuard(session, monitor)
        await streams.check()
        await streams.check()
    assert server.commands.count("query-qmp-schema") == 1


@pytest.mark.parametrize("answer", [[], [{"name": "block-stream"}]])
async def test_check_believes_the_worst_of_a_schema_that_says_nothing(
    server: QmpServer, jobs: Streams, answer: object
) -> None:
    server.answer("query-qmp-schema", Return(answer))
    jobs.put("s", "concluded")
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        with pytest.raises(Busy):
            await QueryGuard(session, monitor).check()


async def test_check_does_not_pass_where_the_schema_has_another_shape(
    server: QmpServer, jobs: Streams
) -> None:
    server.answer("query-qmp-schema", Return({}))
    jobs.put("s", "concluded")
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        with pytest.raises(Malformed, match="query-qmp-schema"):
            await QueryGuard(session, monitor).check()


class Creations(ScriptedJobs):
    """Jobs of which each makes an image."""

    def jobs(self) -> list[dict[str, object]]:
        return [one | {"type": "create"} for one in super().jobs()]


@pytest.fixture
def creations(server: QmpServer) -> Creations:
    server.answer("query-qmp-schema", Return(schema("device")))
    jobs = Creations(server)
    jobs.put("c", "running")
    return jobs


async def test_check_waits_while_an_image_is_made(server: QmpServer, creations: Creations) -> None:
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        streams = QueryGuard(session, monitor)
        with session.subscribe(streams.note):
            async with anyio.create_task_group() as group:
                group.start_soon(streams.check)
                await heard(streams)
                creations.put("c", "concluded")
                server.emit(*job_turns("c", "waiting", "pending", "concluded"))
    assert "query-named-block-nodes" not in server.commands


async def test_check_waits_for_an_image_that_was_begun_after_we_came(
    server: QmpServer, creations: Creations
) -> None:
    creations.remove("c")
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        streams = QueryGuard(session, monitor, patience_s=0.01)
        with session.subscribe(streams.note):
            creations.put("c", "running")
            server.emit(*job_turns("c", "created", "running"))
            await heard(streams)
            with pytest.raises(Busy, match="'c' is creating an image"):
                await streams.check()


async def test_check_refuses_when_an_image_takes_too_long(server: QmpServer, creations: Creations) -> None:
    del creations
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        with pytest.raises(Busy, match="'c' is creating an image") as caught:
            await QueryGuard(session, monitor, patience_s=0.01).check()
    assert (caught.value.job_id, caught.value.hint) == ("c", "wait until it ends")


async def test_check_asks_nothing_of_a_job_of_ours(server: QmpServer, watcher: QueryGuard) -> None:
    server.emit(*job_turns("qmpsnap-mirror-copy-00000000", "created", "running"))
    await heard(watcher)
    before = len(server.commands)
    await watcher.check()
    assert len(server.commands) == before
