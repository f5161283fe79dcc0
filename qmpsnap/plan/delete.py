"""Plan of a deletion: one moment goes, all others stay. So far of internal ones alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import AmbiguousName, NotInChain, UnknownNode, Unsupported
from qmpsnap.model.files import Ask
from qmpsnap.model.moments import find_moments
from qmpsnap.plan.effect import apply_all
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.scene import refuse_busy, refuse_covered, state_questions
from qmpsnap.plan.steps import DeleteInternal

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.moments import Moment
    from qmpsnap.plan.intent import Delete
    from qmpsnap.plan.scene import Scene

__all__ = ["ask", "internal_moment", "plan"]


def ask(intent: Delete, graph: Graph, *, state_dir: str = "") -> Ask:
    """What the planner wants to know about the file system: the names that records give to moments."""
    del intent
    return Ask(records=state_questions(graph, state_dir))


def plan(intent: Delete, scene: Scene) -> Plan:
    """Plan the deletion of an internal snapshot from each disk that has it; or refuse.

    QEMU has no transaction for it: between two disks a failure leaves it on the second. Deleted again,
    it goes from those that still have it.

    Raises:
        UnknownNode: When no moment has the name.
        AmbiguousName: When an external and an internal one have it, or an image has it twice.
        Unsupported: When it is an external one, or on a read-only disk.
        NotInChain: When an image below an active layer has it: QEMU deletes in active layers alone.
        NodeBusy: When a job holds one of the chains.
    """
    moment = internal_moment(intent.name, scene)
    scene.features.need("blockdev-snapshot-delete-internal-sync")
    steps: list[DeleteInternal] = []
    for part in moment.held:
        disk = scene.graph.disks[part.disk]
        if not part.in_chain:
            raise NotInChain(
                f"{intent.name!r} is inside {part.file}, which stands below the active layer of {disk.name}",
                hint="it can be deleted there once the machine is off: qemu-img snapshot -d",
            )
        if any(step.disk == disk.name for step in steps):
            raise AmbiguousName(
                f"{part.file} has more than one internal snapshot {intent.name!r}",
                candidates=[f"id {one.id}" for one in moment.held if one.file == part.file],
                hint="only qemu-img makes two of one name; it deletes them once the machine is off",
            )
        if disk.read_only:
            raise Unsupported(f"disk {disk.name!r} is read-only", feature="deletion on a read-only disk")
        refuse_busy(scene, disk)
        refuse_covered(scene, disk)
        steps.append(DeleteInternal(disk.name, disk.root, part.id, intent.name))
    notes = []
    if moment.vm_state_size:
        notes.append(f"its VM state of {moment.vm_state_size} bytes goes with it")
    return Plan(
        op="delete",
        intent=intent,
        disks=moment.disks,
        stages=(Stage(f"delete {intent.name!r} inside the images", tuple(steps), verify=True),),
        before=scene.graph,
        after=apply_all(scene.graph, steps),
        notes=tuple(notes),
    )


def internal_moment(name: str, scene: Scene) -> Moment:
    """Return the one internal moment of that name.

    Raises:
        UnknownNode: When no moment has it.
        AmbiguousName: When an external and an internal one have it.
        Unsupported: When it is an external one.
    """
    moments = find_moments(scene.graph, scene.files.records)
    found = moments.named(name)
    if not found:
        names = dict.fromkeys(one.name for one in moments.moments)
        raise UnknownNode(
            f"there is no snapshot {name!r}", hint=f"there are: {', '.join(map(repr, names)) or 'none'}"
        )
    if len(found) > 1:
        raise AmbiguousName(
            f"{name!r} is the name of {len(found)} snapshots: {', '.join(one.kind for one in found)}",
            candidates=[f"{one.kind}, on {', '.join(one.disks)}" for one in found],
            hint="an external one goes by commit or stream",
        )
    if found[0].kind == "external":
        part = found[0].held[0]
        fold = f"qmpsnap commit {part.disk} --top {part.overlay} --base {part.file}"
        raise Unsupported(
            f"{name!r} is an external snapshot (its overlay is {part.overlay}); those cannot be deleted yet",
            feature="deletion of an external snapshot",
            hint=f"fold its overlay by commit: {fold}",
        )
    return found[0]
