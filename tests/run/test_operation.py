"""An operation that succeeds, and that fails at each of its steps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import (
    Busy,
    Changed,
    GraphMismatch,
    Incomplete,
    InvalidTarget,
    JobFailed,
    Malformed,
    QmpsnapError,
    TargetExists,
)
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.run.cleanup import NotTheLayer
from qmpsnap.run.outcome import Done
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_faults import refused
from tests.each import each
from tests.run.operations import (
    CASES,
    COPY,
    COURSES,
    FILES,
    INTENTS,
    MACHINE,
    chains_after,
    check_nothing_is_left,
    inside,
    intents,
    known_plan,
    machine,
    plan_of,
    tidying,
    vm_of,
    writes,
)
from tests.run.places import at_each

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.step import Step

pytestmark = pytest.mark.timeout(60)


async def check_the_next_run_works(case: str, fake: FakeTarget) -> None:
    plan = await plan_of(case, fake)
    done = await vm_of(fake).run(plan)
    assert done.chains == plan.chains_after
    assert await fake.jobs() == ()


@each("case", CASES)
async def test_operation_performs_the_steps_of_its_plan_in_order(case: str) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    done = await vm_of(fake).run(plan)
    assert fake.performed == list(plan.steps)
    assert plan.after is not None
    assert fake.state.chains() == chains_after(plan)
    assert inside(fake.state) == inside(plan.after)
    assert await fake.jobs() == ()
    assert intents(fake) == ([plan.job_id] if case == "commit-keep" else [])
    moved = {disk: files[0] for disk, files in plan.chains_after.items() if disk in plan.moves}
    assert (done.op, done.chains, done.active) == (plan.op, plan.chains_after, moved)
    assert (done.invalid, done.notes, done.job_id, done.changed) == (
        plan.invalid,
        plan.notes,
        plan.job_id,
        True,
    )
    assert done.bytes == (8 if plan.start is not None else 0)
    drained = bool(plan.moves) or case in {"snapshot-internal", "checkpoint-internal", "checkpoint-by-jobs"}
    assert done.standstill_s == (
        None if not drained else 0.25 if plan.job_id or "checkpoint" in case else 0.125
    )


@each("case", INTENTS)
async def test_operation_leaves_the_files_that_its_plan_names(case: str) -> None:
    fake = machine(case)
    before = set(fake.files.names)
    plan = await plan_of(case, fake)
    await vm_of(fake).run(plan)
    now = set(fake.files.names)
    assert {file for files in fake.state.chains().values() for file in files} <= now
    assert set(plan.invalid) <= now
    assert before - now == (set(plan.folded) if plan.op == "commit" else set())


async def test_operation_reads_no_graph_when_it_was_seen_a_moment_ago() -> None:
    fake = machine("stream")
    plan = await plan_of("stream", fake)
    fake.fail("graph", Malformed("the first look"))
    with pytest.raises(Malformed):
        await vm_of(fake).run(plan)
    fake.fail("graph", Malformed("another look"))
    fake.fail(plan.steps[0], refused("stop here"))
    with pytest.raises(QmpsnapError, match="stop here"):
        await vm_of(fake)._executor.run(plan, seen=plan.before)


@each("case", CASES)
async def test_operation_refuses_when_the_chains_moved_since_the_plan(case: str) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    fake.state = graph(vda="base <- s1*", vdb="base2 <- data*")
    with pytest.raises(GraphMismatch) as caught:
        await vm_of(fake).run(plan)
    assert (caught.value.changed, caught.value.exit_code) == (Changed.NO, 6)
    assert caught.value.found == fake.state.chains(*plan.disks)
    assert fake.performed == []


def refusal(step: Step) -> QmpsnapError:
    match step.on:
        case "qmp":
            return refused("QEMU says no", command=step.command)
        case "host":
            return InvalidTarget("the disk says no", file="/images/x")
        case _:
            return JobFailed("the job says no", job_id="", error="no")


def before_the_end(case: str) -> list[int]:
    """Places of steps that can fail before the job has ended: what is refused later is tried once more."""
    plan = known_plan(case)
    end = next(
        (n for n, step in enumerate(plan.steps) if step == await_job(step.job_id, "concluded")),
        tidying(case),
    )
    return [n for n, step in enumerate(plan.steps[:end]) if step.on != "wait"]


@pytest.mark.parametrize("case", CASES)
async def test_operation_rolls_everything_back_when_a_step_is_refused(case: str) -> None:
    await at_each(known_plan(case), before_the_end(case), partial(_refused, case))


async def _refused(case: str, place: int) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    error = refusal(plan.steps[place])
    fake.fail(plan.steps[place], error)
    with pytest.raises(QmpsnapError) as caught:
        await vm_of(fake).run(plan)
    assert caught.value is error
    written = any(map(writes, plan.steps[:place]))
    assert error.changed is (Changed.YES if written else Changed.NO)
    assert error.invalid == (plan.invalid_if_stopped if written else ())
    by_qemu = [step for step in plan.steps[: place + 1] if step.way in {"take", "drive-mirror"}]
    assert bool(error.left) is (case.startswith("unseen") and bool(by_qemu))
    await check_nothing_is_left(fake, started_commit=plan.job_id if written and plan.op == "commit" else "")
    await check_the_next_run_works(case, fake)


async def test_operation_goes_on_when_a_flush_is_refused_after_the_end() -> None:
    fake = machine("commit")
    plan = await plan_of("commit", fake)
    flush = next(step for step in reversed(plan.steps) if step.way == "flush")
    fake.fail(flush, refused("no"))
    assert (await vm_of(fake).run(plan)).chains == plan.chains_after
    assert fake.performed.count(flush) == 2


WITH_A_JOB = [case for case, journal in COURSES.items() if "await-job" in journal]


@pytest.mark.parametrize("case", WITH_A_JOB)
async def test_operation_rolls_everything_back_when_the_job_fails(case: str) -> None:
    plan = known_plan(case)
    waits = [place for place, step in enumerate(plan.steps) if step.on == "wait"]
    await at_each(plan, waits, partial(_job_fails, case))


async def _job_fails(case: str, place: int) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)

    def fail(step: Step) -> None:
        if step == plan.steps[place - 1]:
            fake.job_error = "No space left on device"

    fake.before = fail
    with pytest.raises(JobFailed, match="No space left") as caught:
        await vm_of(fake).run(plan)
    written = plan.op in {"commit", "stream"}
    assert caught.value.changed is (Changed.YES if written else Changed.NO)
    assert caught.value.invalid == plan.invalid_if_stopped
    fake.before, fake.job_error = None, ""
    await check_nothing_is_left(fake, started_commit=plan.job_id if plan.op == "commit" else "")
    await check_the_next_run_works(case, fake)


@each("case", [case for case in CASES if "commit" in case or "mirror" in case])
async def test_operation_succeeds_when_somebody_else_dismissed_its_job(case: str) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    gone = refused("Job not found", command="job-dismiss")
    fake.fail(job_dismiss(plan.job_id), gone, happened=True)
    done = await vm_of(fake).run(plan)
    assert done.chains == plan.chains_after
    assert intents(fake) == ([plan.job_id] if case == "commit-keep" else [])


PUTS_AWAY = [case for case, journal in COURSES.items() if "||" in journal]


@each("case", PUTS_AWAY)
async def test_operation_says_which_cleanup_failed(case: str) -> None:
    plan = known_plan(case)
    await at_each(plan, range(tidying(case), len(plan.steps)), partial(_stays, case))


async def _stays(case: str, place: int) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    step = plan.steps[place]
    fake.fail(step, refusal(step))
    with pytest.raises(Incomplete) as caught:
        await vm_of(fake).run(plan)
    assert (caught.value.changed, caught.value.exit_code) == (Changed.YES, 7)
    assert caught.value.remaining[0] == f"{step.command} {step.arguments}"
    assert fake.state.chains() == chains_after(plan)
    assert await fake.jobs() == ()
    still_there = set(fake.files.names)
    assert set(caught.value.invalid) <= still_there
    if step.command == "retire-file":
        assert step.arguments["file"] in caught.value.invalid
        assert intents(fake) == [plan.job_id]  # so that `job wait` can go on
    assert len(fake.performed) == len(plan.steps) - (step.command == "retire-file")


async def test_operation_that_could_not_put_a_file_away_is_brought_to_its_end_by_its_record() -> None:
    fake = machine("commit-pivot")
    plan = await plan_of("commit-pivot", fake)
    fake.fail("retire-file", InvalidTarget("no", file="/images/s2.qcow2"))
    with pytest.raises(Incomplete):
        await vm_of(fake).run(plan)
    fake.files.facts["/images/s1.qcow2"] = fake.files.facts.pop("/images/s1.qcow2.invalid")
    done = await vm_of(fake).jobs.wait(plan.job_id)
    assert isinstance(done, Done)
    assert (set(done.invalid) <= set(fake.files.names), intents(fake)) == (True, [])


def stranger() -> InvalidTarget:
    """What a file of another image is refused with."""
    error = InvalidTarget("no", file="/images/s2.qcow2")
    error.__cause__ = NotTheLayer("by its header it is not an overlay")
    return error


async def test_operation_leaves_a_file_that_is_not_the_layer_and_ends_its_record() -> None:
    fake = machine("commit-pivot")
    plan = await plan_of("commit-pivot", fake)
    fake.fail("retire-file", stranger())
    done = await vm_of(fake).run(plan)
    file = next(step.arguments["file"] for step in plan.steps if step.command == "retire-file")
    assert done.notes == (*plan.notes, f"{file} stays: by its header it is not an overlay")
    assert (file in done.invalid, f"{file}.invalid" in done.invalid) == (True, False)
    assert set(done.invalid) <= set(fake.files.names)
    assert intents(fake) == []


async def test_a_file_that_is_not_the_layer_is_left_by_who_ends_the_operation_later() -> None:
    fake = machine("commit-pivot")
    plan = await plan_of("commit-pivot", fake)
    fake.fail("retire-file", InvalidTarget("no", file="/images/s2.qcow2"))
    with pytest.raises(Incomplete):
        await vm_of(fake).run(plan)
    fake.files.facts["/images/s1.qcow2"] = fake.files.facts.pop("/images/s1.qcow2.invalid")
    fake.fail("retire-file", stranger())
    done = await vm_of(fake).jobs.wait(plan.job_id)
    assert isinstance(done, Done)
    assert "stays: by its header it is not an overlay" in " ".join(done.notes)
    assert intents(fake) == []


@each("case", [case for case in CASES if known_plan(case).chains_after != known_plan(case).chains_before])
async def test_operation_reports_a_graph_that_is_not_the_predicted_one(case: str) -> None:
    def lie(before: Graph, step: Step) -> Graph:
        return before

    truth = machine(case)
    fake = FakeTarget(MACHINE, files=truth.files, change=lie)
    plan = await plan_of(case, fake)
    with pytest.raises(GraphMismatch) as caught:
        await vm_of(fake).run(plan)
    found = {disk: FILES[disk] for disk in plan.disks}
    assert (caught.value.expected, caught.value.found) == (plan.chains_after, found)
    written = plan.op in {"commit", "stream"}
    if plan.op != "snapshot":
        assert caught.value.changed is (Changed.YES if written else Changed.NO)
    assert caught.value.invalid == plan.invalid_if_stopped
    assert intents(fake) == ([plan.record.id] if plan.record else [])


async def test_operation_does_not_touch_its_overlay_when_the_graph_cannot_be_read_after_the_snapshot() -> (
    None
):
    fake = machine("snapshot")
    plan = await plan_of("snapshot", fake)
    broken = Malformed("the graph did not hold still")

    def unreadable(step: Step) -> None:
        if step.way == "take":
            fake.fail("graph", broken)

    fake.before = unreadable
    with pytest.raises(Malformed) as caught:
        await vm_of(fake).run(plan)
    assert caught.value.changed is Changed.YES
    assert fake.state.chains() == chains_after(plan)
    assert {file for files in fake.state.chains().values() for file in files} <= set(fake.files.names)
    assert caught.value.left == ()  # what a guest writes to is not left behind
    assert intents(fake) == [plan.record.id if plan.record else ""]
    fake.before = None
    assert plan.record is not None
    assert isinstance(await vm_of(fake).jobs.wait(plan.record.id), Done)
    assert intents(fake) == []


@each("error", [Malformed("no"), Busy("no", node="", job_id="s")])
@each(("looks", "changed"), [(1, Changed.NO), (2, Changed.UNKNOWN)])
async def test_operation_says_what_it_knows_when_the_graph_cannot_be_read_during_the_rollback(
    error: QmpsnapError, looks: int, changed: Changed
) -> None:
    fake = machine("mirror-pivot")
    plan = await plan_of("mirror-pivot", fake)
    fake.fail("job-complete", refused("no"))

    def unreadable(step: Step) -> None:
        for _ in range(looks if step.command == "job-complete" else 0):
            fake.fail("graph", error)

    fake.before = unreadable
    with pytest.raises(QmpsnapError) as caught:
        await vm_of(fake).run(plan)
    assert await fake.jobs() == ()
    assert caught.value.changed is changed
    assert caught.value.left == (f"{COPY} (QEMU may have it open)",)
    assert COPY in fake.files.names


async def test_operation_makes_overlays_side_by_side_and_removes_those_that_were_made() -> None:
    fake = machine("snapshot")
    plan = await plan_of("snapshot", fake)
    overlays = [step for step in plan.steps if step.command == "create-overlay"]
    fake.fail(overlays[0], TargetExists("taken", file=overlays[0].arguments["file"]))
    with pytest.raises(TargetExists):
        await vm_of(fake).run(plan)
    assert overlays[1] in fake.performed
    await check_nothing_is_left(fake)


async def test_operation_names_a_file_that_exists_where_qemu_runs_and_nothing_as_left() -> None:
    fake = machine("unseen-snapshot")
    plan = await plan_of("unseen-snapshot", fake)
    probe = next(step for step in plan.steps if step.way == "probe")
    fake.fail(probe, TargetExists("exists already", file=probe.arguments["filename"]))
    with pytest.raises(TargetExists) as caught:
        await vm_of(fake).run(plan)
    assert (caught.value.left, caught.value.changed) == ((), Changed.NO)


@pytest.mark.parametrize("case", ["commit", "commit-pivot"])
async def test_operation_keeps_its_record_until_the_cleanup_is_done(case: str) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    kept: list[bool] = []
    fake.before = lambda step: kept.append(bool(intents(fake))) if step.command == "retire-file" else None
    await vm_of(fake).run(plan)
    assert all(kept)
    assert plan.steps[-1].command == "finish-record"


async def test_operation_says_so_when_the_record_of_a_whole_copy_could_not_be_removed() -> None:
    fake = machine("mirror-finish")
    plan = await plan_of("mirror-finish", fake)
    for _ in range(2):  # it is tried once more at the end
        fake.fail("finish-record", InvalidTarget("read-only file system", file="/images"))
    with pytest.raises(Incomplete, match="read-only file system") as caught:
        await vm_of(fake).run(plan)
    assert await fake.jobs() == ()
    assert caught.value.hint == f"qmpsnap job wait {plan.job_id} finishes it"
