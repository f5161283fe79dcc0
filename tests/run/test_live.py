from __future__ import annotations

import json
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    Busy,
    CommandFailed,
    ConnectFailed,
    InvalidTarget,
    LinkLost,
    Malformed,
    QmpsnapError,
    TargetExists,
)
from qmpsnap.model.features import Features
from qmpsnap.model.files import Ask, Files, OpenFile
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.job_place import BlockGraph
from qmpsnap.model.parse import GRAPH_QUERIES, GraphReplies, parse_graph
from qmpsnap.model.step import DropLayers, Overlay, Root
from qmpsnap.plan.commands.block import (
    blockdev_add,
    blockdev_del,
    check_roots,
    flush,
    flush_by_reopen,
    open_store,
    probe_absent,
    reopen_filter,
    set_drive,
    snapshot_sync,
)
from qmpsnap.plan.commands.files import create_file
from qmpsnap.plan.commands.jobs import (
    await_job,
    block_commit,
    block_stream,
    end_copy,
    job_cancel,
    job_complete,
    job_dismiss,
    mirror_job,
)
from qmpsnap.plan.commands.migration import migrate, migrate_incoming, set_parameters
from qmpsnap.plan.commands.state import (
    cont,
    snapshot_delete,
    snapshot_load,
    snapshot_save,
    stop,
    stop_for_load,
    system_reset,
)
from qmpsnap.run import survey
from qmpsnap.run.descriptors import identity
from qmpsnap.run.images import Images
from qmpsnap.run.live import LiveTarget
from qmpsnap.run.session import connect
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.jobs import ScriptedJobs, job_turns
from qmpsnap.testing.server import Emit, Fail, Return, serve
from qmpsnap.vm import VM
from tests.each import each
from tests.run.limits import free_descriptors
from tests.run.test_query_guard import schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from qmpsnap.model.step import Step
    from qmpsnap.testing.server import QmpServer

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]

DATA = Path(__file__).parent.parent / "model" / "data"
JOB = "qmpsnap-mirror-pivot-00000000"


def said(name: str) -> list[Any]:
    data = json.loads((DATA / f"{name}.json").read_text())
    return [data["block"], data["stats"], data["named"]]


def answer_graph(server: QmpServer, name: str) -> None:
    for (command, _), answer in zip(GRAPH_QUERIES, said(name), strict=True):
        server.answer(command, Return(answer))


@asynccontextmanager
async def live(
    server: QmpServer, *, again: bool = True, shared_fs: bool | None = None
) -> AsyncIterator[LiveTarget]:
    def link() -> Any:
        return connect(server.path)

    async with LiveTarget(link, again=again, shared_fs=shared_fs, images=Images(), name="vm1") as target:
        yield target


@pytest.fixture
async def target(server: QmpServer) -> AsyncIterator[LiveTarget]:
    ScriptedJobs(server)
    answer_graph(server, "mixed-7")
    async with live(server) as target:
        yield target


async def test_graph_asks_three_questions_and_joins_the_answers(
    server: QmpServer, target: LiveTarget
) -> None:
    before = len(server.received)
    assert await target.graph() == parse_graph(GraphReplies.read(*said("mixed-7")))
    asked = [(one["execute"], one.get("arguments", {})) for one in server.received[before:]]
    assert sorted(map(repr, asked)) == sorted(repr((name, dict(more))) for name, more in GRAPH_QUERIES)


async def test_graph_resolves_relative_names_against_qemus_directory(
    server: QmpServer, target: LiveTarget
) -> None:
    answer_graph(server, "relative-7")
    here = str(Path.cwd())  # the scripted server is this process
    found = await target.graph()
    assert found.disks["vda"].files == (f"{here}/sub/s1.qcow2", f"{here}/base.qcow2")


async def test_graph_is_asked_for_again_when_it_moved_meanwhile(
    server: QmpServer, target: LiveTarget
) -> None:
    block, stats, named = said("mixed-7")
    server.answer_once("query-named-block-nodes", Return(named[1:]))
    server.answer_once("query-blockstats", Return(stats[1:]))
    assert await target.graph() == parse_graph(GraphReplies.read(block, stats, named))
    assert server.commands.count("query-block") == 2


