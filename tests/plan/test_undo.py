from __future__ import annotations

from dataclasses import replace

import pytest

from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.steps import (
    AddNode,
    AddStore,
    AdoptJob,
    AwaitClosed,
    AwaitJob,
    AwaitMigration,
    CancelJob,
    CancelMigration,
    CheckRoots,
    CompleteJob,
    ContinueGuest,
    CreateMemory,
    CreateOverlay,
    CreatePlaceholder,
    CreateStore,
    DeleteInternal,
    DeleteNode,
    DismissJob,
    EndCopy,
    FinishRecord,
    KeepBranch,
    KeepLink,
    KeepMoment,
    LoadMemory,
    LoadState,
    NewRoot,
    PassFile,
    ProbeAbsent,
    ReleaseFile,
    RemoveMade,
    RemoveOrphan,
    RemoveState,
    ReopenFilter,
    ResetGuest,
    RetireFile,
    SaveMemory,
    SaveState,
    SealMemory,
    SealStore,
    SetCapabilities,
    SetDrive,
    SetParameters,
    StartCommit,
    StartMirror,
    StartStream,
    Step,
    StopForLoad,
    StopGuest,
    TakeInternal,
    TakeSnapshots,
    WriteRecord,
)
from qmpsnap.plan.undo import changes, drains, no_way_back, stands_still, taking_back, undo, unseen

JOB = "qmpsnap-commit-keep-00000000"
RECORD = IntentRecord(JOB, "commit", "2024-05-01T12:00:00+00:00")
CANCELLED = (CancelJob(JOB), AwaitJob(JOB, "concluded"))
STREAM = StartStream(JOB, "vda", "n", "/f", None, None, None, "report", 0)
COMMIT = StartCommit(JOB, "vda", "r", "t", "/t", "b", "/b", False, None, "report", 0)
MIRROR = StartMirror(JOB, "vda", "r", None, "/c", "raw", "n", "full", False, "report", 0)


@pytest.mark.parametrize(
    ("step", "steps"),
    [
        (WriteRecord("/r", RECORD), (FinishRecord("/r", (JOB,)),)),
        (CreateOverlay("/o", 1, "/b", "qcow2", "/b"), (RemoveMade("/o"),)),
        (CreatePlaceholder("/o", "/b"), (RemoveMade("/o"),)),
        (STREAM, CANCELLED),
        (COMMIT, (*CANCELLED, DismissJob(JOB))),
        (MIRROR, (*CANCELLED, DismissJob(JOB))),
        (AdoptJob(JOB), (*CANCELLED, DismissJob(JOB))),
        (AdoptJob(JOB, dismisses_itself=True), CANCELLED),
    ],
)
def test_undo_takes_back_what_was_made_or_started(step: Step, steps: tuple[Step, ...]) -> None:
    assert undo(step) == steps
    assert not no_way_back(step)


@pytest.mark.parametrize(
    "step",
    [
        TakeSnapshots(()),
        TakeInternal("n", ()),
        DeleteInternal("vda", "r", "1", "n"),
        CompleteJob(JOB),
        EndCopy(JOB),
    ],
)
def test_no_way_back_from_what_only_goes_on(step: Step) -> None:
    assert no_way_back(step)
    assert undo(step) == ()


@pytest.mark.parametrize(
    "step",
    [
        AwaitJob(JOB, "ready"),
        CancelJob(JOB),
        DismissJob(JOB),
        DeleteNode("n"),
        ProbeAbsent("/o", "n"),
        FinishRecord("/r", (JOB,)),
        KeepMoment("/r", JOB, "n1"),
        RetireFile("/f", "rename", "/f.invalid"),
        RemoveMade("/o"),
        RemoveOrphan("/o", None),
    ],
    ids=lambda step: type(step).__name__,
)
def test_undo_of_everything_else_is_nothing(step: Step) -> None:
    assert undo(step) == ()
    assert not no_way_back(step)


@pytest.mark.parametrize(
    ("step", "does"),
    [
        (TakeSnapshots(()), True),
        (TakeInternal("n", ()), True),
        (DeleteInternal("vda", "r", "1", "n"), True),
        (STREAM, True),
        (COMMIT, True),
        (MIRROR, False),
        (CreateOverlay("/o", 1, "/b", "qcow2", "/b"), False),
    ],
)
def test_changes_tells_what_is_another_once_the_step_is_done(step: Step, does: bool) -> None:
    assert changes(step) is does


NEW = NewRoot("vda", "new", "/new", "qcow2", None, ())
OLD = NewRoot("vda", "old", "/old", "qcow2", None, ())
MOVE, REOPEN = SetDrive(NEW, "/q", OLD, closes=True), ReopenFilter(NEW, "thr", "tg", OLD, closes=False)
CAPABILITIES = SetCapabilities((("events", True),), (("events", False),))
PASS = PassFile("/m.partial", 7, "fdset", write=True)
LOAD = LoadState(JOB, "c1", (("", "store"),), "store")
SEAL = SealMemory("/m.partial", "/m", JOB, "c1", True, Fingerprint("pc", 1, (), {}, {}))


