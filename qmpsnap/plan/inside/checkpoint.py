"""Plans of checkpoints inside the images, and of a revert to one: through the human monitor, or by jobs.

Both are recorded first, where a record can be written: QEMU leaves the guest paused when a load fails, and
may be killed between two disks.
"""

from __future__ import annotations

from qmpsnap.errors import AmbiguousName, BadName, NotInChain, Unsupported
from qmpsnap.model.hints import quoted
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.moments import Moment
from qmpsnap.model.names import check_name, digest, job_id
from qmpsnap.model.record import Origin
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.checks.disk import refuse_migrated
from qmpsnap.plan.checks.encryption import refuse_memory_inside
from qmpsnap.plan.checks.opened import refuse_lost
from qmpsnap.plan.commands.jobs import done_and_dismissed
from qmpsnap.plan.commands.state import cont, loadvm, savevm, snapshot_load, snapshot_save
from qmpsnap.plan.inside.loadable import bitmap_notes, refuse_data_file, refuse_left, refuse_unloadable
from qmpsnap.plan.inside.snapshot import check_inside_name, refuse_taken
from qmpsnap.plan.inside.taking import Taking, refuse_double, taking
from qmpsnap.plan.intent import Checkpoint, Revert
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import state_place
from qmpsnap.plan.recording import finished, recorded
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.plan.vmstate.common import refuse_no_load, refuse_unsavable
from qmpsnap.plan.vmstate.in_place import load_notes


def plan(intent: Checkpoint, scene: GuestScene) -> Plan:
    """Plan a checkpoint; or refuse.

    Raises:
        BadName: When the name is outside the grammar, or a number.
        TargetExists: When a moment of the machine has the name.
        NotFound, AmbiguousName: When a disk to leave is not there, or its name fits two.
        Unsupported: When a disk that takes part is no qcow2 image or has its data elsewhere, there is none,
            the machine's state was saved and it did not run since or cannot be saved, or this QEMU lacks a
            command.
        Busy: When a job runs, or a writable node without a use is in the way.
    """
    check_inside_name(intent.name)
    refuse_taken(intent.name, scene)
    refuse_unsavable(scene, migrates=False)
    part = taking(scene, leave=intent.leave, via=intent.via)
    refuse_lost(scene, part.disks)
    for disk in part.disks:
        refuse_data_file(
            disk, hint=f"use --mode in-place, or leave the disk out: --leave {quoted(disk.name)}"
        )
    refuse_memory_inside(scene.graph, part.disks[0], plain=intent.plain)
    operation_id = job_id("checkpoint", "keep", _token(intent, part, scene))
    if part.via == "jobs":
        scene.features.need("snapshot-save", "job-dismiss")
        step = snapshot_save(operation_id, intent.name, part.nodes)
    else:
        step = savevm(intent.name, part.names)
    return _plan("checkpoint-internal", intent, scene, part, "take the checkpoint", step, operation_id)


def plan_revert(intent: Revert, moment: Moment, scene: GuestScene) -> Plan:
    """Plan to go back to an internal moment; or refuse.

    Raises:
        NotFound: When a disk to leave is not there.
        AmbiguousName: When an image has its name twice, or has it as the id of another snapshot.
        NotInChain: When a writable disk that is not to be left has it not in its active layer, or one that
            has it is read-only.
        Unsupported: When it holds disks alone, its VM state is in a disk to leave, a
            disk that takes part is no qcow2 image or has a dirty bitmap, the machine's state was saved and it
            did not run since, or this QEMU lacks a command.
        Busy: When a job runs, or something else reads a disk that is to go back.
        InvalidTarget: When a disk had another size, and there is no room to change it.
    """
    if intent.discard:
        raise Unsupported(
            f"{intent.name!r} is inside the images: what was written since is always lost",
            feature="discarding layers in a revert to an internal checkpoint",
            hint="omit --discard",
        )
    refuse_migrated(scene.machine.guest)
    machine = scene.machine
    refuse_no_load(machine)
    part = taking(scene, leave=intent.leave, via=intent.via)
    refuse_double(moment)
    if moment.vm_state_size:
        do, way = "start a QEMU from a copy of it, and revert there", "cp {file} {file}.copy"
    else:
        do, way = "copy it out", "qemu-img convert -l snapshot.name={name} -O qcow2 {file} {file}.copy"
    refuse_left(moment, scene, do=do, way=way)
    refuse_id(intent.name, part)
    have = {held.disk for held in moment.held if held.in_chain}
    for disk in part.disks:
        if disk.name not in have:
            raise NotInChain(
                f"checkpoint {intent.name!r} is not inside the active layer of {disk.name} "
                f"({disk.active.file})",
                hint="unplug that disk, commit its overlay, or leave its data as it is when the memory is "
                f"reverted: --leave {quoted(disk.name)}",
            )
    refuse_unloadable(moment, part, scene)
    vmstate = _vmstate(moment, part)
    if intent.via is None and part.via == "hmp" and vmstate != part.names[0]:
        # Jobs have kept it; the human monitor looks for it in the first disk alone.
        part = taking(scene, leave=intent.leave, via="jobs")
    operation_id = job_id("revert", "keep", _token(intent, part, scene))
    if part.via == "jobs":
        scene.features.need("snapshot-load", "job-dismiss")
        step = snapshot_load(
            operation_id, intent.name, part.nodes, dict(part.nodes)[vmstate], running=machine.running
        )
    else:
        step = loadvm(intent.name, running=machine.running)
    return _plan("revert-internal", intent, scene, part, f"revert to {intent.name!r}", step, operation_id)


