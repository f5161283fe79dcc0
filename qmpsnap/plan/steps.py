"""The closed vocabulary of steps: each is one QMP command, one wait, or one change of a file of ours.

Raw QMP arguments are born here and nowhere else. `step.command` and `step.arguments` are what is
sent, word for word; a step with `on` "host" is done by us, and its command says what in a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from qmpsnap.plan.guest_steps import ContinueGuest, GuestStep, ResetGuest, StopGuest
from qmpsnap.plan.host_steps import (
    CreateOverlay,
    CreatePlaceholder,
    FinishRecord,
    HostStep,
    KeepMoment,
    RemoveMade,
    RemoveOrphan,
    RetireFile,
    WriteRecord,
)
from qmpsnap.plan.human_steps import DelVm, HumanStep, LoadVm, SaveVm
from qmpsnap.plan.internal_steps import DeleteInternal, InternalStep, TakeInternal
from qmpsnap.plan.job_steps import (
    AdoptJob,
    AwaitJob,
    CancelJob,
    DismissJob,
    EndCopy,
    FinalizeJob,
    FlushNode,
    QmpStep,
)
from qmpsnap.plan.memory_steps import (
    CreateMemory,
    CreateStore,
    KeepBranch,
    KeepLink,
    MemoryStep,
    RemoveState,
    SealMemory,
    SealStore,
)
from qmpsnap.plan.migration_steps import (
    AwaitClosed,
    AwaitMigration,
    CancelMigration,
    LoadMemory,
    MigrationStep,
    PassFile,
    ReleaseFile,
    SaveMemory,
    SetCapabilities,
    SetParameters,
)
from qmpsnap.plan.root_steps import AddNode, AddStore, CheckRoots, NewRoot, ReopenFilter, RootStep, SetDrive
from qmpsnap.plan.state_steps import DeleteState, LoadState, SaveState, StateJobStep

if TYPE_CHECKING:
    from qmpsnap.plan.intent import OnError, Sync

__all__ = [
    "AddNode",
    "AddStore",
    "AdoptJob",
    "AwaitClosed",
    "AwaitJob",
    "AwaitMigration",
    "CancelJob",
    "CancelMigration",
    "CheckRoots",
    "CompleteJob",
    "ContinueGuest",
    "CreateMemory",
    "CreateOverlay",
    "CreatePlaceholder",
    "CreateStore",
    "DelVm",
    "DeleteInternal",
    "DeleteNode",
    "DeleteState",
    "DismissJob",
    "EndCopy",
    "FinalizeJob",
    "FinishRecord",
    "FlushNode",
    "GuestStep",
    "HostStep",
    "HumanStep",
    "InternalStep",
    "KeepBranch",
    "KeepLink",
    "KeepMoment",
    "LoadMemory",
    "LoadState",
    "LoadVm",
    "MemoryStep",
    "MigrationStep",
    "NewRoot",
    "PassFile",
    "ProbeAbsent",
    "ReleaseFile",
    "RemoveMade",
    "RemoveOrphan",
    "RemoveState",
    "ReopenFilter",
    "ResetGuest",
    "RetireFile",
    "RootStep",
    "SaveMemory",
    "SaveState",
    "SaveVm",
    "SealMemory",
    "SealStore",
    "SetCapabilities",
    "SetDrive",
    "SetParameters",
    "Start",
    "StartCommit",
    "StartMirror",
    "StartStream",
    "StateJobStep",
    "Step",
    "StopGuest",
    "TakeInternal",
    "TakeSnapshots",
    "TakenOverlay",
    "WriteRecord",
]

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class ProbeAbsent(QmpStep):
    """Let QEMU try to open a file that must not be there; only its error is a success.

    For machines whose files we cannot see: blockdev-snapshot-sync and drive-mirror truncate an
    existing file without a word. QAPI: blockdev-add (block-core.json).
    """

    file: str
    node: str
    command: ClassVar[str] = "blockdev-add"

    @property
    def arguments(self) -> Arguments:
        return {"driver": "file", "node-name": self.node, "filename": self.file, "read-only": True}


@dataclass(frozen=True, slots=True)
class TakenOverlay:
    """One disk's part of a snapshot.

    Attributes:
        disk: The disk's name.
        covered: node-name of the active layer that is covered.
        node: node-name that the overlay gets.
        file: The overlay's path.
        backing: What its header records as backing file.
        made_by: Whose work the file is: "us", "caller" (before) or "qemu".
    """

    disk: str
    covered: str
    node: str
    file: str
    backing: str
    made_by: Literal["us", "caller", "qemu"]


@dataclass(frozen=True, slots=True)
class TakeSnapshots(QmpStep):
    """Put every overlay on its disk, at one instant. QAPI: transaction, blockdev-snapshot-sync."""

    overlays: tuple[TakenOverlay, ...]
    command: ClassVar[str] = "transaction"

    @property
    def arguments(self) -> Arguments:
        return {
            "actions": [
                {
                    "type": "blockdev-snapshot-sync",
                    "data": {
                        "node-name": one.covered,
                        "snapshot-node-name": one.node,
                        "snapshot-file": one.file,
                        "format": "qcow2",
                        "mode": "absolute-paths" if one.made_by == "qemu" else "existing",
                    },
                }
                for one in self.overlays
            ]
        }


@dataclass(frozen=True, slots=True)
class StartStream(QmpStep):
    """Copy backing data up into a layer. QAPI: block-stream (block-core.json).

    The job waits before its end until it is finalized: QEMU would name the new backing file in the
    layer's header before all of the data is on the disk. It dismisses itself, other than those of
    commit and mirror: QEMU 7.2 crashes when anybody asks for its block nodes while a concluded stream
    job waits for its dismissal (docs/explanation/qemu.md).

    Attributes:
        job_id: The job's id.
        disk: The disk's name.
        node: node-name of the layer that receives.
        file: Its path.
        base_node: node-name of the layer that stays below, or None.
        base_file: Its path, or None.
        backing: Name to record as backing file instead of the base's path, or None.
        on_error: The job's error policy.
        speed: Limit in bytes/s; 0: none.
    """

    job_id: str
    disk: str
    node: str
    file: str
    base_node: str | None
    base_file: str | None
    backing: str | None
    on_error: OnError
    speed: int
    command: ClassVar[str] = "block-stream"

    @property
    def arguments(self) -> Arguments:
        return _without_none(
            {
                "job-id": self.job_id,
                "device": self.node,
                "base-node": self.base_node,
                "backing-file": self.backing,
                "on-error": self.on_error,
                "speed": self.speed,
                "auto-finalize": False,
            }
        )


@dataclass(frozen=True, slots=True)
class StartCommit(QmpStep):
    """Copy layers' data down into the base. QAPI: block-commit (block-core.json).

    Attributes:
        job_id: The job's id.
        disk: The disk's name.
        root: node-name of the disk's root.
        top_node: node-name of the newest layer to fold.
        top_file: Its path.
        base_node: node-name of the layer that receives.
        base_file: Its path.
        active: Whether top is the active layer, so that the job waits at READY.
        backing: Name to record in top's overlay instead of the base's path, or None.
        on_error: The job's error policy.
        speed: Limit in bytes/s; 0: none.
    """

    job_id: str
    disk: str
    root: str
    top_node: str
    top_file: str
    base_node: str
    base_file: str
    active: bool
    backing: str | None
    on_error: OnError
    speed: int
    command: ClassVar[str] = "block-commit"

    @property
    def arguments(self) -> Arguments:
        return _without_none(
            {
                "job-id": self.job_id,
                "device": self.root,
                "top-node": self.top_node,
                "base-node": self.base_node,
                "backing-file": self.backing,
                "on-error": self.on_error,
                "speed": self.speed,
                "auto-dismiss": False,
            }
        )


@dataclass(frozen=True, slots=True)
class StartMirror(QmpStep):
    """Copy a disk elsewhere and follow its writes. QAPI: drive-mirror (block-core.json).

    Attributes:
        job_id: The job's id.
        disk: The disk's name.
        root: node-name of the disk's root.
        replaces: node-name of the active layer when a filter stands above it, or None.
        target: The copy's path.
        format: The copy's format.
        node: node-name that the copy gets.
        sync: "full", "top" or "none".
        existing: Whether QEMU takes the file as it is; else it formats it.
        on_error: The job's error policy, of source and target.
        speed: Limit in bytes/s; 0: none.
    """

    job_id: str
    disk: str
    root: str
    replaces: str | None
    target: str
    format: str
    node: str
    sync: Sync
    existing: bool
    on_error: OnError
    speed: int
    command: ClassVar[str] = "drive-mirror"

    @property
    def arguments(self) -> Arguments:
        return _without_none(
            {
                "job-id": self.job_id,
                "device": self.root,
                "replaces": self.replaces,
                "target": self.target,
                "format": self.format,
                "node-name": self.node,
                "sync": self.sync,
                "mode": "existing" if self.existing else "absolute-paths",
                "on-source-error": self.on_error,
                "on-target-error": self.on_error,
                "speed": self.speed,
                "auto-dismiss": False,
            }
        )


@dataclass(frozen=True, slots=True)
class CompleteJob(QmpStep):
    """Let a READY job pivot. QAPI: job-complete (job.json).

    Attributes:
        job_id: The job.
        start: The step that started it; None where somebody else did, so that its effect is not known.
    """

    job_id: str
    start: StartCommit | StartMirror | None = None
    command: ClassVar[str] = "job-complete"

    @property
    def arguments(self) -> Arguments:
        return {"id": self.job_id}


@dataclass(frozen=True, slots=True)
class DeleteNode(QmpStep):
    """Free a node that we added. QAPI: blockdev-del (block-core.json)."""

    node: str
    command: ClassVar[str] = "blockdev-del"

    @property
    def arguments(self) -> Arguments:
        return {"node-name": self.node}


Start = StartStream | StartCommit | StartMirror
Step = (
    HostStep
    | ProbeAbsent
    | TakeSnapshots
    | InternalStep
    | HumanStep
    | StateJobStep
    | GuestStep
    | MigrationStep
    | MemoryStep
    | RootStep
    | StartStream
    | StartCommit
    | StartMirror
    | CompleteJob
    | EndCopy
    | FlushNode
    | FinalizeJob
    | CancelJob
    | DismissJob
    | DeleteNode
    | AwaitJob
    | AdoptJob
)


def _without_none(arguments: Arguments) -> Arguments:
    return {name: value for name, value in arguments.items() if value is not None}
