"""Virtual machine snapshots over QMP: drives QEMU directly, in asyncio, without libvirt.

    async with qmpsnap.connect("/run/vm1/qmp.sock") as vm:
        taken = await vm.snapshot("before-upgrade", disks=["vda", "vdb"])
        print(taken.standstill_s, taken.chains["vda"])
        await vm.commit("vda", top="before-upgrade", base="base.qcow2")

Every verb is a method of `VM`, and exactly `run(await plan(Intent))`.
"""

import logging

from qmpsnap.entry import connect, launch
from qmpsnap.errors import (
    AmbiguousName,
    BadName,
    Changed,
    CommandFailed,
    ConnectFailed,
    Detached,
    ForeignJob,
    GraphMismatch,
    Incomplete,
    Interrupted,
    JobFailed,
    JobPaused,
    LinkLost,
    MachineDiffers,
    Malformed,
    MigrationFailed,
    NodeBusy,
    NotInChain,
    QmpsnapError,
    Refused,
    StillNeeded,
    TargetError,
    TargetExists,
    TargetUnusable,
    UnknownNode,
    UnsafeImage,
    Unsupported,
    WouldLose,
)
from qmpsnap.model.graph import Bitmap, Disk, Filter, Graph, InternalSnapshot, Layer, Node, draw
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.moments import Held, Moment, Moments
from qmpsnap.model.record import KeptState, MomentRecord
from qmpsnap.plan.intent import (
    Checkpoint,
    CheckpointInternal,
    Commit,
    Delete,
    Intent,
    Mirror,
    PrepareRevert,
    Restore,
    Revert,
    RevertIncoming,
    Save,
    Snapshot,
    SnapshotInternal,
    Stream,
)
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.run.session import Event
from qmpsnap.run.target import Progress
from qmpsnap.vm import VM

# From most to least important.
__all__ = [  # noqa: RUF022
    "connect",
    "launch",
    "VM",
    "Snapshot",
    "SnapshotInternal",
    "Stream",
    "Commit",
    "Mirror",
    "Checkpoint",
    "Revert",
    "PrepareRevert",
    "RevertIncoming",
    "Save",
    "Restore",
    "Delete",
    "CheckpointInternal",
    "Intent",
    "Plan",
    "Stage",
    "Done",
    "Hooks",
    "Progress",
    "Graph",
    "Disk",
    "Layer",
    "Filter",
    "Node",
    "InternalSnapshot",
    "Moments",
    "Moment",
    "Held",
    "MomentRecord",
    "KeptState",
    "Fingerprint",
    "Bitmap",
    "Job",
    "JobStatus",
    "Event",
    "draw",
    "QmpsnapError",
    "Changed",
    "Refused",
    "UnknownNode",
    "AmbiguousName",
    "NotInChain",
    "NodeBusy",
    "TargetExists",
    "TargetUnusable",
    "StillNeeded",
    "WouldLose",
    "Unsupported",
    "UnsafeImage",
    "BadName",
    "ForeignJob",
    "MachineDiffers",
    "TargetError",
    "ConnectFailed",
    "CommandFailed",
    "JobFailed",
    "MigrationFailed",
    "Malformed",
    "LinkLost",
    "GraphMismatch",
    "Incomplete",
    "JobPaused",
    "Detached",
    "Interrupted",
]

logging.getLogger("qmpsnap").addHandler(logging.NullHandler())
