"""Plan of a deletion: one moment goes, all others stay. So far of internal ones, and of checkpoints."""

from __future__ import annotations

from qmpsnap.errors import NotInChain, Unsupported
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import command
from qmpsnap.model.moments import Moment, MomentPart, related_records
from qmpsnap.model.names import digest, job_id
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.checks.disk import refuse_in_use, refuse_jobs, refuse_migrated
from qmpsnap.plan.commands.block import internal_delete
from qmpsnap.plan.commands.files import remove_state
from qmpsnap.plan.commands.jobs import done_and_dismissed
from qmpsnap.plan.commands.records import finish_record, keep_link
from qmpsnap.plan.commands.state import delvm, snapshot_delete
from qmpsnap.plan.inside.loadable import ask_left, refuse_left
from qmpsnap.plan.inside.taking import refuse_double, stray, taking
from qmpsnap.plan.intent import Delete, Via
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import GuestScene, Scene


def plan(intent: Delete, scene: GuestScene) -> Plan:
    """Plan the deletion of an internal snapshot from each disk that has it, or of a checkpoint; or refuse.

    Of an external checkpoint the VM state and the name are deleted; its layers stay in their chains.

    One of disks alone is deleted disk after disk: QEMU has no transaction for it. One with VM state is
    deleted through the human monitor when every writable disk has it, else by a job. None of these is atomic:
    after a failure, the same deletion goes on with the disks that are left.

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
        return _external(intent, moment, scene)
    refuse_migrated(scene.machine.guest)
    refuse_double(moment)
    refuse_left(moment, scene, do="delete it there", way="qemu-img snapshot -d {name} {file}")
    for part in moment.held:
        _check(part, moment, scene)
    if intent.via is None and not moment.vm_state_size:
        steps = _one_by_one(moment, scene)
    elif (intent.via or _by_rule(moment, scene)) == "hmp":
        taking(scene, leave=(), via="hmp")
        steps = (delvm(moment.name, moment.disks),)
    else:
        steps = _by_job(moment, scene)
    size = moment.vm_state_size
    return Plan(
        op="delete",
        intent=intent,
        disks=moment.disks,
        stages=(Stage(f"delete {intent.name!r} inside the images", steps, verify=True),),
        before=scene.graph,
        run_state=scene.machine.status,
        notes=(f"its VM state of {size} bytes is deleted too",) if size else (),
    )


def ask_again(intent: Delete, graph: Graph, files: Files) -> Ask:
    """What the planner wants to know once it knows the records: those inside layers that were left."""
    del intent
    return ask_left(graph, files)


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
    refuse_in_use(scene, disk)


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
    nodes = tuple((disk.name, disk.active.node) for disk in disks)
    return done_and_dismissed(snapshot_delete(job_id("delete", "keep", token), moment.name, nodes))


def _external(intent: Delete, moment: Moment, scene: Scene) -> Plan:
    """Delete the VM state and the name of a checkpoint; its layers stay. One of disks alone is refused."""
    record = moment.record
    folds = [
        command("commit", part.disk, "--top", part.overlay, "--base", part.file)
        for part in moment.held
        if part.in_chain
    ]
    if record is None or record.state is None:
        overlays = ", ".join(part.overlay for part in moment.held)
        raise Unsupported(
            f"{intent.name!r} is an external snapshot (its overlay is {overlays}); those cannot be deleted "
            "yet",
            feature="deletion of an external snapshot",
            hint=f"commit its overlay, which loses no other snapshot: {'; '.join(folds)}" if folds else "",
        )
    refuse_jobs(scene.jobs)
    remove = remove_state(record.state.file, record.id, record.state.tag)
    present = {file for disk in scene.graph.disks.values() for file in disk.files}
    aside = [file for part in moment.held for file in record.began(part.disk) if file not in present]
    notes = [f"the layers stay; to commit its overlay: {'; '.join(folds)}"] if folds else ["the layers stay"]
    if aside:
        notes.append(f"no longer in a chain of this machine: {', '.join(aside)}")
    return Plan(
        op="delete",
        intent=intent,
        disks=tuple(part.disk for part in moment.held),
        stages=(
            Stage(f"delete the VM state of {intent.name!r}", (remove,)),
            Stage("delete its name", _records(record, scene), tidy=True),
        ),
        before=scene.graph,
        notes=tuple(notes),
    )


def _records(record: MomentRecord, scene: Scene) -> tuple[Step, ...]:
    """What becomes of the record, and of those of deleted moments that are no longer needed.

    A moment is found by the overlays that it is backed by, so their records outlive their own moments.
    """
    ours = related_records(scene.graph, scene.files.records)
    live = [other for other in ours if not other.deleted and other.id != record.id]
    needed: list[MomentRecord] = []
    pending = [record, *(other for other in ours if other.deleted)]
    while live and pending:
        linked = [
            link
            for link in pending
            if _in_chain(link, scene) or any(user.stands_on(link) for user in (*live, *needed))
        ]
        if not linked:
            break
        needed += linked
        pending = [link for link in pending if link not in linked]
    keep = (keep_link(record.directory, record.id),) if record in needed else ()
    ended = dict.fromkeys(
        (other.directory, other.id) for other in (record, *ours) if other not in needed and other not in live
    )
    return (
        *keep,
        *(
            finish_record(place, (), tuple(name for where, name in ended if where == place))
            for place in dict.fromkeys(where for where, _ in ended)
        ),
    )


def _in_chain(record: MomentRecord, scene: Scene) -> bool:
    return any(
        file in scene.graph.disks[disk].files
        for disk in record.covered
        if disk in scene.graph.disks
        for file in record.goes_on(disk)
    )
