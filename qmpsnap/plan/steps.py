"""The closed vocabulary of steps: each is one QMP command, one wait, or one change of a file of ours.

Raw QMP arguments are born here and nowhere else. `step.command` and `step.arguments` are what is
sent, word for word; a step with `on` "host" is done by us, and its command says what in a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from qmpsnap.plan.guest_steps import ContinueGuest, GuestStep, ResetGuest, StopForLoad, StopGuest
from qmpsnap.plan.hmp_steps import DelVm, HmpStep, LoadVm, SaveVm
from qmpsnap.plan.host_steps import (
    CreateOverlay,
    CreatePlaceholder,
    FinishRecord,
    HostStep,
    KeepMoment,
    Proof,
    RemoveMade,
    RemoveOrphan,
    RetireFile,
    WriteRecord,
)
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
    KeepLost,
    KeepPlace,
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
from qmpsnap.plan.start_steps import Start, StartCommit, StartMirror, StartStream
from qmpsnap.plan.state_steps import DeleteState, LoadState, SaveState, StateJobStep

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
    "HmpStep",
    "HostStep",
    "InternalStep",
    "KeepBranch",
    "KeepLink",
    "KeepLost",
    "KeepMoment",
    "KeepPlace",
    "LoadMemory",
    "LoadState",
    "LoadVm",
    "MemoryStep",
    "MigrationStep",
    "NewRoot",
    "PassFile",
    "ProbeAbsent",
    "Proof",
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
    "StopForLoad",
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
    def parts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each disk, with the names that an error of QEMU's may call it by."""
        return tuple((one.disk, (one.covered, one.node, one.file, one.backing)) for one in self.overlays)

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


Step = (
    HostStep
    | ProbeAbsent
    | TakeSnapshots
    | InternalStep
    | HmpStep
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
