"""Plan of a deletion: one moment goes, all others stay. External ones: `plan.chain.delete`."""

from __future__ import annotations

from dataclasses import replace

from qmpsnap.errors import Busy, NotInChain, Unsupported
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import quoted
from qmpsnap.model.moments import Moment, MomentPart, find_moments, related_records
from qmpsnap.model.names import digest, job_id
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.chain import delete
from qmpsnap.plan.checks.disk import refuse_in_use, refuse_migrated
from qmpsnap.plan.commands.block import internal_delete
from qmpsnap.plan.commands.jobs import done_and_dismissed
from qmpsnap.plan.commands.state import delvm, snapshot_delete
from qmpsnap.plan.inside.loadable import ask_left, refuse_left
from qmpsnap.plan.inside.taking import refuse_double, stray, taking
from qmpsnap.plan.intent import Delete, Via
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import GuestScene, Scene


def plan(intent: Delete, scene: GuestScene) -> Plan:
    """Plan the deletion of an internal snapshot from each disk that has it, or of an external one; or refuse.

    An internal one of disks alone is deleted disk after disk: QEMU has no transaction for it. One with VM
    state is deleted through the human monitor when every writable disk has it, else by a job. None of these
    is atomic: after a failure, the same deletion goes on with the disks that are left.

    Raises:
        NotFound: When no moment has the name.
        AmbiguousName: When an external and an internal one have it, or an image has it twice.
        Unsupported: When it is on a read-only disk; when the machine's state was saved and it did not run
            since; or when the human monitor is asked for and a disk is in its way.
        NotInChain: When an image below an active layer has it: QEMU deletes in active layers alone.
        Busy: When a job holds one of the chains, or a client of ours reads it.
    """
    moment = scene.moment(intent.name)
    refuse_migrated(scene.machine.guest)
    if moment.kind == "external":
        return delete.plan(intent, (moment,), scene)
    _refuse(moment, scene)
    if intent.via is None and not moment.vm_state_size:
        steps = _one_by_one(moment, scene)
    elif (intent.via or _by_rule(moment, scene)) == "hmp":
        taking(scene, leave=(), via="hmp")
        steps = (delvm(moment.name, moment.disks),)
    else:
        steps = _by_job(moment, scene)
    return replace(_plan(intent, moment, steps, scene), run_state=scene.machine.status)


def plan_off(intent: Delete, scene: Scene) -> Plan:
    """Plan the deletion of a moment with the machine off; or refuse.

    An internal one is deleted disk after disk, its VM state with it: a storage daemon has no other way.

    Raises:
        NotFound, AmbiguousName, NotInChain, Busy: As with `plan`.
        Unsupported: When a way through a running QEMU is asked for, or a disk is read-only.
    """
    if intent.via is not None:
        raise Unsupported(
            "with the machine off there is no QEMU to delete it, so --via does not apply",
            feature=f"deletion by {intent.via} with the machine off",
            hint="omit --via",
        )
    moment = scene.moment(intent.name)
    if moment.kind == "external":
        return delete.plan(intent, (moment,), scene)
    _refuse(moment, scene)
    return _plan(intent, moment, _one_by_one(moment, scene), scene)


def _refuse(moment: Moment, scene: Scene) -> None:
    """Refuse where a disk's image cannot lose it."""
    refuse_double(moment)
    _refuse_read(moment, scene)
    refuse_left(moment, scene, do="delete it there", way="qemu-img snapshot -d {name} {file}")
    for part in moment.held:
        _check(part, moment, scene)


def _plan(intent: Delete, moment: Moment, steps: tuple[Step, ...], scene: Scene) -> Plan:
    size = moment.vm_state_size
    return Plan(
        op="delete",
        intent=intent,
        disks=moment.disks,
        stages=(Stage(f"delete {intent.name!r} inside the images", steps, verify=True),),
        before=scene.graph,
        notes=(f"its VM state of {size} bytes is deleted too",) if size else (),
        deleted=(moment.name,),
    )


def ask_again(intent: Delete, graph: Graph, files: Files) -> Ask:
    """What the planner wants to know once it knows the records.

    Of an external moment its layers, and what stands on them; and what is inside layers that were left.
    """
    own = related_records(graph, files.records)
    moments = find_moments(graph, files.records, own=own).named(intent.name)
    external = tuple(moment for moment in moments if moment.kind == "external")
    layers = (layer for disk in graph.disks.values() for layer in disk.layers if layer.local)
    left = ask_left(graph, files, own) | Ask(readers=tuple((layer.file, intent.name) for layer in layers))
    return left | delete.ask(intent, graph, files, external) if external else left


def _refuse_read(moment: Moment, scene: Scene) -> None:
    """Refuse to delete what `open` serves: its readers would get newer data, and no lock of QEMU's helps."""
    for part in moment.held:
        if (part.file, moment.name) in scene.files.readers:
            raise Busy(
                f"{moment.name!r} of {part.disk} is being read (qmpsnap open)",
                node="",
                job_id="",
                hint="end that command first",
            )


def _check(part: MomentPart, moment: Moment, scene: Scene) -> None:
    """Refuse when QEMU cannot delete this disk's part."""
    disk = scene.graph.disks[part.disk]
    if not part.in_chain:
        when = "once the machine is off" if isinstance(scene, GuestScene) else "delete it there"
        way = f"qemu-img snapshot -d {quoted(moment.name)} {quoted(part.file)}"
        raise NotInChain(
            f"{moment.name!r} is inside {part.file}, which is below the active layer of {disk.name}",
            hint=f"{when}: {way}",
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
