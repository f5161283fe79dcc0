"""Virtual machine snapshots over QMP: drives QEMU directly, in asyncio, without libvirt.

    async with qmpsnap.connect("/run/vm1/qmp.sock") as vm:
        taken = await vm.snapshot("before-upgrade", disks=["vda", "vdb"])
        print(taken.standstill_s, taken.chains["vda"])
        await vm.commit("vda", top="before-upgrade", base="base.qcow2")

Every verb is a method of `VM`, and exactly `run(await plan(Intent))`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        Malformed,
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
    from qmpsnap.plan.intent import Commit, Intent, Mirror, Snapshot, Stream
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
    "Stream",
    "Commit",
    "Mirror",
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
    "TargetError",
    "ConnectFailed",
    "CommandFailed",
    "JobFailed",
    "Malformed",
    "LinkLost",
    "GraphMismatch",
    "Incomplete",
    "JobPaused",
    "Detached",
    "Interrupted",
]

# Loaded when it is first asked for, so that who only names the package, as a test plugin or the
# command line's --help does, waits for nothing.
_HOMES = {
    "qmpsnap.entry": (
        "connect",
        "launch",
    ),
    "qmpsnap.errors": (
        "AmbiguousName",
        "BadName",
        "Changed",
        "CommandFailed",
        "ConnectFailed",
        "Detached",
        "ForeignJob",
        "GraphMismatch",
        "Incomplete",
        "Interrupted",
        "JobFailed",
        "JobPaused",
        "LinkLost",
        "Malformed",
        "NodeBusy",
        "NotInChain",
        "QmpsnapError",
        "Refused",
        "StillNeeded",
        "TargetError",
        "TargetExists",
        "TargetUnusable",
        "UnknownNode",
        "UnsafeImage",
        "Unsupported",
        "WouldLose",
    ),
    "qmpsnap.model.graph": (
        "Bitmap",
        "Disk",
        "Filter",
        "Graph",
        "InternalSnapshot",
        "Layer",
        "Node",
        "draw",
    ),
    "qmpsnap.model.job": (
        "Job",
        "JobStatus",
    ),
    "qmpsnap.plan.intent": (
        "Commit",
        "Intent",
        "Mirror",
        "Snapshot",
        "Stream",
    ),
    "qmpsnap.plan.plan": (
        "Plan",
        "Stage",
    ),
    "qmpsnap.run.outcome": (
        "Done",
        "Hooks",
    ),
    "qmpsnap.run.session": ("Event",),
    "qmpsnap.run.target": ("Progress",),
    "qmpsnap.vm": ("VM",),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
