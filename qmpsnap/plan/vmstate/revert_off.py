"""Plans of a revert of a machine that is off: there is no memory that would have to match the disks.

    to an external moment       new overlays on its layers, from which the machine is started then
    to an internal one          the images themselves go back; what was written since is lost

Several images go back one after the other, since QEMU knows no transaction for it. Until the last one has,
each keeps what it held in a snapshot inside it, so that a failure takes all of them back.
"""

from __future__ import annotations

from qmpsnap.errors import NotInChain, Unsupported
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import quoted
from qmpsnap.model.moments import Moment
from qmpsnap.model.names import digest, is_kept_inside, kept_inside
from qmpsnap.model.step import Stage
from qmpsnap.plan.checks.disk import refuse_in_use
from qmpsnap.plan.checks.opened import refuse_lost
from qmpsnap.plan.commands.inside import drop_inside, keep_inside, revert_inside
from qmpsnap.plan.inside.checkpoint import refuse_id
from qmpsnap.plan.inside.loadable import refuse_data_file, refuse_left, refuse_unrevertable
from qmpsnap.plan.inside.taking import Taking, refuse_double, taking
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate import revert


def ask_again(intent: Revert, graph: Graph, files: Files) -> Ask:
    """What the planner wants to know once it knows the moments, as for a machine that runs."""
    return revert.ask_again(intent, graph, files)


def plan(intent: Revert, scene: Scene) -> Plan:
    """Plan to go back to a moment with the machine off; or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it, or one image has it twice.
        Unsupported: When layers are to be discarded, a way of loading memory is given, a writable disk is no
            qcow2 image or has a dirty bitmap, or the storage daemon lacks a command.
        NotInChain: When a layer does not hold it any more, or a writable disk that is not to be left does
            not have it in its active layer.
        Busy: When a job runs, or something else reads a disk that is to go back.
        TargetExists, InvalidTarget: When an overlay cannot be created.
    """
    if intent.via is not None:
        raise Unsupported(
            "with the machine off no memory is loaded, so --via does not apply",
            feature=f"revert by {intent.via} with the machine off",
            hint="omit --via",
        )
    if intent.discard:
        raise Unsupported(
            "with the machine off no layer is discarded by a revert",
            feature="discarding layers with the machine off",
            hint="omit --discard; a snapshot inside the images loses what was written since in any case",
        )
    moment = scene.moment(intent.name)
    if moment.kind == "external":
        return revert.plan_prepare(intent, scene)
    return _inside(intent, moment, scene)


def _inside(intent: Revert, moment: Moment, scene: Scene) -> Plan:
    scene.features.need(
        "transaction", "blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync"
    )
    part = taking(scene, leave=intent.leave, via="jobs")
    _refuse(intent, moment, part, scene)
    token = digest(
        "revert-off", intent.name, [(disk.name, disk.files) for disk in part.disks], avoid=_taken(part)
    )
    kept = kept_inside(token)
    roots = tuple((disk.name, disk.root) for disk in part.disks)
    old = [
        (name, disk.name, disk.root)
        for disk in part.disks
        for name in dict.fromkeys(snapshot.name for snapshot in disk.active.snapshots)
        if is_kept_inside(name)
    ]
    steps = (step for disk in part.disks for step in revert_inside(disk, intent.name, kept))
    return Plan(
        op="revert-internal",
        intent=intent,
        disks=part.names,
        stages=(
            Stage("keep what the images hold", (keep_inside(kept, roots),)),
            Stage(f"revert to {intent.name!r}", tuple(steps), verify=True),
            Stage(
                "delete what was kept",
                tuple(drop_inside(*place) for place in (*((kept, *root) for root in roots), *old)),
                tidy=True,
            ),
        ),
        before=scene.graph,
        notes=(*part.notes, *_notes(moment)),
    )


def _refuse(intent: Revert, moment: Moment, part: Taking, scene: Scene) -> None:
    refuse_lost(scene, part.disks)
    refuse_double(moment)
    refuse_left(
        moment,
        scene,
        do="copy it out",
        way="qemu-img convert -l snapshot.name={name} -O qcow2 {file} {file}.copy",
    )
    refuse_id(intent.name, part)
    have = {held.disk for held in moment.held if held.in_chain}
    for disk in part.disks:
        if disk.name not in have:
            raise NotInChain(
                f"{intent.name!r} is not inside the active layer of {disk.name} ({disk.active.file})",
                hint=f"leave its data as it is: --leave {quoted(disk.name)}",
            )
        refuse_data_file(disk, hint=f"leave the disk out: --leave {quoted(disk.name)}")
        refuse_in_use(scene, disk)
    refuse_unrevertable(moment, part, scene)


def _taken(part: Taking) -> frozenset[str]:
    return frozenset(snapshot.name for disk in part.disks for snapshot in disk.active.snapshots)


def _notes(moment: Moment) -> tuple[str, ...]:
    lost = "what was written since is lost"
    if not moment.vm_state_size:
        return (lost,)
    return (
        lost,
        f"the memory is not loaded; it is if the machine is started with -loadvm {quoted(moment.name)}",
    )
