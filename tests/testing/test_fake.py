from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import CommandFailed, JobFailed, LinkLost, StillNeeded, Unsupported
from qmpsnap.model.job import JobStatus
from qmpsnap.plan.commands.block import blockdev_del, check_active, check_roots
from qmpsnap.plan.commands.files import create_memory, seal_memory
from qmpsnap.plan.commands.jobs import (
    await_job,
    end_copy,
    job_cancel,
    job_complete,
    job_dismiss,
    job_finalize,
)
from qmpsnap.plan.commands.state import cont, stop
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_faults import refused
from qmpsnap.testing.fake_machine import COMMANDS
from tests.each import each
from tests.plan.scenes import planned

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpsnap.model.step import Step
    from qmpsnap.plan.plan import Plan

pytestmark = pytest.mark.timeout(60)
TWO = graph(vda="base <- s1 <- s2*")
PIVOT = planned(Commit("vda"), TWO)
MIDDLE = planned(Commit("vda", "s1", "base"), TWO)
STREAM = planned(Stream("vda"), TWO)
MIRROR = planned(Mirror("vda", "/c", "finish"), TWO)


def start_of(plan: Plan) -> Step:
    assert plan.start is not None
    return plan.start


async def statuses(fake: FakeTarget) -> list[JobStatus]:
    return [job.status for job in await fake.jobs()]


@each("intent", [Snapshot("n1"), Stream("vda"), Commit("vda", "s1", "base")])
async def test_fake_does_what_the_plan_predicts(intent: Snapshot | Stream | Commit) -> None:
    fake, plan = FakeTarget(TWO), planned(intent, TWO)
    for step in plan.steps:
        if step.on == "wait":
            continue
        await fake.perform(step)
    assert (await fake.graph()).chains() == plan.chains_after
    assert fake.performed == [step for step in plan.steps if step.on != "wait"]


async def test_fake_job_waits_at_ready_until_it_is_completed() -> None:
    fake = FakeTarget(TWO)
    await fake.perform(start_of(PIVOT))
    assert await statuses(fake) == [JobStatus.READY]
    assert fake.state == TWO
    await fake.perform(job_complete(PIVOT.job_id))
    assert await statuses(fake) == [JobStatus.CONCLUDED]
    await fake.perform(job_dismiss(PIVOT.job_id))
    assert await statuses(fake) == []
    assert fake.state.chains() == PIVOT.chains_after


async def test_fake_stream_waits_to_be_finalized_and_dismisses_itself() -> None:
    fake = FakeTarget(TWO)
    await fake.perform(start_of(STREAM))
    with fake.watch(STREAM.job_id) as watch:
        assert (await watch.until_pending()).status is JobStatus.PENDING
    await fake.perform(job_finalize(STREAM.job_id))
    assert await fake.jobs() == ()
    with fake.watch(STREAM.job_id) as watch:
        await watch.until_concluded()


async def test_fake_job_runs_until_it_is_let_go() -> None:
    fake = FakeTarget(TWO)
    fake.hold = True
    await fake.perform(start_of(MIDDLE))
    with fake.watch(MIDDLE.job_id) as watch:
        waiting = asyncio.create_task(watch.until_pending())
        await asyncio.sleep(0.001)
        assert not waiting.done()
        assert await statuses(fake) == [JobStatus.RUNNING]
        fake.let_go()
        assert (await waiting).status is JobStatus.PENDING


async def test_fake_mirror_holds_its_target_until_it_is_dismissed() -> None:
    fake, start = FakeTarget(TWO), start_of(MIRROR)
    assert start.command == "drive-mirror"
    await fake.perform(start)
    assert fake.state.nodes[start.arguments["node-name"]].file == "/c"
    await fake.perform(end_copy(start.job_id))
    assert start.arguments["node-name"] in fake.state.nodes
    await fake.perform(job_dismiss(start.job_id))
    assert start.arguments["node-name"] not in fake.state.nodes


async def test_fake_job_can_be_cancelled_and_ends_with_an_error() -> None:
    fake = FakeTarget(TWO)
    await fake.perform(start_of(PIVOT))
    await fake.perform(job_cancel(PIVOT.job_id))
    with fake.watch(PIVOT.job_id) as watch, pytest.raises(JobFailed, match="Operation canceled"):
        await watch.until_ready()
    assert fake.state == TWO


async def test_fake_job_ends_with_the_error_that_was_set() -> None:
    fake = FakeTarget(TWO)
    fake.job_error = "No space left on device"
    await fake.perform(start_of(MIDDLE))
    with fake.watch(MIDDLE.job_id) as watch, pytest.raises(JobFailed, match="No space left"):
        await watch.until_concluded()
    assert fake.state == TWO


@each("kind", [job_complete, end_copy, job_cancel, job_dismiss])
async def test_fake_refuses_what_no_job_or_its_state_allows(kind: Callable[[str], Step]) -> None:
    fake = FakeTarget(TWO)
    with pytest.raises(CommandFailed, match="Job not found"):
        await fake.perform(kind(MIDDLE.job_id))
    fake.hold = True
    await fake.perform(start_of(MIDDLE))
    if kind is not job_cancel:
        with pytest.raises(CommandFailed, match="in state 'running'"):
            await fake.perform(kind(MIDDLE.job_id))