async def test_graph_is_malformed_when_an_answer_has_another_shape(
    server: QmpServer, target: LiveTarget
) -> None:
    server.answer("query-blockstats", Return({}))
    with pytest.raises(Malformed):
        await target.graph()


async def test_graph_ends_when_the_link_is_lost(server: QmpServer, target: LiveTarget) -> None:
    server.hang_up()
    with pytest.raises(LinkLost):
        await target.graph()


async def test_features_are_asked_for_once_as_the_session_begins(server: QmpServer) -> None:
    ScriptedJobs(server)
    server.answer("query-commands", Return([{"name": "transaction"}, {"name": "quit"}]))
    async with live(server) as target:
        assert sorted(server.commands) == ["query-block-jobs", "query-commands", "query-jobs"]
        assert await target.features() == Features(frozenset({"transaction", "quit"}))
    assert server.commands.count("query-commands") == 1


@pytest.mark.parametrize("answer", [None, 7, [7], [{}]])
async def test_features_are_malformed_when_they_are_no_list_of_commands(
    server: QmpServer, answer: object
) -> None:
    ScriptedJobs(server)
    server.answer("query-commands", Return(answer))
    with pytest.raises(Malformed):
        async with live(server):
            pass


@pytest.mark.parametrize(
    ("commands", "answer"),
    [([], Return({"nodes": [], "edges": []})), (["x-debug-query-block-graph"], Fail("unstable input"))],
)
async def test_block_graph_is_empty_where_qemu_does_not_say_it(
    server: QmpServer, commands: list[str], answer: Return | Fail
) -> None:
    ScriptedJobs(server)
    server.answer("query-commands", Return([{"name": name} for name in commands]))
    server.answer("x-debug-query-block-graph", answer)
    async with live(server) as target:
        assert await target.block_graph() == BlockGraph()


async def test_jobs_are_those_of_everybody(server: QmpServer) -> None:
    jobs = ScriptedJobs(server)
    jobs.put("theirs", "running")
    async with live(server) as target:
        assert [(job.id, job.mine) for job in await target.jobs()] == [("theirs", False)]


async def test_jobs_after_the_graph_are_asked_for_when_an_event_named_one(
    server: QmpServer, target: LiveTarget
) -> None:
    async def found() -> list[str]:
        await target.graph()
        return [job.id for job in await target.jobs(after_graph=True)]

    asked = server.commands.count("query-jobs")
    assert (await found(), server.commands.count("query-jobs")) == ([], asked)
    jobs = ScriptedJobs(server)
    jobs.put(JOB, "running")
    server.emit(Emit("JOB_STATUS_CHANGE", {"id": JOB, "status": "created"}))
    assert await found() == [JOB]
    jobs.remove(JOB)
    assert await found() == []
    asked = server.commands.count("query-jobs")
    assert (await found(), server.commands.count("query-jobs")) == ([], asked)


def jobs_answered(server: QmpServer, answers: list[tuple[str, ...]]) -> None:
    """Answer query-jobs with jobs in these states, the last of them at the end again and again.

    Each answer but the first comes after the events of the states that it shows.
    """
    jobs, left = ScriptedJobs(server), list(answers)
    server.answer("query-qmp-schema", Return(schema("backing-mask-protocol")))  # no job is dangerous to it

    def answer(_: object) -> object:
        states = left.pop(0) if len(left) > 1 else left[0]
        jobs.remove(JOB)
        for state in states:
            jobs.put(JOB, state)
        server.emit(*job_turns(JOB, *(states or ("null",))))
        return jobs.jobs()

    server.compute("query-jobs", answer)


@each(
    ("answers", "found", "read"),
    [
        ([("ready",), ("ready",)], ["ready"], 1),  # nothing has begun or ended
        ([("ready",), ("concluded",), ("paused",)], ["paused"], 2),
        ([("running",), (), ("paused",)], ["paused"], 2),
        ([("running",), ("created",), ("running",)], ["running"], 2),
        ([("running",), ("concluded",), ("concluded",), ("ready",)], ["ready"], 3),
    ],
)
async def test_graph_is_read_again_when_a_job_began_or_ended_before_the_jobs_were(
    answers: list[tuple[str, ...]], found: list[str], read: int
) -> None:
    with TemporaryDirectory() as folder:
        async with serve(f"{folder}/qmp") as server:
            jobs_answered(server, answers)
            answer_graph(server, "mixed-7")
            async with live(server) as target:
                seen, jobs = await target.graph_with_jobs()
                assert seen == parse_graph(GraphReplies.read(*said("mixed-7")))
                assert [job.status for job in jobs] == found
            assert server.commands.count("query-named-block-nodes") == read


