"""An operation that its caller watches, leaves, or disturbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from qmpsnap.errors import (
    Changed,
    Detached,
    Interrupted,
    JobPaused,
)
from qmpsnap.model.job import JobStatus
from qmpsnap.run.outcome import Done, Hooks
from tests.each import each
from tests.run.operations import (
    CASES,
    INTENTS,
    chains_after,
    check_nothing_is_left,
    intents,
    known_plan,
    machine,
    plan_of,
    vm_of,
)

if TYPE_CHECKING:
    from qmpsnap.run.target import Progress

pytestmark = pytest.mark.timeout(60)


@each("case", [case for case in CASES if known_plan(case).start is not None])
async def test_operation_leaves_a_job_that_an_error_paused_and_says_what_is_changed(case: str) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    fake.hold = True
    paused = JobPaused("paused: no space", job_id=plan.job_id, reason="no space", hint="make room")
    fake.fail("await-job", paused)
    with pytest.raises(JobPaused) as caught:
        await vm_of(fake).run(plan)
    written = plan.op in {"commit", "stream"}
    assert caught.value.changed is (Changed.YES if written else Changed.NO)
    assert caught.value.invalid == plan.invalid_if_stopped
    assert [job.id for job in await fake.jobs()] == [plan.job_id]
    assert intents(fake) == ([plan.job_id] if plan.record else [])


@each("case", [case for case in INTENTS if known_plan(case).start is not None])
async def test_operation_that_is_left_runs_on_and_is_brought_to_its_end_later(case: str) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    fake.hold = True
    leave = anyio.Event()
    fake.before = lambda step: leave.set() if step.command == "await-job" else None
    with pytest.raises(Detached) as caught:
        await vm_of(fake).run(plan, Hooks(detach=leave))
    written = plan.op in {"commit", "stream"}
    assert caught.value.job_id == plan.job_id
    assert caught.value.changed is (Changed.YES if written else Changed.NO)
    assert caught.value.invalid == plan.invalid_if_stopped
    assert [job.status for job in await fake.jobs()] == [JobStatus.RUNNING]
    fake.before = None
    fake.let_go()
    done = await vm_of(fake).jobs.wait(plan.job_id)
    assert isinstance(done, Done)
    assert (done.chains, set(done.invalid)) == (plan.chains_after, set(plan.invalid))
    assert await fake.jobs() == ()
    assert fake.state.chains() == chains_after(plan)
    assert intents(fake) == ([plan.job_id] if case == "commit-keep" else [])


@each("case", [case for case in INTENTS if known_plan(case).start is not None])
async def test_operation_that_was_left_can_be_cancelled_later(case: str) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    fake.hold = True
    leave = anyio.Event()
    leave.set()
    with pytest.raises(Detached):
        await vm_of(fake).run(plan, Hooks(detach=leave))
    done = await vm_of(fake).jobs.cancel(plan.job_id)
    assert done is not None
    written = plan.op in {"commit", "stream"}
    assert (done.changed, done.invalid, done.left) == (written, plan.invalid_if_stopped, ())
    await check_nothing_is_left(fake, started_commit=plan.job_id if plan.op == "commit" else "")


async def test_operation_tells_of_progress_and_of_the_pivot() -> None:
    fake = machine("commit-pivot")
    plan = await plan_of("commit-pivot", fake)
    seen: list[str] = []
    moved: list[object] = []

    async def progress(report: Progress) -> None:
        seen.append(report.job.id)
        fake.let_go()

    fake.hold = True
    await vm_of(fake).run(plan, Hooks(progress=progress, interval=0, on_pivot=moved.append))
    assert set(seen) == {plan.job_id}
    assert moved == [{"vda": "/images/base.qcow2"}]


async def test_operation_is_undone_and_raises_what_its_call_back_raised() -> None:
    fake = machine("mirror-pivot")
    plan = await plan_of("mirror-pivot", fake)
    fake.hold = True

    def progress(report: Progress) -> None:
        raise ZeroDivisionError(report.job.id)

    with pytest.raises(ZeroDivisionError, match=plan.job_id) as caught:
        await vm_of(fake).run(plan, Hooks(progress=progress))
    assert isinstance(caught.value.__cause__, Interrupted)
    await check_nothing_is_left(fake)


async def test_operation_is_done_and_raises_what_its_call_back_at_the_pivot_raised() -> None:
    fake = machine("commit-pivot")
    plan = await plan_of("commit-pivot", fake)

    def moved(active: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await vm_of(fake).run(plan, Hooks(on_pivot=moved))
    assert fake.state.chains() == chains_after(plan)
    assert intents(fake) == []


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("commit", "commit vda --top /images/s1.qcow2 --base /images/base.qcow2"),
        ("commit-pivot", "commit vda --base /images/base.qcow2"),
        ("commit-keep", "commit vda --base /images/base.qcow2 --keep-overlay"),
    ],
)
async def test_commit_that_is_stopped_twice_says_what_mends_it_and_leaves_one_record(
    case: str, words: str
) -> None:
    fake = machine(case)
    for _ in range(2):
        plan = await plan_of(case, fake)
        cancel = anyio.Event()
        fake.hold = True
        fake.before = lambda step, cancel=cancel: cancel.set() if step.command == "await-job" else None
        with pytest.raises(Interrupted) as caught:
            await vm_of(fake).run(plan, Hooks(cancel=cancel))
        assert words in caught.value.hint
        assert intents(fake) == [plan.job_id]
    fake.hold, fake.before = False, None
    done = await vm_of(fake).run(await plan_of(case, fake))
    assert intents(fake) == ([done.job_id] if case == "commit-keep" else [])
