"""What is asked before a plan: nothing of the guest where disks alone are worked on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, Detached, Refused, StillNeeded, Unsupported
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.intent import Checkpoint, Commit, Mirror, Revert, Save, Snapshot, Stream
from qmpsnap.run.outcome import Hooks
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.scenes import with_layer
from tests.run.operations import COPY, MACHINE, vm_of
from tests.run.states import fake_of

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent

pytestmark = pytest.mark.timeout(60)

ON_DISKS = [
    Snapshot("n1"),
    Snapshot("n1", inside=True),
    Stream("vda"),
    Commit("vda"),
    Mirror("vda", COPY, "finish"),
]


@each(
    ("changes", "error", "text"),
    [
        ({"migration": "active"}, Busy, r"a migration is running \(active\)"),
        ({"migration": "setup"}, Busy, r"\(setup\)"),
        ({"migration": "postcopy-paused"}, Busy, r"\(postcopy-paused\)"),
        ({"status": "postmigrate", "migration": "completed"}, Unsupported, "deactivated its images"),
        ({"status": "inmigrate"}, Unsupported, "waits for VM state"),
    ],
)
@each("intent", ON_DISKS)
async def test_plan_leaves_the_disks_of_a_machine_alone_that_is_migrated(
    intent: Intent, changes: dict[str, Any], error: type[Refused], text: str
) -> None:
    fake = FakeTarget(MACHINE, machine=a_machine(MACHINE, **changes))
    with pytest.raises(error, match=text) as caught:
        await vm_of(fake).plan(intent)
    assert caught.value.hint
    for migration in ("none", "completed", "failed", "cancelled"):
        fake.guest.now = a_machine(MACHINE, migration=migration)
        assert (await vm_of(fake).plan(intent)).steps


async def test_plan_of_disks_does_not_ask_for_the_guest_and_one_of_vm_state_does() -> None:
    fake = fake_of()
    await vm_of(fake).checkpoint("c1")
    asked: list[str] = []
    machine = fake.guest.machine

    async def ask(graph: Any, *, occupied: bool = False) -> Any:
        asked.append("machine and its memory in use" if occupied else "machine")
        return await machine(graph)

    fake.guest.machine = ask  # type: ignore[method-assign]
    for intent in (Snapshot("n1"), Stream("vda"), Revert("c1", into="new")):
        plan = await vm_of(fake).plan(intent)
        assert (plan.run_state, asked) == ("", [])
    assert (await vm_of(fake).plan(Checkpoint("c2"))).run_state == "running"
    assert (await vm_of(fake).plan(Save("/images/vm.state"))).run_state == "running"
    with pytest.raises(Unsupported):  # its memory is for a new QEMU
        await vm_of(fake).plan(Revert("c1"))
    assert asked == [*["machine and its memory in use"] * 2, "machine"]


async def test_a_refusal_at_the_second_look_does_not_ask_for_the_run_state_of_a_plan_of_disks() -> None:
    fake = FakeTarget(MACHINE)
    vm = vm_of(fake)
    plan = await vm.plan(Stream("vda"))
    fake.guest.now = replace(fake.guest.now, migration="active")
    fake.guest.run_state = None  # type: ignore[assignment, method-assign]
    with pytest.raises(Busy, match="a migration is running"):
        await vm.run(plan)
    assert fake.performed == []


async def test_a_disk_that_is_off_is_not_changed_by_a_layer_on_which_an_image_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeTarget(MACHINE)
    active = MACHINE.disks["vda"].active.file
    fake.files.put("/images/newer.qcow2", backing=active)
    vm = vm_of(fake)
    changes: tuple[Intent, ...] = (Snapshot("n1", inside=True), Stream("vda"), Mirror("vda", COPY, "finish"))
    for intent in changes:
        assert (await vm.plan(intent)).steps  # of a machine that runs it is a warning
    monkeypatch.setattr(fake, "guest", None)
    monkeypatch.setattr(fake, "refuse_migrated", fake.features)  # which refuses nothing
    for intent in changes:
        with pytest.raises(StillNeeded, match=r"still needed by /images/newer.qcow2: backed by") as caught:
            await vm.plan(intent)
        assert caught.value.by == ("/images/newer.qcow2",)
        assert "-i vda=/images/newer.qcow2" in caught.value.hint
    for intent in (
        Snapshot("n1"),
        Mirror("vdb", COPY, "finish"),
        Commit("vda", invalidate=("/images/newer.qcow2",)),
    ):
        assert (await vm.plan(intent)).steps


# -- what goes on while it is looked at ------------------------------------------------------------


async def left(fake: FakeTarget, intent: Intent) -> str:
    """Begin an operation whose job goes on without its client; return the job's id."""
    detach = anyio.Event()
    fake.hold = True
    with pytest.raises(Detached) as caught:
        await vm_of(fake).do(intent, Hooks(progress=lambda _: detach.set(), detach=detach))
    return caught.value.job_id


async def test_resume_waits_for_a_job_that_ends_while_the_files_are_looked_at() -> None:
    fake = FakeTarget(MACHINE)
    job_id = await left(fake, Stream("vda", "base"))
    look = fake.look

    async def look_and_end(ask: Any, graph: Any) -> Any:
        files = await look(ask, graph)
        fake.let_go()
        fake._set(job_id, JobStatus.NULL)
        return files

    fake.look = look_and_end  # type: ignore[method-assign]
    plan = await vm_of(fake).jobs.plan(job_id)
    assert [job.id for job in await fake.jobs()] == []
    assert (plan.vanished, plan.steps[0]) == ("", await_job(job_id, "pending"))


async def test_resume_lets_a_guest_run_whose_load_fails_while_the_run_state_is_asked_for() -> None:
    inside = (InternalSnapshot("1", "c1", vm_state_size=4096),)
    fake = fake_of(graph(with_layer(chain("base <- s1*"), 0, snapshots=inside)))
    vm = vm_of(fake)
    begun = await vm.plan(Revert("c1", via="jobs"))
    (load,) = (step for step in begun.steps if step.command == "snapshot-load")
    assert begun.record is not None
    directory = begun.steps[0].arguments["directory"]
    fake.files.records.append(replace(begun.record, directory=directory))
    fake.start_job(Job(load.job_id, "snapshot-load", JobStatus.RUNNING), load)
    machine = fake.guest.machine

    async def ask_and_fail(graph: Any, *, occupied: bool = False) -> Any:
        answer = await machine(graph, occupied=occupied)
        fake._set(load.job_id, JobStatus.CONCLUDED, "it failed")
        fake.guest.now = replace(fake.guest.now, status=FOR_A_LOAD, running=False)
        return answer

    fake.guest.machine = ask_and_fail  # type: ignore[method-assign]
    plan = await vm.jobs.plan(load.job_id)
    assert plan.resumes[-1].undo == (cont(), job_dismiss(load.job_id))


async def test_resume_looks_at_the_file_of_a_save_after_the_run_state_in_which_that_ends() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    begun = await vm.plan(Save("/images/vm.state"))
    assert begun.record is not None
    assert begun.record.state is not None
    partial, machine = begun.record.state.partial, fake.guest.machine
    fake.files.records.append(replace(begun.record, directory=begun.steps[0].arguments["directory"]))

    async def end_and_ask(graph: Any, *, occupied: bool = False) -> Any:
        fake.files.put(partial)
        fake.guest.now = replace(fake.guest.now, status="postmigrate", running=False, migration="completed")
        return await machine(graph, occupied=occupied)

    fake.guest.machine = end_and_ask  # type: ignore[method-assign]
    assert cont() in (await vm.jobs.plan(begun.record.id)).steps