async def test_graph_with_jobs_is_malformed_when_jobs_keep_ending(server: QmpServer) -> None:
    jobs_answered(server, [("running",), ("concluded",)])
    answer_graph(server, "mixed-7")
    async with live(server) as target:
        with pytest.raises(Malformed, match="jobs kept beginning and ending"):
            await target.graph_with_jobs()


async def test_wait_for_another_clients_job_sees_it_end_right_after_it_was_found(server: QmpServer) -> None:
    jobs = ScriptedJobs(server)
    jobs.put("theirs", "running")
    async with live(server) as target:
        server.answer_once("query-jobs", Return(jobs.jobs()))
        server.answer_once(
            "query-block-jobs",
            Return(jobs.block_jobs()),
            *job_turns("theirs", "pending", "concluded", "null"),
        )
        jobs.remove("theirs")
        ended = await VM(target).jobs.wait("theirs", foreign=True)
        assert isinstance(ended, Job)
        assert ended.status is JobStatus.CONCLUDED


async def test_look_takes_our_files_for_qemus_when_the_process_has_them_open(
    target: LiveTarget, tmp_path: Path
) -> None:
    file = tmp_path / "s1.qcow2"
    file.touch()
    machine = graph(chain("base.raw <- s1*", directory=str(tmp_path)))
    with file.open():
        looked = await target.look(Ask(files=(str(file),)), machine)
    assert (looked.shared, looked.files[str(file)].kind) == (True, "regular")
    assert looked.open[str(file)] == OpenFile(
        str(file), "same", str(file), file.stat().st_dev, file.stat().st_ino
    )
    looked = await target.look(Ask(files=(str(file),)), machine)
    assert (looked.shared, looked.files) == (False, {})
    assert looked.open[str(file)].state == "unknown"
    with free_descriptors(7), pytest.raises(InvalidTarget, match="too many files open: 7 more"):
        await target.look(Ask(files=(str(file),)), machine)
    looked = await target.look(Ask(survey=(str(file.parent),)), machine)
    assert (looked.shared, looked.looked_in) == (False, (str(file.parent),))  # it may be QEMU's all the same


