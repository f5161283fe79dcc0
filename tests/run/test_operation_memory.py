"""Operations on VM state in files: success, failure at each step, a wish to stop, a lost link."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    Busy,
    Changed,
    GraphMismatch,
    Incomplete,
    Interrupted,
    InvalidTarget,
    JobFailed,
    LinkLost,
    MigrationFailed,
    QmpsnapError,
)
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import MoveRoot
from qmpsnap.plan.commands.migration import await_migration
from qmpsnap.plan.commands.state import cont, snapshot_save, stop
from qmpsnap.plan.intent import Checkpoint
from qmpsnap.run.outcome import Hooks
from qmpsnap.testing.fake_faults import refused
from tests.each import each
from tests.run.operations import vm_of
from tests.run.places import at_each
from tests.run.states import CASES, begun, known_plan, stand

if TYPE_CHECKING:
    from qmpsnap.model.step import Root, Step
    from qmpsnap.plan.plan import Plan
    from qmpsnap.run.outcome import Done
    from qmpsnap.testing.fake import FakeTarget
    from tests.run.states import Stand

pytestmark = pytest.mark.timeout(60)

STATE_BYTES = 4 << 20
# Seconds from STOP to RESUME; 0 where the guest was paused, or has to stand from then on.
STANDSTILL = {"stop-paused": 0.0, "in-place-paused": 0.0, "revert-paused": 0.0, "save": None}
STANDSTILL |= dict.fromkeys(["prepare", "incoming", "restore", "delete"])
EARLY, LATE = "Snapshot 'x' does not exist in one or more devices", "Error -5 while loading VM state"


def settings(of: Stand) -> tuple[object, ...]:
    return (of.capabilities, of.parameters, of.passed)


def moment(fake: FakeTarget, name: str) -> MomentRecord:
    (found,) = [one for one in fake.files.records if isinstance(one, MomentRecord) and one.name == name]
    return found


@each("case", CASES)
async def test_operation_on_state_does_what_its_plan_says(case: str) -> None:
    fake = await begun(case)
    before = stand(fake)
    plan = await vm_of(fake).plan(CASES[case].intent)
    done = await vm_of(fake).run(plan)
    now = stand(fake)
    assert fake.performed == list(plan.steps)
    assert now.chains == (plan.after.chains() if plan.after is not None else None)
    assert settings(now) == settings(before)
    assert await fake.jobs() == ()
    assert not [record for record in fake.files.records if isinstance(record, IntentRecord)]
    assert (done.op, done.chains, done.notes) == (plan.op, plan.chains_after, plan.notes)
    assert done.active == {disk: plan.chains_after[disk][0] for disk in plan.moves}
    assert done.standstill_s == STANDSTILL.get(case, 0.25)
    assert done.bytes == (0 if case in {"revert-disks", "prepare", "delete"} else STATE_BYTES)
    assert (dict(done.prepared), done.memory) == (dict(plan.prepared), plan.memory)


@each("case", CASES)
async def test_operation_on_state_leaves_the_guest_as_it_was_or_as_it_was_kept(case: str) -> None:
    fake = await begun(case)
    ran = fake.guest.now.running
    await vm_of(fake).run(await vm_of(fake).plan(CASES[case].intent))
    assert fake.guest.now.running is (case in {"incoming", "restore"} or (ran and case != "save"))


@each("case", [case for case in CASES if known_plan(case).op == "checkpoint"])
async def test_operation_keeps_the_file_of_a_checkpoint_with_its_moment(case: str) -> None:
    fake = await begun(case)
    ran = fake.guest.now.running
    await vm_of(fake).run(await vm_of(fake).plan(CASES[case].intent))
    state = moment(fake, "c1").state
    assert state is not None
    assert (state.mode, state.running) == (case.removesuffix("-old").removesuffix("-paused"), ran)
    assert state.file in fake.files.names
    assert state.partial not in fake.files.names


@each("case", [case for case in CASES if case.startswith(("revert", "prepare"))])
async def test_operation_keeps_the_branch_that_a_revert_begins(case: str) -> None:
    fake = await begun(case)
    plan = await vm_of(fake).plan(CASES[case].intent)
    await vm_of(fake).run(plan)
    made = {step.arguments["file"] for step in plan.steps if step.command == "create-overlay"}
    branches = moment(fake, "c2" if case == "revert-aside" else "c1").branches
    assert set(branches[-1].values()) == made


def refusal(step: Step) -> QmpsnapError:
    match step.command:
        case "await-migration":
            return MigrationFailed("it says no", error="no")
        case "await-job":
            return JobFailed("it says no", job_id=step.job_id, error=LATE)
        case _ if step.on == "qmp" or step.command == "check-roots":
            return refused("it says no", command=step.command)
        case _:
            return InvalidTarget("it says no", file="/images/x")


async def fails_at(case: str, place: int) -> tuple[FakeTarget, Plan, Stand, QmpsnapError]:
    fake = await begun(case)
    plan = known_plan(case)
    before = stand(fake)
    error = refusal(plan.steps[place])
    fake.fail(plan.steps[place], error)
    with pytest.raises(type(error)) as caught:
        await vm_of(fake).run(plan)
    assert caught.value is error
    assert await fake.jobs() == ()
    assert fake.watched == 0
    return fake, plan, before, error


def no_return(plan: Plan, place: int) -> str:
    """What was done before that step that stays done: "overlays", "load", or ""."""
    done = plan.steps[:place]
    if any(step.way == "take" for step in done):
        return "overlays"
    # The job's end tells of a load, not the command.
    loaded = any(step.command == "snapshot-load" for step in done)
    return "load" if loaded or any(step.command == "system_reset" for step in done) else ""


def places(case: str, stays: str) -> list[int]:
    """Places of the steps that only a plan which has not succeeded performs, where that stays."""
    plan = known_plan(case)
    tidy = [stage.tidy for stage in plan.stages for _ in stage.steps]
    return [place for place, kind in enumerate(tidy) if not kind and no_return(plan, place) == stays]


@pytest.mark.parametrize("case", CASES)
async def test_operation_on_state_rolls_everything_back_when_a_step_fails(case: str) -> None:
    await at_each(known_plan(case), places(case, ""), partial(_taken_back, case))


async def _taken_back(case: str, place: int) -> None:
    fake, plan, before, error = await fails_at(case, place)
    assert stand(fake) == before
    assert (error.changed, error.left) == (Changed.NO, ())
    if fake.guest.now.migration == "completed" and not before.running:
        assert "postmigrate" in error.hint or await_migration("saved") not in plan.steps[:place]
        return  # QEMU takes no second migration before the guest has run
    done = await vm_of(fake).run(await vm_of(fake).plan(CASES[case].intent))
    assert done.chains == plan.chains_after


@pytest.mark.parametrize("case", [case for case in CASES if places(case, "overlays")])
async def test_operation_leaves_the_overlays_alone_when_a_checkpoint_fails_after_them(case: str) -> None:
    await at_each(known_plan(case), places(case, "overlays"), partial(_overlays_stay, case))


async def _overlays_stay(case: str, place: int) -> None:
    fake, plan, before, error = await fails_at(case, place)
    overlays = tuple(step.arguments["file"] for step in plan.steps if step.command == "create-overlay")
    assert stand(fake) == dataclasses.replace(
        before,
        chains=plan.chains_after,
        files=tuple(sorted((*before.files, *overlays))),
        opened=tuple(sorted((*before.opened, *overlays))),
    )
    assert error.changed is Changed.YES
    assert [left.split()[0] for left in error.left] == list(overlays)
    assert all("qmpsnap commit" in left for left in error.left)


@pytest.mark.parametrize("case", [case for case in CASES if places(case, "load")])
async def test_operation_leaves_the_guest_paused_when_it_fails_once_its_memory_was_touched(case: str) -> None:
    await at_each(known_plan(case), places(case, "load"), partial(_guest_stands, case))


async def _guest_stands(case: str, place: int) -> None:
    fake, plan, before, error = await fails_at(case, place)
    now = stand(fake)
    assert (now.chains, now.running) == (plan.chains_after, False)
    assert set(before.files) <= set(now.files)
    assert error.changed is Changed.YES
    assert not [node for node in fake.state.nodes.values() if "vmstate" in node.file]
    assert (error.left, bool(error.hint)) == ((), True)
    assert not [record for record in fake.files.records if isinstance(record, IntentRecord)]
    branch = {disk: plan.chains_after[disk][0] for disk in plan.moves}
    assert moment(fake, "c2" if case == "revert-aside" else "c1").branches[-1] == branch


LOADS = [case for case in CASES if any(step.command == "snapshot-load" for step in known_plan(case).steps)]


@pytest.mark.parametrize("case", LOADS)
async def test_operation_rolls_everything_back_when_a_load_fails_before_it_moves_anything(case: str) -> None:
    fake = await begun(case)
    before = stand(fake)
    fake.job_error = EARLY
    with pytest.raises(JobFailed) as caught:
        await vm_of(fake).run(await vm_of(fake).plan(CASES[case].intent))
    assert stand(fake) == before
    assert caught.value.changed is Changed.NO


@pytest.mark.parametrize("case", LOADS)
async def test_operation_says_what_helps_when_a_load_fails_half_way(case: str) -> None:
    fake = await begun(case)
    fake.job_error = LATE
    moved: list[object] = []
    plan = await vm_of(fake).plan(CASES[case].intent)
    with pytest.raises(JobFailed) as caught:
        await vm_of(fake).run(plan, Hooks(on_pivot=moved.append))
    assert "cannot be trusted: revert again" in caught.value.hint
    assert moved == [{disk: files[0] for disk, files in plan.chains_after.items()}]
    assert not fake.guest.now.running


async def test_operation_reverts_once_more_after_a_load_that_failed_half_way() -> None:
    fake = await begun("revert-emulated")
    fake.job_error = LATE
    with pytest.raises(JobFailed):
        await vm_of(fake).revert("c1")
    assert fake.guest.now.status == FOR_A_LOAD
    fake.job_error = ""
    done = await vm_of(fake).revert("c1")
    assert not [note for note in done.notes if "stale" in note]


def root_of(step: Step) -> Root:
    assert isinstance(step.effect, MoveRoot)
    return step.effect.root


async def test_operation_does_not_set_a_root_that_the_device_has_kept() -> None:
    fake = await begun("revert")
    plan = await vm_of(fake).plan(CASES["revert"].intent)
    kept = next(step for step in plan.steps if step.command == "qom-set")
    doing, before = fake._change, stand(fake)
    fake._change = lambda state, step: state if step == kept else doing(state, step)
    with pytest.raises(QmpsnapError, match="kept its root"):
        await vm_of(fake).run(plan)
    assert stand(fake) == before
    assert [root_of(step).disk for step in fake.performed if step.command == "qom-set"] == [
        "vda",
        "vdb",
        "vdb",
    ]


# What the record is needed for when it fails: it tells whoever comes next what is owed.
OWED = {"keep-branch", "keep-moment", "finish-record", "migrate-set-capabilities", "migrate-set-parameters"}
OWED |= {"retire-file"}


@pytest.mark.parametrize("case", CASES)
async def test_operation_on_state_says_which_cleanup_failed(case: str) -> None:
    plan = known_plan(case)
    tidy = [stage.tidy for stage in plan.stages for _ in stage.steps]
    places = [place for place, kind in enumerate(tidy) if kind]
    await at_each(plan, places, partial(_stays, case))


async def _stays(case: str, place: int) -> None:
    fake = await begun(case)
    plan = known_plan(case)
    step = plan.steps[place]
    fake.fail(step, refusal(step))
    with pytest.raises(Incomplete) as caught:
        await vm_of(fake).run(plan)
    assert caught.value.remaining == (f"{step.command} {step.arguments}",)
    assert fake.state.chains(*plan.disks) == plan.chains_after
    records = [one for one in fake.files.records if isinstance(one, IntentRecord)]
    assert bool(records) is (step.command in OWED and plan.record is not None)


@pytest.mark.parametrize("case", CASES)
async def test_operation_on_state_that_is_to_stop_is_undone_or_done(case: str) -> None:
    every = [place for stays in ("", "overlays", "load") for place in places(case, stays)]
    await at_each(known_plan(case), every, partial(stops_at, case))


async def stops_at(case: str, place: int) -> None:
    fake = await begun(case)
    plan = known_plan(case)
    before = stand(fake)
    stop = anyio.Event()
    fake.before = lambda step: stop.set() if step == plan.steps[place] else None
    done = await outcome(fake, plan, Hooks(cancel=stop))
    now = stand(fake)
    assert (settings(now), await fake.jobs()) == (settings(before), ())
    if not isinstance(done, Interrupted):
        assert now.chains == plan.chains_after
        return
    assert (now.running, now.records) == (before.running, before.records)
    rolled_back = "and rolled back" in done.message
    assert rolled_back is (done.changed is Changed.NO) is (now.chains == before.chains)
    if now.chains == before.chains:
        assert now == before
    else:  # a checkpoint in the background, whose overlays stay
        assert (plan.op, done.changed, len(done.left)) == ("checkpoint", Changed.YES, 2)


async def outcome(fake: FakeTarget, plan: Plan, hooks: Hooks) -> Done | Interrupted:
    try:
        return await vm_of(fake).run(plan, hooks)
    except Interrupted as error:
        return error


@each(
    ("case", "at"),
    [
        ("revert", "qom-set"),
        ("revert-throttled", "blockdev-reopen"),
        ("revert", "snapshot-load"),
        ("revert-disks", "system_reset"),
        ("in-place", "snapshot-save"),
        ("stop", "transaction"),
        ("incoming", "migrate-incoming"),
        ("restore", "migrate-incoming"),
        ("background-old", "await-migration"),
    ],
)
async def test_operation_on_state_is_finished_when_it_is_to_stop_after_the_step_without_return(
    case: str, at: str
) -> None:
    fake = await begun(case)
    plan = await vm_of(fake).plan(CASES[case].intent)
    last = [step for step in plan.steps if step.command == at][-1]
    stop = anyio.Event()
    fake.before = lambda step: stop.set() if step == last else None
    done = await outcome(fake, plan, Hooks(cancel=stop))
    assert not isinstance(done, Interrupted)
    assert fake.performed == list(plan.steps)


@pytest.mark.parametrize("happened", [True, False])
@pytest.mark.parametrize("relinks", [True, False])
@pytest.mark.parametrize(
    "case", ["stop", "background", "in-place", "save", "revert", "revert-disks", "incoming"]
)
async def test_operation_on_state_never_lies_about_a_lost_link(
    case: str, relinks: bool, happened: bool
) -> None:
    plan = known_plan(case)
    sent = [place for place, step in enumerate(plan.steps) if step.on != "host"]
    await at_each(plan, sent, partial(_lost, case, relinks, happened))


async def _lost(case: str, relinks: bool, happened: bool, place: int) -> None:
    fake = await begun(case)
    plan = known_plan(case)
    before = stand(fake)
    fake.relinks = relinks
    fake.fail(plan.steps[place], LinkLost("gone"), happened=happened)
    with pytest.raises(LinkLost) as caught:
        await vm_of(fake).run(plan)
    moved = stand(fake).chains != before.chains
    assert caught.value.changed in {Changed.UNKNOWN, Changed.YES if moved else Changed.NO}
    named = {left.split()[0] for left in caught.value.left}
    assert named <= set(fake.files.names)


@each("ran", [True, False])
async def test_operation_on_state_wants_a_new_plan_when_the_guest_was_stopped_or_let_run(
    *, ran: bool
) -> None:
    fake = await begun("in-place" if ran else "in-place-paused")
    plan = await vm_of(fake).plan(CASES["in-place"].intent)
    fake.guest.perform(stop() if ran else cont())
    before = stand(fake)
    with pytest.raises(GraphMismatch, match="when the plan was made") as caught:
        await vm_of(fake).run(plan)
    assert (caught.value.changed, fake.performed) == (Changed.NO, [])
    assert stand(fake) == before


@each("case", ["revert", "revert-disks", "incoming", "restore"])
async def test_operation_reverts_beneath_no_job_that_began_since_the_plan(case: str) -> None:
    fake = await begun(case)
    plan = await vm_of(fake).plan(CASES[case].intent)
    before = stand(fake)
    fake.start_job(
        Job("theirs", "mirror", JobStatus.RUNNING), snapshot_save("theirs", "x", (("vda", "vda-s1"),))
    )
    with pytest.raises(Busy, match="'theirs'") as caught:
        await vm_of(fake).run(plan)
    assert (caught.value.changed, fake.performed, stand(fake)) == (Changed.NO, [], before)


@each("case", ["stop", "background", "save"])
async def test_operation_that_cannot_restore_settings_keeps_its_record(case: str) -> None:
    fake = await begun(case)
    before = stand(fake)
    plan = await vm_of(fake).plan(CASES[case].intent)
    step = next(one for one in reversed(plan.steps) if one.command == "migrate-set-parameters")
    fake.fail(step, refusal(step))
    with pytest.raises(Incomplete) as caught:
        await vm_of(fake).run(plan)
    assert plan.record is not None
    named = plan.record.id
    assert caught.value.hint == f"qmpsnap job wait {named} finishes it"
    await vm_of(fake).jobs.wait(named)
    assert settings(stand(fake)) == settings(before)
    assert not [one for one in fake.files.records if isinstance(one, IntentRecord)]


async def test_operation_that_is_rolled_back_keeps_the_record_of_settings_that_stay() -> None:
    fake = await begun("stop")
    before = stand(fake)
    plan = await vm_of(fake).plan(CASES["stop"].intent)
    seal = next(one for one in plan.steps if one.command == "migrate")
    back = next(one for one in reversed(plan.steps) if one.command == "migrate-set-parameters")
    fake.fail(seal, refusal(seal))
    fake.fail(back, refusal(back))
    with pytest.raises(QmpsnapError) as caught:
        await vm_of(fake).run(plan)
    assert plan.record is not None
    named = plan.record.id
    assert f"qmpsnap job wait {named} finishes it" in caught.value.left
    await vm_of(fake).jobs.wait(named)
    assert stand(fake) == before


async def test_operation_without_a_record_names_nobody_who_ends_it() -> None:
    fake = await begun("restore")
    plan = await vm_of(fake).plan(CASES["restore"].intent)
    load = next(step for step in plan.steps if step.way == "pass-file")
    back = next(step for step in reversed(plan.steps) if step.command == "migrate-set-capabilities")
    fake.fail(load, refusal(load))
    fake.fail(back, refusal(back))
    with pytest.raises(QmpsnapError) as caught:
        await vm_of(fake).run(plan)
    assert [one.split()[0] for one in caught.value.left] == ["migrate-set-capabilities"]


async def test_operation_removes_no_file_whose_node_could_not_be_closed() -> None:
    fake = await begun("revert-disks")
    await vm_of(fake).revert("c1")
    plan = await vm_of(fake).plan(CASES["revert-disks"].intent)
    free = next(step for step in plan.steps if step.command == "blockdev-del")
    fake.fail(free, refusal(free))
    file = fake.state.nodes[free.arguments["node-name"]].file
    with pytest.raises(Incomplete, match="is still open in QEMU"):
        await vm_of(fake).run(plan)
    assert file in fake.files.names
    assert [one for one in fake.files.records if isinstance(one, IntentRecord)]


@pytest.mark.parametrize("case", ["in-place", "save"])
async def test_operation_wants_a_new_plan_when_the_run_state_has_changed(case: str) -> None:
    fake = await begun(case)
    plan = await vm_of(fake).plan(CASES[case].intent)
    fake.guest.now = replace(fake.guest.now, status="postmigrate", running=False)
    with pytest.raises(GraphMismatch, match="postmigrate, it was running"):
        await vm_of(fake).run(plan)
    assert fake.performed == []


async def test_operation_asks_the_run_state_again_also_of_what_it_was_planned_on_a_moment_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = await begun("in-place")
    asked = []

    async def run_state() -> str:
        asked.append("run_state")
        return fake.guest.now.status

    monkeypatch.setattr(fake.guest, "run_state", run_state)
    vm = vm_of(fake)
    await vm.checkpoint("one", mode="in-place")
    assert asked == ["run_state"]
    await vm.run(await vm.plan(Checkpoint("two", mode="in-place")))
    assert asked == ["run_state", "run_state"]
