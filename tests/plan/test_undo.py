from __future__ import annotations

import pytest

from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.steps import (
    AdoptJob,
    AwaitJob,
    CancelJob,
    CompleteJob,
    CreateOverlay,
    CreatePlaceholder,
    DeleteInternal,
    DeleteNode,
    DismissJob,
    EndCopy,
    FinishRecord,
    KeepMoment,
    ProbeAbsent,
    RemoveMade,
    RemoveOrphan,
    RetireFile,
    StartCommit,
    StartMirror,
    StartStream,
    Step,
    TakeInternal,
    TakeSnapshots,
    WriteRecord,
)
from qmpsnap.plan.undo import changes, no_way_back, undo

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
