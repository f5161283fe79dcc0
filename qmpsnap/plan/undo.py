"""What takes a step back, as steps; and the steps after which there is no way back, only on."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from qmpsnap.plan.steps import (
    AdoptJob,
    AwaitJob,
    CancelJob,
    CompleteJob,
    CreateOverlay,
    CreatePlaceholder,
    DeleteInternal,
    DeleteNode,
    DelVm,
    DismissJob,
    EndCopy,
    FinalizeJob,
    FinishRecord,
    FlushNode,
    KeepMoment,
    LoadVm,
    ProbeAbsent,
    RemoveMade,
    RemoveOrphan,
    RetireFile,
    SaveVm,
    StartCommit,
    StartMirror,
    StartStream,
    TakeInternal,
    TakeSnapshots,
    WriteRecord,
)

if TYPE_CHECKING:
    from qmpsnap.plan.steps import Step

__all__ = ["changes", "drains", "no_way_back", "undo", "unseen"]


def no_way_back(step: Step) -> bool:
    """Whether, once the step is sent, the operation is carried to its end whatever happens."""
    return isinstance(
        step,
        TakeSnapshots
        | TakeInternal
        | DeleteInternal
        | SaveVm
        | LoadVm
        | DelVm
        | CompleteJob
        | EndCopy
        | FinalizeJob,
    )


def changes(step: Step) -> bool:
    """Whether, once the step is done, a chain, a layer's bytes or its snapshots are others."""
    return isinstance(
        step,
        TakeSnapshots | TakeInternal | DeleteInternal | SaveVm | LoadVm | DelVm | StartStream | StartCommit,
    )


def drains(step: Step) -> bool:
    """Whether the seconds that the step reports are those in which the guest stood still."""
    return isinstance(step, TakeSnapshots | TakeInternal | SaveVm | LoadVm)


def unseen(step: Step) -> bool:
    """Whether no graph tells if the step was done."""
    return isinstance(step, LoadVm)


def undo(step: Step) -> tuple[Step, ...]:
    """The steps that take this one back, in order; none where nothing is to be taken back."""
    match step:
        case WriteRecord():
            return (FinishRecord(step.directory, (step.record.id,)),)
        case CreateOverlay() | CreatePlaceholder():
            return (RemoveMade(step.file),)
        case StartStream() | AdoptJob(dismisses_itself=True):
            return (CancelJob(step.job_id), AwaitJob(step.job_id, "concluded"))
        case StartCommit() | StartMirror() | AdoptJob():
            return (CancelJob(step.job_id), AwaitJob(step.job_id, "concluded"), DismissJob(step.job_id))
        case (
            FinishRecord()
            | KeepMoment()
            | RetireFile()
            | RemoveMade()
            | RemoveOrphan()
            | ProbeAbsent()
            | TakeSnapshots()
            | TakeInternal()
            | DeleteInternal()
            | SaveVm()
            | LoadVm()
            | DelVm()
            | CompleteJob()
            | EndCopy()
            | FlushNode()
            | FinalizeJob()
            | CancelJob()
            | DismissJob()
            | DeleteNode()
            | AwaitJob()
        ):
            return ()
        case _:
            assert_never(step)
