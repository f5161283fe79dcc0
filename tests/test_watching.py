from __future__ import annotations

import asyncio
import math

import pytest

import qmpsnap
from qmpsnap.errors import LinkLost, Malformed
from qmpsnap.model.graph import Graph
from qmpsnap.testing.server import Emit, Return, Wait, serve
from qmpsnap.watching import Overview
from tests.cli.conftest import disks, stands

pytestmark = pytest.mark.timeout(60)
GRAPH = "query-named-block-nodes"


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr("qmpsnap.watching._SOONEST", 0.005)
    # However long a graph was read on a busy machine, it may be read again at once.
    monkeypatch.setattr("qmpsnap.watching._SHARE_ON_EVENTS", math.inf)


@pytest.fixture
async def server(tmp_path):
    async with serve(str(tmp_path / "s")) as scripted:
        disks(scripted, vda=("/d/top", "/d/base"))
        for command in ("query-jobs", "query-block-jobs", "query-commands", "query-qmp-schema"):
            scripted.answer(command, Return([]))
        stands(scripted)
        yield scripted


@pytest.fixture
async def overviews(server):
    async with (
        qmpsnap.connect(server.path, shared_fs=False) as vm,
        vm.watch(interval=0.01) as overviews,
    ):
        yield overviews


def runs(server, offset, status="running", kind="commit"):
    job = {"id": "j", "type": kind, "status": status, "current-progress": offset, "total-progress": 100}
    server.answer("query-jobs", Return([job]))


def changed(status):
    return Emit("JOB_STATUS_CHANGE", {"id": "j", "status": status})


async def until(overviews, wanted):
    async for overview in overviews:
        if wanted(overview):
            return overview
    raise AssertionError


async def test_watch_yields_the_state_the_chains_and_no_jobs(overviews):
    overview = await anext(overviews)
    assert (overview.status.state, overview.graph.chains()) == ("running", {"vda": ("/d/top", "/d/base")})
    assert (overview.jobs, overview.events, overview.unread, overview.silent_s) == ((), (), "", 0)


async def test_watch_yields_again_after_an_event(server, overviews):
    await anext(overviews)
    stands(server, "paused")
    server.emit(Emit("STOP", {}, 1.5))
    overview = await until(overviews, lambda overview: overview.status.state == "paused")
    assert [event.name for event in overview.events] == ["STOP"]
    assert overview.heard == 1


async def test_watch_follows_a_job_without_events_and_reads_the_chains_when_it_has_ended(server, overviews):
    await anext(overviews)
    runs(server, 10)
    server.emit(changed("running"))
    await until(overviews, lambda overview: overview.jobs and overview.jobs[0].job.offset == 10)
    runs(server, 20)
    overview = await until(overviews, lambda overview: overview.jobs[0].job.offset == 20)
    assert overview.jobs[0].progress.rate > 0
    (shown,) = overview.to_json()["jobs"]
    assert (shown["id"], shown["offset"], shown["disk"], shown["ours"]) == ("j", 20, "", False)
    disks(server, vda=("/d/base",))
    server.answer("query-jobs", Return([]))
    server.emit(changed("null"))
    overview = await until(overviews, lambda overview: overview.graph.chains() == {"vda": ("/d/base",)})
    assert overview.jobs == ()


async def test_watch_reads_no_graph_while_vm_state_is_moved(server, overviews):
    await anext(overviews)
    runs(server, 10, kind="snapshot-load")
    server.emit(changed("running"), Emit("RESUME"))
    overview = await until(overviews, lambda overview: overview.jobs)
    assert (server.commands.count(GRAPH), overview.unread) == (1, "job j is moving VM state")
    server.answer("query-jobs", Return([]))
    stands(server, "restore-vm")
    server.emit(changed("null"))
    overview = await until(overviews, lambda overview: not overview.jobs)
    assert (server.commands.count(GRAPH), overview.unread) == (1, "the run state is restore-vm")
    stands(server)
    server.emit(Emit("RESUME"))
    await until(overviews, lambda overview: not overview.unread)
    await server.wait_for(GRAPH, count=2)


