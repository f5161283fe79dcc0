"""Virtual machine snapshots over QMP: drives QEMU directly, in asyncio, without libvirt.

    async with qmpsnap.connect("/run/vm1/qmp.sock") as vm:
        taken = await vm.snapshot("before-upgrade", disks=["vda", "vdb"])
        print(taken.standstill_s, taken.chains["vda"])
        await vm.commit("vda", top="before-upgrade", base="base.qcow2")

Every verb is a method of `VM`, and exactly `run(await plan(Intent))`.
"""

import importlib

TYPE_CHECKING = False  # typing's own would cost an import, see below

if TYPE_CHECKING:
    from qmpsnap.backup import BackedUp
    from qmpsnap.backup_restore import list_backups, restore_backup, verify_backup
    from qmpsnap.entry import connect, offline
    from qmpsnap.errors import (
        AmbiguousName,
        BadArgument,
        BadName,
        Busy,
        Changed,
        CommandFailed,
        ConnectFailed,
        Detached,
        FileMoved,
        ForeignJob,
        GraphMismatch,
        ImageInUse,
        Incomplete,
        Interrupted,
        InvalidTarget,
        JobFailed,
        JobPaused,
        LinkLost,
        MachineDiffers,
        Malformed,
        MigrationFailed,
        NotFound,
        NotInChain,
        QmpsnapError,
        Refused,
        StillNeeded,
        TargetError,
        TargetExists,
        UnsafeImage,
        Unsupported,
        WouldLose,
    )
    from qmpsnap.fork import Child, Children
    from qmpsnap.group import Group, GroupDone, GroupIntent, GroupMoment
    from qmpsnap.jobs import Jobs
    from qmpsnap.launched import Ended, LaunchedVM
    from qmpsnap.launching import launch, launcher_of
    from qmpsnap.machines import address_of, list_machines
    from qmpsnap.model.backup import BackupDisk, BackupRecord, RunningBackup
    from qmpsnap.model.finding import Finding, Severity
    from qmpsnap.model.graph import Bitmap, Disk, Filter, Graph, InternalSnapshot, Io, Layer, Node, draw
    from qmpsnap.model.host_process import HostProcess
    from qmpsnap.model.interrupted import LeftBehind, LeftKind
    from qmpsnap.model.job import IoStatus, Job, JobStatus
    from qmpsnap.model.job_place import JobPlace
    from qmpsnap.model.kept_state import KeptState
    from qmpsnap.model.layer_stamps import WrittenLayer
    from qmpsnap.model.machine import Fingerprint, Status
    from qmpsnap.model.machine_description import Accelerator, Bus, Machine, MachineDisk, Nic
    from qmpsnap.model.meaning.table import MEANINGS, Meaning, explain
    from qmpsnap.model.moments import Moment, MomentKind, MomentPart, Moments
    from qmpsnap.model.pause import Pause
    from qmpsnap.model.picture.picture import Picture, PictureFormat
    from qmpsnap.model.qapi_schema import Schema, SchemaCommand, SchemaMember, SchemaType
    from qmpsnap.model.record import IntentRecord, Member, MomentRecord, Origin
    from qmpsnap.model.running_qemu import OpenDisk, QmpSocket, RunningQemu, SocketState
    from qmpsnap.model.start import GuestMemory, Start
    from qmpsnap.model.step import Stage
    from qmpsnap.model.tree import Owner, Tree, TreeImage, TreeLine
    from qmpsnap.model.view import DiskView, ViewLayer
    from qmpsnap.plan.intent import (
        Checkpoint,
        Commit,
        Delete,
        Ending,
        FileMode,
        Folded,
        Format,
        Intent,
        Into,
        MakeStore,
        Mirror,
        Mode,
        OnError,
        Prune,
        Restore,
        Revert,
        Save,
        Snapshot,
        Stream,
        Sync,
        Via,
    )
    from qmpsnap.plan.plan import OperationEnd, Plan
    from qmpsnap.run.channel import Console, Port
    from qmpsnap.run.examination import diagnose_monitor
    from qmpsnap.run.freezing import thaw
    from qmpsnap.run.outcome import Done, Hooks
    from qmpsnap.run.session import Event
    from qmpsnap.run.target import Progress
    from qmpsnap.run.view import View, open_view
    from qmpsnap.template import Template, open_template
    from qmpsnap.template_removal import remove_template
    from qmpsnap.vm import VM, Launcher, Wake
    from qmpsnap.watching import JobNow, Overview