async def test_look_works_in_one_thread_and_logs_once_what_is_no_record(
    target: LiveTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    threads = []
    look = survey.look

    def noted(*words: Any) -> Files:
        threads.append(threading.current_thread())
        return look(*words)

    monkeypatch.setattr(survey, "look", noted)
    (tmp_path / "intent-half.json").write_text("{")
    file = tmp_path / "s1.qcow2"
    file.touch()
    machine = graph(chain("base.raw <- s1*", directory=str(tmp_path)))
    with file.open():
        for _ in range(2):
            await target.look(Ask(records=(str(tmp_path),)), machine)
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    (logged,) = [record for record in caplog.records if "left_unread" in record.getMessage()]
    assert logged.levelname == "WARNING"


async def test_look_sees_the_other_files_when_one_was_unlinked(target: LiveTarget, tmp_path: Path) -> None:
    kept, gone = tmp_path / "a.raw", tmp_path / "b.raw"
    for file in (kept, gone):
        file.write_bytes(bytes(64 << 20))
    machine = graph(
        chain("a.raw*", directory=str(tmp_path)), chain("b.raw*", name="vdb", directory=str(tmp_path))
    )
    with kept.open(), gone.open():
        gone.unlink()
        looked = await target.look(Ask(), machine)
    assert looked.shared
    assert {name: one.state for name, one in looked.open.items()} == {
        str(kept): "same",
        str(gone): "unlinked",
    }


async def test_look_shares_nothing_when_no_disk_has_a_file(target: LiveTarget) -> None:
    assert await target.look(Ask(), graph()) == Files(shared=False)


@pytest.mark.parametrize("given", [True, False])
async def test_look_shares_what_the_caller_says(server: QmpServer, given: bool) -> None:
    ScriptedJobs(server)
    async with live(server, shared_fs=given) as target:
        assert (await target.look(Ask(), graph(vda="nowhere*"))).shared is given


ROOT = Root("vda", "n", "/o", "qcow2", None, ())
STEPS: list[Step] = [
    snapshot_sync((Overlay("vda", "n", "o", "/o", "/b", "us"),)),
    block_stream(
        job=JOB,
        node="n",
        base_node=None,
        backing=None,
        on_error="report",
        speed=0,
        effect=DropLayers("vda", "/f", None),
    ),
    block_commit(
        job=JOB,
        root="r",
        top_node="t",
        base_node="b",
        backing=None,
        on_error="stop",
        speed=7,
        effect=DropLayers("vda", "/t", "/b"),
    ),
    mirror_job(
        job=JOB,
        root="r",
        replaces="x",
        copy=ROOT,
        sync="full",
        opens="absolute-paths",
        on_error="ignore",
        speed=0,
    ),
    job_complete(JOB),
    end_copy(JOB),
    job_cancel(JOB),
    job_dismiss(JOB),
    blockdev_del("n"),
    blockdev_add("n", "/o", backing="b"),
    open_store("n", "/m"),
    set_drive(ROOT, "/q", ROOT, closes=False),
    reopen_filter(ROOT, "thr", "tg", ROOT, closes=False),
    snapshot_save(JOB, "c1", (("", "n"),)),
    snapshot_load(JOB, "c1", (("", "n"),), "n"),
    snapshot_delete(JOB, "c1", (("vda", "n"),)),
    set_parameters({"max-bandwidth": 9}, {}),
    migrate("fd:qmpsnap-7"),
    migrate_incoming("fd:qmpsnap-7"),
]
NO_ARGUMENTS: list[Step] = [stop(), cont(), system_reset()]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.command)
async def test_perform_sends_a_step_word_for_word(server: QmpServer, target: LiveTarget, step: Step) -> None:
    server.answer(step.command, Return())
    seconds = await target.perform(step)
    sent = server.received[-1]
    assert (sent["execute"], sent["arguments"]) == (step.command, step.arguments)
    assert 0 < seconds < 5


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.command)
async def test_perform_says_so_when_qemu_refuses(server: QmpServer, target: LiveTarget, step: Step) -> None:
    server.answer(step.command, Fail("no such thing"))
    with pytest.raises(CommandFailed) as caught:
        await target.perform(step)
    assert (caught.value.command, caught.value.desc) == (step.command, "no such thing")


@pytest.mark.parametrize(
    ("desc", "which"),
    [
        ("Could not create '/dir/o2': No such file or directory", "disk vdb"),
        ("Node 'a1' is busy: block device is in use by block job: commit", "disk vda"),
        ("No space left on device", "one of the disks vda, vdb"),
    ],
)
async def test_perform_says_which_disk_qemu_means(
    server: QmpServer, target: LiveTarget, desc: str, which: str
) -> None:
    one = Overlay("vda", "a1", "n1", "/dir/o1", "/dir/a", "us")
    other = Overlay("vdb", "b1", "n2", "/dir/o2", "/dir/b", "us")
    for overlays, ending in (((one, other), f" ({which})"), ((one,), "")):
        server.answer("transaction", Fail(desc))
        with pytest.raises(CommandFailed) as caught:
            await target.perform(snapshot_sync(overlays))
        assert str(caught.value) == caught.value.message == f"QEMU refused 'transaction': {desc}{ending}"


@pytest.mark.parametrize("step", NO_ARGUMENTS, ids=lambda step: step.command)
async def test_perform_sends_what_concerns_the_guest(
    server: QmpServer, target: LiveTarget, step: Step
) -> None:
    server.answer(step.command, Return())
    server.answer("query-status", Return({"status": "running", "running": True}))
    await target.perform(step)
    assert server.commands[-1] == step.command
    server.answer(step.command, Fail("no such thing"))
    with pytest.raises(CommandFailed):
        await target.perform(step)