async def test_watch_reads_no_graph_while_the_guest_is_paused_for_a_moment(server, overviews, monkeypatch):
    monkeypatch.setattr("qmpsnap.watching._REST", 60)  # the moment does not end, however slow the host is
    monkeypatch.setattr("qmpsnap.watching._SHARE_ON_EVENTS", math.inf)  # a stale graph is read at once
    await anext(overviews)
    stands(server, "paused")
    server.emit(Emit("STOP"))
    await until(overviews, lambda overview: overview.status.state == "paused")
    stands(server, "suspended")
    server.emit(Emit("RESET"))
    await until(overviews, lambda overview: overview.status.state == "suspended")
    assert server.commands.count(GRAPH) == 1
    stands(server)
    server.emit(Emit("RESUME"))
    await server.wait_for(GRAPH, count=2)


async def test_watch_tells_why_the_guest_is_not_running(server, overviews):
    assert (await anext(overviews)).pause is None
    disks(server, vda=("/d/top", "/d/base"), io_status="nospace")
    stands(server, "io-error")
    server.emit(Emit("BLOCK_IO_ERROR", {}))
    overview = await until(overviews, lambda overview: overview.status.state == "io-error")
    cause = "There was no space for a write to vda (/d/top)."
    assert (overview.pause.cause, overview.to_json()["pause"]["failed"]) == (cause, {"vda": "nospace"})
    stands(server)
    server.emit(Emit("RESUME"))
    overview = await until(overviews, lambda overview: overview.status.running)
    assert (overview.pause, overview.to_json()["pause"]) == (None, None)


async def test_watch_keeps_the_last_events_and_counts_all(server, overviews):
    await anext(overviews)
    server.emit(*(Emit("E", {"number": number}) for number in range(500)))
    overview = await until(overviews, lambda overview: overview.heard == 500)
    assert [event.data["number"] for event in overview.events] == list(range(450, 500))
    assert [event.data["number"] for event in overview.events_since(498)] == [498, 499]
    assert len(overview.events_since(3)) == 50
    assert server.commands.count("query-status") < 10


async def test_watch_says_that_qemu_is_silent_and_goes_on_when_it_answers(server, overviews, monkeypatch):
    monkeypatch.setattr("qmpsnap.watching._SILENT", 0.05)
    monkeypatch.setattr("qmpsnap.watching._TICK", 0.02)
    await anext(overviews)
    answers = asyncio.Event()
    server.answer_once("query-status", Wait(answers), Return({"status": "paused", "running": False}))
    server.emit(Emit("STOP"))
    await until(overviews, lambda overview: overview.silent_s == 1)
    answers.set()
    await until(overviews, lambda overview: overview.silent_s == 0 and overview.status.state == "paused")


async def test_watch_ends_with_the_link(server, overviews):
    await anext(overviews)
    server.hang_up()
    with pytest.raises(LinkLost, match=r"lost .*: the other side closed it") as caught:
        await until(overviews, lambda _: False)
    assert caught.value.changed is qmpsnap.Changed.NO


async def test_watch_ends_with_an_answer_that_is_none(server, overviews):
    await anext(overviews)
    server.answer("query-status", Return(["nonsense"]))
    server.emit(Emit("STOP"))
    with pytest.raises(Malformed):
        await until(overviews, lambda _: False)


async def test_watch_leaves_nothing_when_its_reader_goes(server):
    async with qmpsnap.connect(server.path, shared_fs=False) as vm:
        async with vm.watch() as overviews:
            async for _ in overviews:
                break
        server.emit(Emit("STOP"))
        assert (await vm.status()).running  # the connection works on


@pytest.mark.parametrize("interval", [-1, float("nan"), "1"])
async def test_watch_refuses_an_interval_that_is_none(server, interval):
    async with qmpsnap.connect(server.path, shared_fs=False) as vm:
        with pytest.raises(qmpsnap.BadArgument):
            async with vm.watch(interval=interval):
                pytest.fail("watched")


def test_overview_as_json_leaves_out_the_events_that_were_printed():
    events = tuple(qmpsnap.Event("E", {"number": number}, 1.0) for number in range(3))
    overview = Overview(graph=Graph({}), events=events, heard=3)
    printed = overview.to_json(heard=2)
    assert printed == {
        "status": None,
        "pause": None,
        "disks": [],
        "jobs": [],
        "events": [{"event": "E", "data": {"number": 2}, "timestamp": 1.0}],
        "unread": "",
        "silent_s": 0,
    }
