"""Operations on VM state by jobs: what becomes of the guest, of the job and of the record."""

from __future__ import annotations

import pytest

from qmpsnap.errors import Busy, Changed, JobFailed, NotFound
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.commands.jobs import job_dismiss
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.intent import Checkpoint, Delete, Intent, Mirror, Revert
from qmpsnap.run.machine_lock import Hold, MachineLock
from qmpsnap.run.operation import Operation
from qmpsnap.run.outcome import Hooks
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.scenes import ONE_DISK, job, planned, with_layer
from tests.run.operations import inside, intents, vm_of

pytestmark = pytest.mark.timeout(60)

EARLY = "Snapshot 'c1' does not exist in one or more devices"
LATE = "Size mismatch: pc.ram: 0x4000000 != 0x6000000: Invalid argument"
MIRROR = next(
    step for step in planned(Mirror("vda", "/copy", "finish"), ONE_DISK).steps if step.copy is not None
)
SAVE, LOAD = Checkpoint("c2", "internal", via="jobs"), Revert("c1", via="jobs")


def with_checkpoint(*, running: bool = True) -> FakeTarget:
    state = InternalSnapshot("1", "c1", 4096)
    drawn = graph(with_layer(chain("base <- s1*"), 0, snapshots=(state,)))
    return FakeTarget(drawn, machine=a_machine(drawn, running=running))


async def test_operation_reverts_by_a_job_and_reports_the_state_and_the_standstill() -> None:
    fake = with_checkpoint()
    done = await vm_of(fake).run(await vm_of(fake).plan(LOAD))
    assert (done.op, done.bytes, done.standstill_s) == ("revert-internal", 4096, 0.25)
    assert (await fake.jobs(), intents(fake)) == ((), [])


@each("running", [True, False])
async def test_operation_lets_a_guest_that_ran_run_on_when_a_load_failed_before_anything_moved(
    *, running: bool
) -> None:
    fake = with_checkpoint(running=running)
    fake.job_error = EARLY
    with pytest.raises(JobFailed) as caught:
        await vm_of(fake).run(await vm_of(fake).plan(LOAD))
    assert caught.value.changed is Changed.NO
    assert (cont() in fake.performed) is running
    assert (await fake.jobs(), intents(fake)) == ((), [])


async def test_operation_leaves_the_guest_paused_when_a_load_failed_half_way() -> None:
    fake = with_checkpoint()
    fake.job_error = LATE
    with pytest.raises(JobFailed) as caught:
        await vm_of(fake).run(await vm_of(fake).plan(LOAD))
    assert caught.value.changed is Changed.YES
    assert "cannot be trusted" in caught.value.hint
    assert cont() not in fake.performed
    assert (await fake.jobs(), intents(fake)) == ((), [])


@each("intent", [SAVE, Delete("c1", via="jobs")])
async def test_operation_says_that_a_job_that_failed_changed_nothing(intent: Intent) -> None:
    fake = with_checkpoint()
    fake.job_error = "Input/output error"
    with pytest.raises(JobFailed) as caught:
        await vm_of(fake).run(await vm_of(fake).plan(intent))
    assert (caught.value.changed, inside(fake.state)) == (Changed.NO, {"vda": ["c1"]})
    assert (await fake.jobs(), intents(fake)) == ((), [])


async def test_operation_asks_for_no_progress_of_a_job_that_holds_qemu() -> None:
    fake = with_checkpoint()
    asked: list[str] = []
    progress = fake.progress

    def note(job_id: str, interval: float) -> object:
        asked.append(job_id)
        return progress(job_id, interval)

    fake.progress = note  # type: ignore[method-assign, assignment]
    await vm_of(fake).run(await vm_of(fake).plan(SAVE), Hooks(progress=lambda _: None))
    assert asked == []


@each(
    "intent",
    [SAVE, LOAD, Checkpoint("c2", "internal"), Revert("c1"), Checkpoint("c2"), Checkpoint("c2", "in-place")],
)
async def test_operation_is_refused_when_a_job_has_begun_since_it_was_planned(intent: Intent) -> None:
    fake = with_checkpoint()
    plan = await vm_of(fake).plan(intent)
    fake.start_job(job("theirs"), MIRROR)
    with pytest.raises(Busy, match="job 'theirs' \\(mirror, running\\) is running") as caught:
        await Operation(fake, plan, Hooks(), None, Hold(MachineLock(lambda: None)), fresh=True).run()
    assert (caught.value.changed, fake.performed, intents(fake)) == (Changed.NO, [], [])


# -- whose client went away ------------------------------------------------------------------------


async def left_by(intent: Intent, fake: FakeTarget, *, status: str, error: str | None = None) -> str:
    """Let the operation's job have ended so, and its record be there; return the id."""
    plan = await vm_of(fake).plan(intent)
    written = next(step for step in plan.steps if step.command == "write-record")
    await fake.perform(written)
    start = next(step for step in plan.steps if step.command == "snapshot-load")
    fake.start_job(Job(plan.job_id, "snapshot-load", JobStatus.CONCLUDED, error=error), start)
    fake.guest.now = a_machine(fake.state, running=status == "running", status=status)
    fake.performed.clear()
    return plan.job_id


@each("way", ["wait", "cancel"])
@each(
    ("status", "error", "resumed"),
    [("restore-vm", EARLY, True), ("restore-vm", LATE, False), ("paused", EARLY, False)],
)
async def test_resume_of_a_load_that_failed_lets_the_guest_run_on_only_where_nothing_moved(
    way: str, status: str, error: str, *, resumed: bool
) -> None:
    fake = with_checkpoint()
    job_id = await left_by(LOAD, fake, status=status, error=error)
    vm = vm_of(fake)
    with pytest.raises(JobFailed) as caught:
        await (vm.jobs.wait(job_id) if way == "wait" else vm.jobs.cancel(job_id))
    assert caught.value.changed is (Changed.YES if error == LATE else Changed.NO)
    assert (cont() in fake.performed) is resumed
    assert job_dismiss(job_id) in fake.performed
    assert (await fake.jobs(), intents(fake)) == ((), [])


async def test_resume_of_a_load_that_succeeded_finishes_its_record() -> None:
    fake = with_checkpoint()
    job_id = await left_by(LOAD, fake, status="running")
    done = await vm_of(fake).jobs.wait(job_id)
    assert not isinstance(done, Job)
    assert (done.op, done.bytes) == ("revert-internal", 4096)
    assert (await fake.jobs(), intents(fake)) == ((), [])
    with pytest.raises(NotFound):
        await vm_of(fake).jobs.wait(job_id)


async def test_resume_of_a_load_without_a_job_that_failed_half_way_says_so_and_that_it_is_changed() -> None:
    fake = with_checkpoint()
    plan = await vm_of(fake).plan(Revert("c1"))
    await fake.perform(plan.steps[0])
    (left,) = (one for one in fake.files.records if isinstance(one, IntentRecord))
    fake.guest.now = a_machine(fake.state, running=False, status="restore-vm")
    with pytest.raises(JobFailed, match="while reverting to 'c1'; the guest is paused") as caught:
        await vm_of(fake).jobs.wait(left.id)
    assert caught.value.changed is Changed.YES
    assert intents(fake) == []