async def test_perform_stops_a_guest_by_a_load_that_fails(server: QmpServer, target: LiveTarget) -> None:
    states = iter(["running", "restore-vm"])

    def status(_: object) -> dict[str, object]:
        now = next(states)
        return {"status": now, "running": now == "running"}

    server.compute("query-status", status)
    server.answer("human-monitor-command", Return("Error: there is none\r\n"))
    step = stop_for_load("qmpsnap/none/1")
    assert 0 < await target.perform(step) < 5
    assert [one["arguments"] for one in server.received if one["execute"] == step.command] == [step.arguments]


async def test_perform_reads_the_roots_back(server: QmpServer, target: LiveTarget) -> None:
    row = {"qdev": "/q", "inserted": {"node-name": "n", "ro": False}}
    server.answer("query-block", Return([row]))
    await target.perform(check_roots((("vda", "/q", "n"),)))
    with pytest.raises(CommandFailed, match="did not take"):
        await target.perform(check_roots((("vda", "/q", "other"),)))


async def test_stops_are_listened_to_for_as_long_as_the_block_lasts(
    server: QmpServer, target: LiveTarget
) -> None:
    server.emit(Emit("STOP", timestamp=1.0), Emit("RESUME", timestamp=2.0))
    await target.jobs()
    with target.guest.stops() as stops:
        server.emit(Emit("STOP", timestamp=3.0), Emit("RESUME", timestamp=3.25))
        await target.jobs()
    server.emit(Emit("STOP", timestamp=4.0), Emit("RESUME", timestamp=5.0))
    await target.jobs()
    assert stops.seconds == 0.25


async def test_perform_does_our_own_steps(target: LiveTarget, tmp_path: Path) -> None:
    model, copy = tmp_path / "model", tmp_path / "copy"
    model.touch()
    await target.perform(create_file(str(copy), str(model)))
    assert copy.exists()


async def test_perform_is_for_no_wait(target: LiveTarget) -> None:
    with pytest.raises(AssertionError):
        await target.perform(await_job(JOB, "ready"))


async def test_probe_succeeds_when_qemu_finds_no_file(server: QmpServer, target: LiveTarget) -> None:
    server.answer("blockdev-add", Fail("Could not open '/o': No such file or directory"))
    await target.perform(probe_absent("/o", "n"))
    assert "blockdev-del" not in server.commands


async def test_probe_frees_the_node_and_refuses_when_qemu_finds_the_file(
    server: QmpServer, target: LiveTarget
) -> None:
    server.answer("blockdev-add", Return())
    server.answer("blockdev-del", Return())
    with pytest.raises(TargetExists) as caught:
        await target.perform(probe_absent("/o", "n"))
    assert caught.value.file == "/o"
    assert server.received[-1]["arguments"] == {"node-name": "n"}


@pytest.mark.parametrize("desc", ["Could not open '/o': Permission denied", "Is a directory"])
async def test_probe_refuses_when_qemu_cannot_look(server: QmpServer, target: LiveTarget, desc: str) -> None:
    server.answer("blockdev-add", Fail(desc))
    with pytest.raises(InvalidTarget, match=desc):
        await target.perform(probe_absent("/o", "n"))


async def test_flush_succeeds_when_the_human_monitor_has_nothing_to_say(
    server: QmpServer, target: LiveTarget
) -> None:
    server.answer("human-monitor-command", Return(""))
    await target.perform(flush("n"))
    assert server.received[-1]["arguments"] == {"command-line": "qemu-io n flush"}


async def test_flush_fails_with_what_the_human_monitor_says(server: QmpServer, target: LiveTarget) -> None:
    server.answer("human-monitor-command", Return("Error: Cannot find device='n'\r\n"))
    with pytest.raises(CommandFailed, match="could not flush 'n'") as caught:
        await target.perform(flush("n"))
    assert caught.value.desc == "Error: Cannot find device='n'"


async def test_flush_opens_the_layer_again_where_there_is_no_human_monitor(
    server: QmpServer, target: LiveTarget
) -> None:
    server.answer("blockdev-reopen", Return({}))
    layer = replace(chain("base*").active, file_node="f")
    await target.perform(flush_by_reopen(layer, None, read_only=False))
    assert server.received[-1]["execute"] == "blockdev-reopen"
    server.answer("blockdev-reopen", Fail("no space"))
    with pytest.raises(CommandFailed, match="no space"):
        await target.perform(flush_by_reopen(layer, None, read_only=False))


