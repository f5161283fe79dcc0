"""Plans that revert a machine that is off, whose disks need not match any memory.

    to an external moment       new overlays on its layers, from which the machine is then started
    to an internal moment       the images themselves are reverted; what was written since is lost

Images are reverted one after the other, because QEMU has no transaction for it. Before the first one is
reverted, a snapshot inside each image preserves its content, so that a failure can roll back all of them.
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
from qmpsnap.plan.vmstate import revert, revert_new

_COPY = "qemu-img convert -l snapshot.name={name} -O qcow2 {file} {file}.copy"


def ask_again(intent: Revert, graph: Graph, files: Files) -> Ask:
    """What the planner has to know once it knows the moments: the same as for a machine that runs."""
    return revert.ask_again(intent, graph, files)


def plan(intent: Revert, scene: Scene) -> Plan:
    """Plan to revert to a moment with the machine off; or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it, or one image has it twice.
        Unsupported: When layers are to be discarded, a way of loading memory is given, a writable disk is not
            a qcow2 image or has a dirty bitmap, or the storage daemon lacks a command.
        NotInChain: When a layer no longer holds the moment, or the active layer of a writable disk that is
            not in `leave` does not contain it.
        Busy: When a job runs, or something else reads a disk that is to be reverted.
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
            "with the machine off a revert discards no layer",
            feature="discarding layers with the machine off",
            hint="omit --discard; a revert to an internal snapshot always discards what was written since",
        )
    moment = scene.moment(intent.name)
    if moment.kind == "external":
        return revert_new.plan_prepare(intent, scene)
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
    backup = kept_inside(token)
    roots = tuple((disk.name, disk.root) for disk in part.disks)
    old = [
        (name, disk.name, disk.root)
        for disk in part.disks
        for name in dict.fromkeys(snapshot.name for snapshot in disk.active.snapshots)
        if is_kept_inside(name)
    ]
    steps = (step for disk in part.disks for step in revert_inside(disk, intent.name, backup))
    return Plan(
        op="revert-internal",
        intent=intent,
        disks=part.names,
        stages=(
            Stage("keep what the images hold", (keep_inside(backup, roots),)),
            Stage(f"revert to {intent.name!r}", tuple(steps), verify=True),
            Stage(
                "delete what was kept",
                tuple(drop_inside(*place) for place in (*((backup, *root) for root in roots), *old)),
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
        way=_COPY,
    )
    have = {held.disk for held in moment.held if held.in_chain}
    if not have:
        below = [held.file for held in moment.held]
        raise NotInChain(
            f"{moment.name!r} is inside {', '.join(below)}, below the active layer",
            hint=f"copy it out: {'; '.join(_copied_out(moment.name, file) for file in below)}",
        )
    refuse_id(intent.name, part)
    for disk in part.disks:
        if disk.name not in have:
            raise NotInChain(
                f"{intent.name!r} is not inside the active layer of {disk.name} ({disk.active.file})",
                hint=f"to leave the disk as it is: --leave {quoted(disk.name)}",
            )
        refuse_data_file(disk, hint=f"to leave the disk as it is: --leave {quoted(disk.name)}")
        refuse_in_use(scene, disk)
    refuse_unrevertable(moment, part, scene)


def _copied_out(name: str, file: str) -> str:
    return _COPY.format(name=quoted(name), file=quoted(file))


def _taken(part: Taking) -> frozenset[str]:
    return frozenset(snapshot.name for disk in part.disks for snapshot in disk.active.snapshots)


def _notes(moment: Moment) -> tuple[str, ...]:
    lost = "what was written since is lost"
    if not moment.vm_state_size:
        return (lost,)
    return (
        lost,
        f"the memory is not loaded; to load it, start the machine with -loadvm {quoted(moment.name)}",
    )
