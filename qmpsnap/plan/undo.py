"""What takes a step back, as steps; and the steps after which there is no way back, only on."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

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
    DeleteState,
    DelVm,
    DismissJob,
    EndCopy,
    FinalizeJob,
    FinishRecord,
    FlushNode,
    KeepBranch,
    KeepLink,
    KeepLost,
    KeepMoment,
    KeepPlace,
    LoadMemory,
    LoadState,
    LoadVm,
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
    SaveVm,
    SealMemory,
    SealStore,
    SetCapabilities,
    SetDrive,
    SetParameters,
    StartCommit,
    StartMirror,
    StartStream,
    StopForLoad,
    StopGuest,
    TakeInternal,
    TakeSnapshots,
    WriteRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qmpsnap.plan.steps import Step

__all__ = [
    "changes",
    "drains",
    "needs_record",
    "no_way_back",
    "stands_still",
    "taking_back",
    "undo",
    "unseen",
]


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
        | SaveState
        | LoadState
        | DeleteState
        | RemoveState
        | LoadMemory
        | SetDrive
        | ReopenFilter
        | CompleteJob
        | EndCopy
        | FinalizeJob,
    )


def changes(step: Step) -> bool:
    """Whether, once the step is done, a layer's bytes, its snapshots or VM state are others for good."""
    match step:
        case SaveState() | LoadState() | DeleteState():
            return bool(step.disks) or isinstance(step, LoadState)
        case _:
            return isinstance(
                step,
                TakeSnapshots
                | TakeInternal
                | DeleteInternal
                | SaveVm
                | LoadVm
                | DelVm
                | RemoveState
                | StartStream
                | StartCommit,
            )


def needs_record(step: Step) -> bool:
    """Whether, when it could not be done, the operation's record has to stay: it says what is to be done."""
    return isinstance(
        step,
        RetireFile | RemoveState | KeepBranch | KeepLost | KeepPlace | SetCapabilities | SetParameters,
    )


def drains(step: Step) -> bool:
    """Whether the seconds that the step takes are those in which a guest that runs on stood still."""
    return isinstance(step, TakeSnapshots | TakeInternal)


def stands_still(step: Step) -> bool:
    """Whether the guest stands still for the step, so that QEMU's events tell for how long."""
    return isinstance(
        step,
        StopGuest
        | StopForLoad
        | SaveVm
        | LoadVm
        | SaveState
        | LoadState
        | SaveMemory
        | SetDrive
        | ReopenFilter,
    )


def unseen(step: Step) -> bool:
    """Whether no graph tells if the step was done."""
    return isinstance(step, LoadVm | LoadState | LoadMemory)


def taking_back(done: Sequence[Step], *, loaded: bool) -> Iterator[Step]:
    """The steps that take an operation back as far as that can be, in order.

    Overlays that a transaction has put on stay: the guest may have written to them. Memory that was
    loaded, in part or whole, and that of a guest which was reset, belongs to the disks as they are then,
    if to any: these stay, and the guest stands.

    Args:
        done: What was done, in order.
        loaded: Whether the guest's memory is another by now, or is not to be trusted.
    """
    taken = any(isinstance(step, TakeSnapshots) for step in done)
    alone = not any(isinstance(step, CreateMemory | CreateStore) for step in done)
    freed = {step.node for step in done if isinstance(step, DeleteNode)}
    resumed = any(isinstance(step, ContinueGuest) for step in done)
    for step in reversed(done):
        if taken and isinstance(step, CreateOverlay | CreatePlaceholder):
            continue
        if taken and alone and isinstance(step, WriteRecord):
            continue  # for whoever finishes the snapshot
        if isinstance(step, AddNode) and step.node in freed:
            continue
        if isinstance(step, StopGuest | StopForLoad) and resumed:
            continue  # if it stands once more, somebody else wanted that
        if loaded and isinstance(step, LoadState):
            yield DismissJob(step.job_id)
        elif not loaded or _stays_true(step):
            yield from undo(step)


def _stays_true(step: Step) -> bool:
    """Whether a step is taken back also where the guest is left standing on what a load has moved."""
    if isinstance(step, WriteRecord):  # inside images there is nothing that somebody could finish
        return step.record.op == "revert-internal"
    return isinstance(step, AddStore | PassFile | SetCapabilities | SetParameters)


def undo(step: Step) -> tuple[Step, ...]:
    """The steps that take this one back, in order; none where nothing is to be taken back."""
    match step:
        case WriteRecord():
            return (FinishRecord(step.directory, (step.record.id,)),)
        case CreateOverlay() | CreatePlaceholder() | CreateMemory() | CreateStore():
            return (RemoveMade(step.file),)
        case StartStream() | AdoptJob(dismisses_itself=True):
            return (CancelJob(step.job_id), AwaitJob(step.job_id, "concluded"))
        case StartCommit() | StartMirror() | AdoptJob():
            return (CancelJob(step.job_id), AwaitJob(step.job_id, "concluded"), DismissJob(step.job_id))
        case SaveState() | LoadState() | DeleteState():  # it cannot be cancelled, and has concluded
            resumes = isinstance(step, LoadState) and step.running
            return (*((ContinueGuest(),) if resumes else ()), DismissJob(step.job_id))
        case AddNode():
            return (DeleteNode(step.node),)
        case SetDrive() | ReopenFilter():
            return step.back()
        case SetCapabilities() | SetParameters() | PassFile():
            return (step.back(),)
        case SaveMemory():
            return (CancelMigration(wait=not step.may_stop),)
        case StopGuest():
            return (ContinueGuest(),) if step.ran else ()
        case StopForLoad():
            return (ContinueGuest(),)
        case (
            FinishRecord()
            | KeepMoment()
            | KeepBranch()
            | KeepLink()
            | KeepLost()
            | KeepPlace()
            | RetireFile()
            | RemoveMade()
            | RemoveOrphan()
            | RemoveState()
            | SealMemory()
            | SealStore()
            | ProbeAbsent()
            | TakeSnapshots()
            | TakeInternal()
            | DeleteInternal()
            | SaveVm()
            | LoadVm()
            | DelVm()
            | LoadMemory()
            | AwaitMigration()
            | AwaitClosed()
            | CancelMigration()
            | ReleaseFile()
            | ContinueGuest()
            | ResetGuest()
            | CheckRoots()
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
