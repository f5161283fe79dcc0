"""Cancelled at every step, and the link lost at every step: nothing of ours stays, nothing is lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from qmpsnap.errors import Busy, Changed, Interrupted, LinkLost, NotFound, QmpsnapError
from qmpsnap.plan.intent import Checkpoint, Mirror, Snapshot
from qmpsnap.run.executor import Executor
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.testing.fake_faults import refused
from tests.each import each
from tests.run.operations import (
    CASES,
    COPY,
    COURSES,
    FILES,
    INTENTS,
    MACHINE,
    all_wait,
    inside,
    intents,
    known_plan,
    machine,
    plan_of,
    tidying,
    turn,
    vm_of,
    writes,
)
from tests.run.places import at_each
from tests.run.states import fake_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpsnap.model.job import Job
    from qmpsnap.model.step import Step
    from qmpsnap.plan.intent import Intent
    from qmpsnap.plan.plan import Plan
    from qmpsnap.testing.fake import FakeTarget

pytestmark = pytest.mark.timeout(60)


def at(plan: Plan, place: int, do: Callable[[], object]) -> Callable[[Step], None]:
    """Call `do` just before the step at that place, once."""
    seen = 0

    def before(step: Step) -> None:
        nonlocal seen
        if seen == place and step == plan.steps[place]:
            do()
        seen += 1

    return before


async def stopped(way: str, case: str, fake: FakeTarget, plan: Plan, place: int) -> BaseException | None:
    """Run the plan and stop it just before that step is done; what came out of it."""
    fake.hold = plan.steps[place].command == "await-job" and place <= turn(case)
    vm = vm_of(fake)
    if way == "hook":
        cancel = anyio.Event()
        fake.before = at(plan, place, cancel.set)
        try:
            await vm.run(plan, Hooks(cancel=cancel))
        except QmpsnapError as error:
            return error
        return None
    if way == "scope":
        with anyio.CancelScope() as scope:
            fake.before = at(plan, place, scope.cancel)
            await vm.run(plan)
        return asyncio.CancelledError() if scope.cancelled_caught else None
    task = asyncio.create_task(vm.run(plan))
    fake.before = at(plan, place, task.cancel)
    await asyncio.wait({task})
    return asyncio.CancelledError() if task.cancelled() else task.exception()


@pytest.mark.parametrize("case", CASES)
async def test_executor_undoes_or_finishes_when_it_is_cancelled_at_any_step(case: str) -> None:
    plan = known_plan(case)
    for way in ("task", "scope", "hook"):
        await at_each(plan, range(len(plan.steps)), partial(_cancelled, case, way), what=f"by {way}")


async def _cancelled(case: str, way: str, place: int) -> None:
    fake = machine(case)
    before = fake.files.names
    plan = known_plan(case)
    error = await stopped(way, case, fake, plan, place)
    fake.before, fake.hold = None, False
    forward = place >= turn(case)
    if way == "hook":
        assert isinstance(error, Interrupted) is not forward
        if isinstance(error, Interrupted):
            written = any(map(writes, plan.steps[: place + 1]))
            assert error.changed is (Changed.YES if written else Changed.NO)
            assert error.invalid == (plan.invalid_if_stopped if written else ())
            by_qemu = case == "unseen-mirror" and plan.start in plan.steps[: place + 1]
            assert error.left == ((f"{COPY} (if QEMU created it)",) if by_qemu else ())
    else:
        assert isinstance(error, asyncio.CancelledError)
    assert await fake.jobs() == ()
    assert fake.watched == 0
    if forward:
        assert fake.state.chains(*plan.disks) == plan.chains_after
        assert intents(fake) == ([plan.job_id] if case == "commit-keep" else [])
        return
    assert fake.state.chains() == FILES
    assert fake.files.names == before
    wrote = plan.op == "commit" and any(map(writes, plan.steps[: place + 1]))
    assert intents(fake) == ([plan.job_id] if wrote else [])
    again = await plan_of(case, fake)
    assert (await vm_of(fake).run(again)).chains == again.chains_after


def truth(fake: FakeTarget, plan: Plan) -> Changed:
    """Whether anything changed, in the chains or in the bytes of any layer."""
    began = any(writes(step) for step in fake._starts.values())
    moved = fake.state.chains() != FILES or inside(fake.state) != inside(MACHINE)
    return Changed.YES if began or moved else Changed.NO


def sent(plan: Plan) -> list[int]:
    """Places of the steps that are sent to QEMU, or wait for it."""
    return [place for place, step in enumerate(plan.steps) if step.on in {"qmp", "wait"}]


@pytest.mark.parametrize("case", CASES)
async def test_executor_tells_the_truth_when_the_link_is_lost_at_any_step(case: str) -> None:
    plan = known_plan(case)
    for happened in (True, False):
        for relinks in (True, False):
            what = f"{happened=} {relinks=}"
            await at_each(plan, sent(plan), partial(_lost, case, happened, relinks), what=what)


async def _lost(case: str, happened: bool, relinks: bool, place: int) -> None:
    fake = machine(case)
    plan = known_plan(case)
    fake.relinks = relinks
    fake.fail(plan.steps[place], LinkLost("gone", step=plan.steps[place].command), happened=happened)
    made = set(fake.files.names)
    with pytest.raises(LinkLost) as caught:
        await vm_of(fake).run(plan)
    error = caught.value
    assert error.changed in {truth(fake, plan), Changed.UNKNOWN}
    if error.changed is not Changed.NO and plan.op == "commit":
        assert error.invalid == plan.invalid_if_stopped
    used = {file for files in fake.state.chains().values() for file in files}
    assert not used & set(error.left)  # no layer is called unused
    assert used <= set(fake.files.names)
    if place < tidying(case):
        assert made <= set(fake.files.names)
    if relinks and not await fake.jobs():
        assert error.changed is truth(fake, plan)
    assert fake.watched == 0


WITH_A_RECORD = [case for case in INTENTS if COURSES[case].startswith("write-record")]


@pytest.mark.parametrize("case", WITH_A_RECORD)
async def test_executor_leaves_what_a_later_client_can_finish_when_the_link_is_lost(case: str) -> None:
    plan = known_plan(case)
    for happened in (True, False):
        await at_each(plan, sent(plan), partial(_left, case, happened), what=f"{happened=}")


async def _left(case: str, happened: bool, place: int) -> None:
    fake = machine(case)
    before = set(fake.files.names)
    plan = known_plan(case)
    fake.relinks = True
    fake.fail(plan.steps[place], LinkLost("gone"), happened=happened)
    with pytest.raises(LinkLost):
        await vm_of(fake).run(plan)
    assert plan.record is not None
    name = plan.record.id
    lies = bool(intents(fake))
    try:
        result = await vm_of(fake).jobs.wait(name)
    except NotFound:
        assert not lies
        result = None
    except QmpsnapError as error:
        result = None
        assert error.changed in {truth(fake, plan), Changed.UNKNOWN}  # noqa: PT017 - one of several ends
    if isinstance(result, Done):
        assert set(result.invalid) <= set(fake.files.names)
    assert await fake.jobs() == ()
    used = {file for files in fake.state.chains().values() for file in files}
    assert used <= set(fake.files.names)
    finished = fake.state.chains(*plan.disks) == plan.chains_after
    kept = {str(file) for file in (plan.record.target,) if file}  # a copy that nobody can judge
    if not finished:
        assert set(fake.files.names) - before <= kept
    elif case != "commit-keep":
        assert intents(fake) == []


@each("case", CASES)
async def test_executor_says_that_nothing_changed_when_the_link_is_lost_before_anything_was_sent(
    case: str,
) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    first = next(step for step in plan.steps if step.on == "qmp")
    fake.fail("graph", LinkLost("gone"))
    with pytest.raises(LinkLost) as caught:
        await vm_of(fake).run(plan)
    assert first not in fake.performed
    assert (caught.value.left, caught.value.invalid) == ((), ())


async def until_it_waits(fake: FakeTarget) -> None:
    while not any(step.command == "await-job" for step in fake.performed):  # noqa: ASYNC110 - of the fake's turns
        await asyncio.sleep(0)


async def test_executor_runs_plans_of_one_disk_one_after_the_other() -> None:
    fake = machine("stream")
    executor = Executor(fake)
    plan = await plan_of("stream", fake)
    fake.hold = True
    first = asyncio.create_task(executor.run(plan))
    await until_it_waits(fake)
    second = asyncio.create_task(executor.run(plan, wait=True))
    await asyncio.sleep(0)
    count = len(fake.performed)
    fake.let_go()
    await first
    with pytest.raises(QmpsnapError, match="have changed since the plan was made"):
        await second
    assert len(fake.performed) == count + 5  # the first one's end, and its record


BESIDE: dict[str, Intent] = {
    "snapshot": Snapshot("n1", ("vdb",)),
    "snapshot-internal": Snapshot("n1", ("vdb",), inside=True),
    "mirror": Mirror("vdb", "/images/other.qcow2", "pivot", discard_internal=True),
}


@pytest.mark.parametrize("case", ["stream", "commit", "commit-pivot", "mirror-pivot", "mirror-finish"])
@pytest.mark.parametrize("beside", BESIDE)
async def test_executor_runs_plans_of_disjoint_disks_side_by_side(case: str, beside: str) -> None:
    alone = machine(case)
    alone_done = await vm_of(alone).run(await plan_of(case, alone))
    fake = machine(case)
    vm = vm_of(fake)
    fake.hold = True
    long = asyncio.create_task(vm.run(await plan_of(case, fake)))
    await until_it_waits(fake)
    (job,) = await vm.jobs.list()
    short = asyncio.create_task(vm.run(await vm.plan(BESIDE[beside])))
    await all_wait()
    assert not long.done()
    assert job.id in {one.id for one in await vm.jobs.list()}
    if beside == "mirror":
        assert len(await vm.jobs.list()) == 2
    else:
        assert short.done()
    fake.let_go()
    done = await short
    assert (await long).chains == alone_done.chains
    assert fake.state.chains() == alone_done.chains | done.chains | {
        disk: files for disk, files in FILES.items() if disk not in {*alone_done.chains, *done.chains}
    }
    assert await fake.jobs() == ()
    assert fake.watched == 0
    assert intents(fake) == ([job.id] if case == "commit-keep" else [])


@pytest.mark.parametrize(
    ("name", "more"),
    [("snapshot", {}), ("checkpoint", {}), ("checkpoint", {"mode": "internal"}), ("delete", {})],
)
async def test_what_has_a_disk_in_common_with_a_copying_one_is_refused_or_waits(
    name: str, more: dict[str, Any]
) -> None:
    fake = machine("mirror-finish")
    vm = vm_of(fake)
    fake.hold = True
    long = asyncio.create_task(vm.mirror("vda", COPY, ending="finish"))
    await until_it_waits(fake)
    (job,) = await vm.jobs.list()
    moment = "old" if name == "delete" else "n1"
    before = list(fake.performed)
    with pytest.raises(Busy) as caught:
        await getattr(vm, name)(moment, **more)
    assert (caught.value.job_id, fake.performed) == (job.id, before)
    waiting = asyncio.create_task(getattr(vm, name)(moment, wait=True, **more))
    await all_wait()
    assert (waiting.done(), fake.performed) == (False, before)
    fake.let_go()
    assert (await long).op == "mirror"
    assert (await waiting).op.startswith(name)
    assert fake.watched == 0


async def test_what_has_to_wait_is_not_overtaken_by_what_came_later() -> None:
    fake = machine("mirror-finish")
    vm = vm_of(fake)
    fake.hold = True
    long = asyncio.create_task(vm.run(await plan_of("mirror-finish", fake)))
    await until_it_waits(fake)
    ended: list[str] = []

    async def run(name: str, plan: Plan) -> None:
        await vm.run(plan, wait=True)
        ended.append(name)

    both = await vm.plan(Snapshot("n3", ("vdb",)))
    whole = asyncio.create_task(run("whole", replace(both, disks=("vda", "vdb"))))
    await all_wait()
    later = asyncio.create_task(run("later", await vm.plan(Snapshot("n2", ("vdb",), inside=True))))
    await all_wait()
    assert ended == []
    fake.let_go()
    await long
    await asyncio.wait({whole, later})
    assert ended[:1] == ["whole"]


async def test_cancelling_one_operation_leaves_another_alone() -> None:
    fake = machine("stream")
    vm = vm_of(fake)
    fake.hold = True
    one = asyncio.create_task(vm.stream("vda", base="base"))
    await until_it_waits(fake)
    other = asyncio.create_task(vm.mirror("vdb", "/images/other.qcow2", ending="finish"))
    await all_wait()
    assert len(await vm.jobs.list()) == 2
    one.cancel()
    await asyncio.wait({one})
    assert one.cancelled()
    assert [job.type for job in await vm.jobs.list()] == ["mirror"]
    assert fake.state.chains("vda") == {"vda": FILES["vda"]}
    fake.let_go()
    assert (await other).chains == {"vdb": FILES["vdb"]}


async def test_executor_plans_again_when_another_plan_ran_in_between() -> None:
    fake = machine("snapshot")
    vm = vm_of(fake)
    one, two = await asyncio.gather(vm.snapshot("n1"), vm.snapshot("n2"))
    assert {disk: files[1:] for disk, files in two.chains.items()} == one.chains


async def test_executor_waits_for_the_end_however_often_it_is_cancelled() -> None:
    fake = machine("mirror-pivot")
    plan = await plan_of("mirror-pivot", fake)
    fake.hold = True
    task = asyncio.create_task(vm_of(fake).run(plan))
    await until_it_waits(fake)
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait({task})
    assert task.cancelled()
    assert await fake.jobs() == ()
    assert fake.state.chains() == FILES


async def test_executor_gives_up_when_what_is_cancelled_does_not_end_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = machine("mirror-pivot")
    executor = Executor(fake, after_cancel=0.02)
    plan = await plan_of("mirror-pivot", fake)
    fake.hold = True
    fake.fail("job-cancel", refused("the main loop is busy"))  # so that the job runs on for ever
    task = asyncio.create_task(executor.run(plan))
    await until_it_waits(fake)
    task.cancel()
    with anyio.fail_after(30), caplog.at_level("INFO", "qmpsnap"):
        await asyncio.wait({task})
    assert task.cancelled()
    assert [vars(record)["event"] for record in caplog.records] == ["operation.given_up"]
    assert fake.watched == 0
    await fake.execute("job-cancel", {"id": plan.job_id})


async def test_executor_says_that_a_guest_may_be_paused_when_it_gives_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = fake_of()
    fake.hold = True
    plan = await vm_of(fake).plan(Checkpoint("c1", "in-place"))

    async def never_ends(step: Step) -> Job:
        await anyio.sleep_forever()
        raise AssertionError(step)

    fake.wait = never_ends  # type: ignore[method-assign]  # QEMU writes the memory, and writes it
    task = asyncio.create_task(Executor(fake, after_cancel=0.02).run(plan))
    await all_wait()
    task.cancel()
    with anyio.fail_after(30), caplog.at_level("WARNING", "qmpsnap"):
        await asyncio.wait({task})
    (record,) = caplog.records
    assert (vars(record)["event"], vars(record)["guest"], vars(record)["ended_by"]) == (
        "operation.given_up", "may stay paused until then", f"qmpsnap job wait {plan.job_id}",
    )  # fmt: skip


async def test_executor_says_how_an_operation_ended_whose_caller_had_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = machine("mirror-pivot")
    plan = await plan_of("mirror-pivot", fake)
    fake.hold = True
    task = asyncio.create_task(vm_of(fake).run(plan))
    await until_it_waits(fake)
    task.cancel()
    with caplog.at_level("INFO", "qmpsnap"):
        await asyncio.wait({task})
    assert vars(caplog.records[-1])["event"] == "operation.cancelled"
    assert "stopped as requested" in vars(caplog.records[-1])["outcome"]


async def test_executor_lets_go_of_a_caller_that_left_while_another_plan_ran() -> None:
    fake = machine("stream")
    executor = Executor(fake)
    plan = await plan_of("stream", fake)
    fake.hold = True
    first = asyncio.create_task(executor.run(plan))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(executor.run(plan, wait=True))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    await until_it_waits(fake)
    fake.let_go()
    assert isinstance(await first, Done)


def test_the_cases_have_every_kind_of_step_that_is_sent() -> None:
    kinds = {step.way for case in CASES for step in known_plan(case).steps}
    assert {"take", "job-complete", "block-job-cancel", "probe", "await-job"} <= kinds


@each("case", CASES)
def test_the_cases_courses_are_those_of_their_plans(case: str) -> None:
    plan = known_plan(case)
    drawn = [stage.split() for stage in COURSES[case].replace(" | ", " ").removeprefix("| ").split(" || ")]
    tidy = [step.command for stage in plan.stages if stage.tidy for step in stage.steps]
    rest = [step.command for stage in plan.stages if not stage.tidy for step in stage.steps]
    assert drawn == ([rest, tidy] if tidy else [rest])