# From most to least important.
__all__ = [  # noqa: RUF022
    "connect", "launch", "offline", "VM", "Group", "Jobs", "Machine", "MachineDisk", "Nic", "LaunchedVM",
    "Console", "Port", "Launcher", "launcher_of", "Start", "GuestMemory", "Template", "open_template",
    "remove_template",
    "Children", "Child",
    "list_machines", "address_of", "RunningQemu", "QmpSocket", "SocketState", "OpenDisk", "HostProcess",
    "Accelerator", "Bus", "Ended", "OperationEnd",
    "Snapshot", "Stream", "Commit", "Mirror", "Checkpoint", "MakeStore", "Revert", "Save", "Restore",
    "Delete", "Prune",
    "Intent", "Mode", "FileMode", "Ending", "Sync", "Format", "OnError", "Folded", "Via", "Into", "Wake",
    "GroupIntent", "GroupMoment", "GroupDone",
    "Plan", "Stage", "Done", "Hooks", "Progress", "View", "DiskView", "ViewLayer", "open_view",
    "diagnose_monitor", "thaw", "Finding", "Severity",
    "BackedUp", "BackupRecord", "BackupDisk", "RunningBackup",
    "list_backups", "verify_backup", "restore_backup",
    "Graph", "Disk", "Layer", "Filter", "Io", "Node", "InternalSnapshot",
    "Moments", "Moment", "MomentKind", "MomentPart", "WrittenLayer", "Tree", "TreeImage", "TreeLine", "Owner",
    "MomentRecord", "IntentRecord", "Origin", "Member", "LeftBehind", "LeftKind",
    "KeptState", "Fingerprint", "Bitmap", "Job", "JobPlace", "JobStatus", "Status", "Pause", "IoStatus",
    "Event", "Overview", "JobNow", "draw", "Picture", "PictureFormat", "explain", "Meaning", "MEANINGS",
    "Schema", "SchemaCommand", "SchemaMember", "SchemaType",
    "QmpsnapError", "Changed",
    "Refused", "NotFound", "AmbiguousName", "NotInChain", "Busy", "TargetExists", "InvalidTarget",
    "FileMoved", "ImageInUse", "StillNeeded", "WouldLose", "Unsupported", "UnsafeImage", "BadArgument",
    "BadName", "ForeignJob", "MachineDiffers", "TargetError", "ConnectFailed", "CommandFailed", "JobFailed",
    "MigrationFailed", "Malformed", "LinkLost", "GraphMismatch", "Incomplete", "JobPaused", "Detached",
    "Interrupted",
]  # fmt: skip

# Where these names are defined. A module is imported when one of its names is first asked for, and nothing
# else is imported here: the command line has to handle Ctrl-C before it spends some 0.3 s on imports.
_HOMES = (
    "plan.intent",  # before model.job, which has an Ending of its own
    "backup",
    "backup_restore",
    "entry",
    "errors",
    "group",
    "jobs",
    "launched",
    "launching",
    "machines",
    "model.backup",
    "model.finding",
    "model.graph",
    "model.host_process",
    "model.interrupted",
    "model.job",
    "model.job_place",
    "model.layer_stamps",
    "model.machine",
    "model.machine_description",
    "model.meaning.table",
    "model.moments",
    "model.pause",
    "model.picture.picture",
    "model.qapi_schema",
    "model.record",
    "model.running_qemu",
    "model.start",
    "model.tree",
    "model.view",
    "plan.plan",
    "run.channel",
    "run.examination",
    "run.freezing",
    "run.outcome",
    "run.session",
    "run.target",
    "run.view",
    "template",
    "template_removal",
    "fork",
    "vm",
    "watching",
)

if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name in __all__:
            for home in _HOMES:
                names = vars(importlib.import_module(f"{__name__}.{home}"))
                if name in names:
                    return globals().setdefault(name, names[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