async def test_command_is_sent_as_it_is(server: QmpServer, target: LiveTarget) -> None:
    server.answer("job-pause", Return())
    await target.execute("job-pause", {"id": JOB})
    assert server.received[-1]["arguments"] == {"id": JOB}


async def test_watch_hears_what_comes_before_the_reply(server: QmpServer) -> None:
    jobs = ScriptedJobs(server)
    async with live(server) as target:
        jobs.put(JOB, "ready")
        server.answer("drive-mirror", *job_turns(JOB, "created", "running", "ready"), Return())
        with target.watch(JOB) as watch:
            await target.perform(STEPS[3])
            assert (await watch.until_ready()).ready


async def test_progress_ends_with_the_job(server: QmpServer) -> None:
    jobs = ScriptedJobs(server)
    jobs.put(JOB, "running", offset=2)
    async with live(server) as target:
        seen = []
        async for progress in target.progress(JOB, 0.001):
            seen.append(progress.job.offset)
            jobs.remove(JOB)
    assert seen == [2]


async def test_relink_connects_again_and_everything_works(server: QmpServer, target: LiveTarget) -> None:
    server.hang_up()
    await target.session.wait_lost()
    assert await target.relink()
    assert await target.graph() == parse_graph(GraphReplies.read(*said("mixed-7")))
    assert await target.jobs() == ()


async def test_relink_fails_when_the_socket_was_given(server: QmpServer) -> None:
    ScriptedJobs(server)
    async with live(server, again=False) as target:
        server.hang_up()
        assert not await target.relink()


@pytest.mark.parametrize("silent", [True, False])
async def test_relink_gives_up_soon_when_nobody_answers(server: QmpServer, silent: bool) -> None:
    ScriptedJobs(server)
    async with live(server) as target:
        if silent:
            server.greeting = None
        else:
            Path(server.path).unlink()
        server.hang_up()
        await target.session.wait_lost()
        with anyio.fail_after(30):
            assert not await target.relink()
        with pytest.raises(LinkLost):
            await target.graph()


async def test_entering_fails_when_nobody_is_there_and_leaves_nothing(tmp_path: Path) -> None:
    def link() -> Any:
        return connect(str(tmp_path / "nobody"))

    target = LiveTarget(link, again=True, shared_fs=None, images=Images(), name="vm1")
    with pytest.raises(ConnectFailed):
        async with target:
            pytest.fail("entered")


async def test_graph_is_not_asked_for_while_that_would_crash_qemu(server: QmpServer) -> None:
    jobs = ScriptedJobs(server)
    answer_graph(server, "mixed-7")
    server.answer("query-qmp-schema", Return([]))
    server.compute("query-jobs", lambda _: [one | {"type": "stream"} for one in jobs.jobs()])
    async with live(server) as target:
        jobs.put("s", "concluded")
        server.emit(Emit("JOB_STATUS_CHANGE", {"id": "s", "status": "concluded"}))
        await target.jobs()
        with pytest.raises(QmpsnapError, match="would crash"):
            await target.graph()
    assert "query-named-block-nodes" not in server.commands


async def test_name_is_what_it_was_given(target: LiveTarget) -> None:
    assert target.name == "vm1"


async def test_execute_sends_any_command_and_returns_its_answer(
    server: QmpServer, target: LiveTarget
) -> None:
    server.answer("query-name", Return({"name": "vm1"}))
    server.answer("system_wakeup", Return({}))
    assert await target.execute("query-name") == {"name": "vm1"}
    assert await target.execute("system_wakeup", {}) == {}


async def test_images_are_refused_while_a_migration_is_running(server: QmpServer, target: LiveTarget) -> None:
    server.answer("query-status", Return({"status": "running", "running": True}))
    server.answer("query-migrate", Return({"status": "completed"}))
    await target.refuse_migrated()
    server.answer("query-migrate", Return({"status": "active"}))
    with pytest.raises(Busy, match="a migration is running"):
        await target.refuse_migrated()


async def test_target_says_which_process_it_is(target: LiveTarget) -> None:
    assert target.pid is not None
    assert target.process == identity(target.pid) != ""