@pytest.mark.parametrize(
    ("step", "steps"),
    [
        (CreateMemory("/m"), (RemoveMade("/m"),)),
        (CreateStore("/m", "/s1"), (RemoveMade("/m"),)),
        (AddNode("n", "/o"), (DeleteNode("n"),)),
        (AddStore("n", "/m"), (DeleteNode("n"),)),
        (MOVE, MOVE.back()),
        (REOPEN, REOPEN.back()),
        (CAPABILITIES, (CAPABILITIES.back(),)),
        (SetParameters((("x", 1),), (("x", 2),)), (SetParameters((("x", 2),), (("x", 1),)),)),
        (PASS, (PASS.back(),)),
        (SaveMemory("u"), (CancelMigration(wait=False),)),
        (SaveMemory("u", may_stop=False), (CancelMigration(wait=True),)),
        (StopGuest(), (ContinueGuest(),)),
        (StopForLoad("x"), (ContinueGuest(),)),
        (SaveState(JOB, "c1", ()), (DismissJob(JOB),)),
        (LOAD, (DismissJob(JOB),)),
        (replace(LOAD, running=True), (ContinueGuest(), DismissJob(JOB))),
    ],
)
def test_undo_takes_back_what_was_done_for_vm_state(step: Step, steps: tuple[Step, ...]) -> None:
    assert undo(step) == steps


@pytest.mark.parametrize(
    "step",
    [
        ContinueGuest(),
        ResetGuest(),
        AwaitMigration("saved"),
        AwaitClosed("/m"),
        CancelMigration(),
        ReleaseFile(7, "fd"),
        CheckRoots(()),
        SEAL,
        SealStore("/p", "/m"),
        KeepBranch("/r", JOB, {}),
        KeepLink("/r", JOB),
    ],
    ids=lambda step: type(step).__name__,
)
def test_undo_of_what_vm_state_does_not_bring_back_is_nothing(step: Step) -> None:
    assert undo(step) == ()
    assert not no_way_back(step)
    assert not changes(step)


def test_no_way_back_from_vm_state_that_is_removed() -> None:
    step = RemoveState("/m", JOB)
    assert (undo(step), no_way_back(step), changes(step)) == ((), True, True)


@pytest.mark.parametrize(
    "step", [MOVE, REOPEN, LOAD, SaveState(JOB, "c1", ()), LoadMemory("u")], ids=lambda step: step.command
)
def test_no_way_back_from_new_roots_and_from_memory_that_comes_in(step: Step) -> None:
    assert no_way_back(step)


def test_changes_of_vm_state_are_those_of_snapshots_inside_disks_and_of_loads() -> None:
    assert not changes(SaveState(JOB, "c1", (("", "store"),)))
    assert changes(SaveState(JOB, "c1", (("vda", "n"),)))
    assert changes(LOAD)
    assert not changes(MOVE)  # its chain is read, and taken back


RECORD_STEP = WriteRecord("/r", RECORD)
OVERLAY, TAKE = CreateOverlay("/o", 1, "/b", "qcow2", "/b"), TakeSnapshots(())


def back(*done: Step, loaded: bool = False) -> tuple[Step, ...]:
    return tuple(taking_back(done, loaded=loaded))


def test_taking_back_is_in_reverse() -> None:
    assert back(RECORD_STEP, OVERLAY, StopGuest()) == (
        ContinueGuest(),
        RemoveMade("/o"),
        FinishRecord("/r", (JOB,)),
    )


def test_taking_back_leaves_overlays_that_were_put_on_and_the_record_of_a_snapshot_alone() -> None:
    assert back(RECORD_STEP, OVERLAY, TAKE) == ()
    with_memory = (RECORD_STEP, OVERLAY, CreateMemory("/m"), TAKE)
    assert back(*with_memory) == (RemoveMade("/m"), FinishRecord("/r", (JOB,)))


def test_taking_back_frees_no_node_twice() -> None:
    store = AddStore("n", "/m")
    assert back(store) == (DeleteNode("n"),)
    assert back(store, DeleteNode("n")) == ()
    assert back(AddNode("other", "/o"), store, DeleteNode("n")) == (DeleteNode("other"),)


def test_taking_back_leaves_the_disks_and_the_guest_alone_once_memory_was_touched() -> None:
    done = (RECORD_STEP, OVERLAY, AddNode("n", "/o"), AddStore("s", "/m"), StopGuest(), MOVE, LOAD)
    assert back(*done, loaded=True) == (DismissJob(JOB), DeleteNode("s"))
    assert len(back(*done)) == 8
    assert back(CAPABILITIES, PASS, loaded=True) == (PASS.back(), CAPABILITIES.back())


@pytest.mark.parametrize(
    ("step", "stands"),
    [
        (StopGuest(), True),
        (StopForLoad("x"), True),
        (LOAD, True),
        (MOVE, True),
        (REOPEN, True),
        (SaveMemory("u"), True),
        (TAKE, False),
        (ContinueGuest(), False),
        (LoadMemory("u"), False),
    ],
)
def test_stands_still_whatever_stops_a_guest_that_runs(step: Step, stands: bool) -> None:
    assert stands_still(step) is stands
    assert drains(step) is (step == TAKE)


def test_unseen_is_what_no_graph_tells_of() -> None:
    assert (unseen(LOAD), unseen(LoadMemory("u")), unseen(MOVE)) == (True, True, False)


def test_taking_back_leaves_a_guest_alone_that_was_let_run_on_already() -> None:
    stopped = (StopGuest(), SaveMemory("fd:m"))
    assert ContinueGuest() in tuple(taking_back(stopped, loaded=False))
    assert ContinueGuest() not in tuple(taking_back((*stopped, ContinueGuest()), loaded=False))
    assert tuple(taking_back((StopGuest(ran=False),), loaded=False)) == ()
    assert tuple(taking_back((StopForLoad("x"), ContinueGuest()), loaded=False)) == ()
