"""Plans that finish an interrupted checkpoint inside images, or an interrupted revert to one.

QEMU completes a save, a load or a deletion once it has begun, and answers nobody until then. So a later
client always finds it ended; all that can remain is a paused guest that ran before, or a job to dismiss. If
QEMU itself was killed, a checkpoint may be on only some of its disks.
"""

from __future__ import annotations

from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import LOAD_FAILED, command
from qmpsnap.model.job import ENDED, Job, JobId
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.checks.disk import refuse_migrated
from qmpsnap.plan.commands.block import internal_delete
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.commands.state import adopt, cont
from qmpsnap.plan.ownership import ran_here
from qmpsnap.plan.plan import OperationEnd, Plan
from qmpsnap.plan.scene import GuestScene, Scene

JOBS = ("snapshot-save", "snapshot-load", "snapshot-delete")
"""QEMU's kinds of job on VM state."""


def is_inside(record: IntentRecord) -> bool:
    """Whether the operation works inside images: it has no job on a chain, no overlays, no VM state file."""
    return record.start is None and not record.overlays and record.state is None


def plan(record: IntentRecord, scene: Scene) -> Plan:
    """Plan the end of an operation whose job no longer exists."""
    return _revert(record, scene) if record.loads else _checkpoint(record, scene)


def with_job(name: JobId, job: Job, record: IntentRecord | None, scene: Scene) -> Plan:
    """Dismiss a job that has ended or is about to, and resume a guest that a failed load left paused.

    Args:
        name: The operation's id, parsed.
        job: Its job.
        record: Its record, or None.
        scene: The machine and its files; with the guest if there is a record.
    """
    disks = _disks(record, scene)
    tag = record.name if record is not None else ""
    names = tuple(disk.name for disk in disks)
    resumes: list[Step] = [write_record(record.directory, record)] if record is not None else []
    running = job.type == "snapshot-load" and (
        _paused_by_this_load(record, scene) if job.status in ENDED else _ran(record)
    )
    resumes.append(adopt(job.type, job.id, name=tag, disks=names, running=running))
    return _plan(
        record.op if record is not None else name.op,
        disks,
        scene,
        Stage(f"finish {job.id}", (await_job(job.id, "concluded"), job_dismiss(job.id)), verify=True),
        _finish(record),
        resumes=tuple(resumes),
    )


def _revert(record: IntentRecord, scene: Scene) -> Plan:
    """The job no longer exists: the run state of the guest shows the outcome."""
    disks = _disks(record, scene)
    finish = _finish(record)
    if _load_has_failed(scene) and _ran(record) and not _paused_by_this_load(record, scene):
        note = (
            "a load failed, and the guest is paused; it is not known whether that was the revert to "
            f"{record.name!r}, for QEMU may have been restarted: the machine is left as it is"
        )
        return _plan(record.op, disks, scene, finish, notes=(note,), ended="unknown")
    if not _paused_by_this_load(record, scene):
        note = f"no load has failed; QEMU does not tell whether the machine was reverted to {record.name!r}"
        return _plan(record.op, disks, scene, finish, notes=(note,), ended="unknown")
    if any(not _has(disk, record.name) for disk in disks):
        note = f"the revert to {record.name!r} failed before anything changed: the guest keeps running"
        return _plan(
            record.op, disks, scene, Stage(note, (cont(),)), finish, notes=(note,), ended="rolled-back"
        )
    return _plan(
        record.op,
        disks,
        scene,
        finish,
        vanished=f"QEMU failed while reverting to {record.name!r}; the guest is paused, and its memory "
        f"cannot be trusted: {LOAD_FAILED}",
    )


def _checkpoint(record: IntentRecord, scene: Scene) -> Plan:
    """The checkpoint is on every disk, or on none; if QEMU was killed in between, delete it from those."""
    disks = _disks(record, scene)
    having = [disk for disk in disks if _has(disk, record.name)]
    if len(having) == len(record.chains):
        note = f"checkpoint {record.name!r} was taken"
        return _plan(record.op, disks, scene, _finish(record), notes=(note,))
    if having and not all(_is_as_then(name, record, scene) for name in record.chains):
        others = ", ".join(name for name in record.chains if not _is_as_then(name, record, scene))
        note = (
            f"checkpoint {record.name!r} is on {', '.join(disk.name for disk in having)}; it is not "
            f"known whether it is complete, for {others} is missing, or is on another layer. It was kept; to "
            f"delete it: {command('delete', record.name)}"
        )
        return _plan(record.op, disks, scene, _finish(record), notes=(note,), ended="unknown")
    note = f"checkpoint {record.name!r} was not taken"
    if having and isinstance(scene, GuestScene):
        refuse_migrated(scene.machine.guest)  # the deletion would end QEMU then
    parts = tuple(
        internal_delete(disk.name, disk.root, snapshot.id, snapshot.name)
        for disk in having
        for snapshot in disk.active.snapshots
        if snapshot.name == record.name
    )
    return _plan(
        record.op,
        disks,
        scene,
        Stage("delete it from the disks that have it", parts),
        _finish(record),
        notes=(note,),
        ended="rolled-back",
    )


def _paused_by_this_load(record: IntentRecord | None, scene: Scene) -> bool:
    """Whether a guest that ran is paused because this load failed, in the QEMU that was told to load."""
    if record is None or not isinstance(scene, GuestScene) or not ran_here(record, scene.machine.process):
        return False
    return _ran(record) and _load_has_failed(scene)


def _load_has_failed(scene: Scene) -> bool:
    return isinstance(scene, GuestScene) and scene.machine.status == FOR_A_LOAD


def _is_as_then(name: str, record: IntentRecord, scene: Scene) -> bool:
    """Whether the disk exists, and writes to the layer to which it wrote when the operation began."""
    disk = scene.graph.disks.get(name)
    return disk is not None and bool(disk.layers) and disk.files[:1] == record.chains[name][:1]


def _ran(record: IntentRecord | None) -> bool:
    return record is not None and record.origin is not None and record.origin.running


def _has(disk: Disk, name: str) -> bool:
    return any(snapshot.name == name for snapshot in disk.active.snapshots)


def _disks(record: IntentRecord | None, scene: Scene) -> tuple[Disk, ...]:
    """The disks of the operation; none without a record."""
    names = record.chains if record is not None else ()
    disks = (scene.graph.disks[name] for name in names if name in scene.graph.disks)
    return tuple(disk for disk in disks if disk.layers)


def _finish(record: IntentRecord | None) -> Stage:
    steps = () if record is None else (finish_record(record.directory, (record.id,)),)
    return Stage("remove the record", steps, tidy=True)


def _plan(
    op: str,
    disks: tuple[Disk, ...],
    scene: Scene,
    *stages: Stage,
    notes: tuple[str, ...] = (),
    resumes: tuple[Step, ...] = (),
    ended: OperationEnd = "finished",
    vanished: str = "",
) -> Plan:
    return Plan(
        op=op,
        intent=None,
        disks=tuple(disk.name for disk in disks),
        stages=tuple(stage for stage in stages if stage.steps),
        before=scene.graph,
        after=None,
        notes=notes,
        resumes=resumes,
        ended=ended,
        vanished=vanished,
    )