async def test_fake_refuses_to_delete_a_node_that_is_not_there() -> None:
    with pytest.raises(CommandFailed, match="Failed to find node"):
        await FakeTarget(TWO).perform(blockdev_del("none"))


async def test_fake_waits_for_no_job_that_is_not_there() -> None:
    with FakeTarget(TWO).watch("none") as watch, pytest.raises(JobFailed, match="vanished"):
        await watch.until_concluded()


async def test_fake_fails_a_step_once_whether_it_happened_or_not() -> None:
    fake, start = FakeTarget(TWO), start_of(MIDDLE)
    fake.fail("block-commit", refused("no"))
    fake.fail(start, refused("no, but done"), happened=True)
    with pytest.raises(CommandFailed, match=r"^no\nnothing was changed$"):
        await fake.perform(start)
    assert fake.state == TWO
    with pytest.raises(CommandFailed, match="but done"):
        await fake.perform(start)
    assert await statuses(fake) == [JobStatus.PENDING]
    assert fake.performed == [start, start]


@each("relinks", [True, False])
async def test_fake_loses_the_link_for_everybody(relinks: bool) -> None:
    fake = FakeTarget(TWO)
    fake.hold, fake.relinks = True, relinks
    await fake.perform(start_of(MIDDLE))
    with fake.watch(MIDDLE.job_id) as watch:
        waiting = asyncio.create_task(watch.until_concluded())
        await asyncio.sleep(0.001)
        fake.fail("graph", LinkLost("gone"))
        with pytest.raises(LinkLost):
            await fake.graph()
        with pytest.raises(LinkLost):
            await waiting
    assert await fake.relink() is relinks
    if relinks:
        assert await fake.graph() == TWO
    else:
        with pytest.raises(LinkLost):
            await fake.jobs()


async def test_fake_tells_of_each_step_before_it_is_done() -> None:
    fake = FakeTarget(TWO)
    seen: list[object] = []
    fake.before = lambda step: seen.append((step, fake.state == TWO))
    await fake.perform(start_of(PIVOT))
    with fake.watch(PIVOT.job_id) as watch:
        await watch.until_ready()
    assert seen == [(start_of(PIVOT), True), (await_job(PIVOT.job_id, "ready"), True)]


async def test_fake_has_the_commands_that_it_was_given() -> None:
    (await FakeTarget(TWO).features()).need(*COMMANDS)
    with pytest.raises(Unsupported):
        (await FakeTarget(TWO, commands=frozenset()).features()).need("transaction")


async def test_fake_tells_of_progress_until_the_job_ends() -> None:
    fake = FakeTarget(TWO)
    fake.hold = True
    await fake.perform(start_of(MIDDLE))
    seen = []
    async for progress in fake.progress(MIDDLE.job_id, 0):
        seen.append(progress.job.status)
        if fake.hold:
            fake.let_go()
        else:
            await fake.perform(job_finalize(MIDDLE.job_id))
    assert seen == [JobStatus.RUNNING, JobStatus.PENDING]


async def test_fake_takes_note_of_commands_about_jobs() -> None:
    fake = FakeTarget(TWO)
    await fake.execute("job-pause", {"id": "j"})
    assert fake.sent == [("job-pause", {"id": "j"})]


async def test_fake_says_when_a_device_kept_its_old_root() -> None:
    fake = FakeTarget(TWO)
    await fake.perform(check_roots((("vda", "q", "vda-s2"),)))
    with pytest.raises(CommandFailed, match="the device of vda kept its root"):
        await fake.perform(check_roots((("vda", "q", "new"),)))


async def test_fake_says_when_a_disk_writes_to_another_layer() -> None:
    fake = FakeTarget(TWO)
    await fake.perform(check_active([TWO.disks["vda"]]))
    with pytest.raises(StillNeeded, match="vda writes to another node"):
        await fake.perform(check_active([replace(TWO.disks["vda"], root="new")]))


async def test_fake_says_how_long_the_guest_was_paused_since_somebody_listens() -> None:
    fake = FakeTarget(TWO)
    fake.guest.blink()
    with fake.guest.stops() as stops:
        assert stops.seconds is None
        await fake.perform(stop())
        await fake.perform(cont())
        assert stops.seconds == 0.25
    assert (await fake.guest.machine(TWO)).running


async def test_fake_counts_the_bytes_of_the_memory_that_was_kept_last() -> None:
    fake = FakeTarget(TWO)
    assert fake.guest.state_bytes == 0
    fingerprint = fake.guest.now.fingerprint
    await fake.perform(create_memory("/m.partial"))
    await fake.perform(
        seal_memory("/m.partial", "/m", id="id", name="c1", running=True, fingerprint=fingerprint)
    )
    assert fake.guest.state_bytes == fake.files.facts["/m"].size > 0