def refuse_id(name: str, part: Taking) -> None:
    """Refuse a name that is the id of another snapshot: QEMU looks for that first, and would go there."""
    for disk in part.disks:
        for other in disk.active.snapshots:
            if other.id == name != other.name:
                raise AmbiguousName(
                    f"{name!r} is the id of snapshot {other.name!r} inside {disk.active.file}, so QEMU would "
                    "revert to that one",
                    candidates=[f"id {other.id}: {other.name}"],
                    hint=f"delete {other.name!r} first; or shut the machine off, and revert by the other "
                    "one's id",
                )


def _vmstate(moment: Moment, part: Taking) -> str:
    """Name of the disk that keeps the VM state."""
    keeps = [held.disk for held in moment.held if held.vm_state_size and held.in_chain]
    for name in keeps:
        if name in part.names:
            return name
    if keeps:
        raise Unsupported(
            f"the VM state of {moment.name!r} is inside {keeps[0]}, which is left out",
            feature="VM state without the disk that keeps it",
            hint=f"revert {keeps[0]} too",
        )
    images = (f"-i {quoted(held.disk)}={quoted(held.file)}" for held in moment.held if held.in_chain)
    raise Unsupported(
        f"{moment.name!r} has no VM state, only disks",
        feature="revert to an internal snapshot of disks while QEMU runs",
        hint=f"with the machine off: qmpsnap {' '.join(images)} revert {quoted(moment.name)}",
    )


def _recordable(name: str) -> bool:
    """Whether a record may carry the name: one that somebody else chose may be outside our grammar."""
    try:
        check_name(name)
    except BadName:
        return False
    return True


def _token(intent: Checkpoint | Revert, part: Taking, scene: Scene) -> str:
    files = [(disk.name, disk.files) for disk in part.disks]
    return digest(intent.kind, intent.name, files, avoid=scene.names)


def _plan(
    op: str,
    intent: Checkpoint | Revert,
    scene: GuestScene,
    part: Taking,
    title: str,
    step: Step,
    operation_id: str,
) -> Plan:
    machine = scene.machine
    place = state_place(scene, part.disks[0]) if _recordable(intent.name) else ""
    notes = load_notes(machine, intent.name) if step.loads else bitmap_notes(intent.name, part)
    steps = done_and_dismissed(step) if step.on_state else (step,)
    # QEMU resumes a guest that is running when it loads, not one that a failed load has paused.
    go_on = (cont(),) if step.loads and machine.status == FOR_A_LOAD else ()
    plan = Plan(
        op=op,
        intent=intent,
        disks=part.names,
        stages=(
            Stage(title, (*steps, *go_on), verify=True),
            Stage("remove the record", finished(operation_id, place), tidy=True),
        ),
        before=scene.graph,
        run_state=machine.status,
        notes=(*part.notes, *notes),
    )
    origin = Origin(machine.running, machine.process)
    return recorded(plan, place, id=operation_id, created=scene.now, name=intent.name, origin=origin)
