"""Plan of a deletion: one moment goes, all others stay. So far of internal ones, and of checkpoints."""

from __future__ import annotations

from qmpsnap.errors import NotInChain, Unsupported
from qmpsnap.model.moments import Moment, MomentPart
from qmpsnap.model.names import digest, job_id
from qmpsnap.plan.checks.disk import refuse_busy, refuse_covered, refuse_migrated
from qmpsnap.plan.commands.block import internal_delete
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.state import delvm, snapshot_delete
from qmpsnap.plan.inside.taking import refuse_double, stray, taking
from qmpsnap.plan.intent import Delete, Via
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.step import Step
from qmpsnap.plan.vmstate import delete as delete_external
from qmpsnap.plan.vmstate.common import machine_of


def plan(intent: Delete, scene: Scene) -> Plan:
    """Plan the deletion of an internal snapshot from each disk that has it, or of a checkpoint; or refuse.

    Of an external checkpoint the VM state and the name go; its layers stay in their chains.

    One of disks alone goes disk after disk, as it came: QEMU has no transaction for it. One with VM state
    goes as it came, too: through the human monitor when every writable disk has it, else through a job.
    None of the three is all or nothing: after a failure, deleted again, it goes from those that are left.

    Raises:
        NotFound: When no moment has the name.
        AmbiguousName: When an external and an internal one have it, or an image has it twice.
        Unsupported: When it is an external one without VM state, or on a read-only disk; when the machine's
            state was saved and it did not run since; or when the human monitor is asked for and a disk is in
            its way.
        NotInChain: When an image below an active layer has it: QEMU deletes in active layers alone.
        Busy: When a job holds one of the chains.
    """
    moment = scene.moment(intent.name)
    if moment.kind == "external":
        return delete_external.plan(intent, moment, scene)
    refuse_migrated(scene)
    refuse_double(moment)
    for part in moment.held:
        _check(part, moment, scene)
    if intent.via is None and not moment.vm_state_size:
        steps = _one_by_one(moment, scene)
    elif (intent.via or _by_rule(moment, scene)) == "hmp":
        taking(scene, leave=(), via="hmp")
        steps = (delvm(moment.name, moment.disks),)
    else:
        steps = _by_job(moment, scene)
    notes = []
    if moment.vm_state_size:
        notes.append(f"its VM state of {moment.vm_state_size} bytes is deleted too")
    return Plan(
        op="delete",
        intent=intent,
        disks=moment.disks,
        stages=(Stage(f"delete {intent.name!r} inside the images", steps, verify=True),),
        before=scene.graph,
        run_state=machine_of(scene).status,
        notes=tuple(notes),
    )


def _check(part: MomentPart, moment: Moment, scene: Scene) -> None:
    """Refuse when QEMU cannot delete this disk's part."""
    disk = scene.graph.disks[part.disk]
    if not part.in_chain:
        raise NotInChain(
            f"{moment.name!r} is inside {part.file}, which is below the active layer of {disk.name}",
            hint="it can be deleted there once the machine is off: qemu-img snapshot -d",
        )
    if disk.read_only:
        raise Unsupported(f"disk {disk.name!r} is read-only", feature="deletion on a read-only disk")
    refuse_busy(scene, disk)
    refuse_covered(scene, disk)


def _by_rule(moment: Moment, scene: Scene) -> Via:
    """The human monitor when all that it takes has the moment, and a job otherwise."""
    disks = scene.graph.writable()
    whole = {disk.name for disk in disks} == set(moment.disks)
    return "hmp" if whole and not any(disk.filters for disk in disks) and not stray(scene.graph) else "jobs"


def _one_by_one(moment: Moment, scene: Scene) -> tuple[Step, ...]:
    scene.features.need("blockdev-snapshot-delete-internal-sync")
    return tuple(
        internal_delete(part.disk, scene.graph.disks[part.disk].root, part.id, moment.name)
        for part in moment.held
    )


def _by_job(moment: Moment, scene: Scene) -> tuple[Step, ...]:
    scene.features.need("snapshot-delete", "job-dismiss")
    disks = [scene.graph.disks[name] for name in moment.disks]
    token = digest("delete", moment.name, [(disk.name, disk.files) for disk in disks], avoid=scene.names)
    named = job_id("delete", "keep", token)
    nodes = tuple((disk.name, disk.active.node) for disk in disks)
    return snapshot_delete(named, moment.name, nodes), await_job(named, "concluded"), job_dismiss(named)
