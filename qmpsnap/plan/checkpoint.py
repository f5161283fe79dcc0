"""Plans of checkpoints inside the images: take one, go back to it, delete it. HMP savevm, loadvm, delvm.

QEMU takes every writable disk, and every writable node without a use; what cannot be taken is in the way
of all three, and is named before anything is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import AmbiguousName, NodeBusy, NotInChain, Unsupported
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import PATH_DRIVERS
from qmpsnap.model.job import ENDED
from qmpsnap.model.names import check_name
from qmpsnap.plan.delete import internal_moment
from qmpsnap.plan.effect import apply
from qmpsnap.plan.internal import refuse_taken
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.scene import state_questions
from qmpsnap.plan.steps import DelVm, LoadVm, SaveVm

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk, Graph
    from qmpsnap.model.moments import Moment
    from qmpsnap.plan.intent import CheckpointIntent, CheckpointInternal, DeleteCheckpoint, RevertInternal
    from qmpsnap.plan.scene import Scene
    from qmpsnap.plan.steps import Step

__all__ = ["ask", "plan_delete", "plan_revert", "plan_save"]


def ask(intent: CheckpointIntent, graph: Graph, *, state_dir: str = "") -> Ask:
    """What the planner wants to know about the file system: the names that records give to moments."""
    del intent
    return Ask(records=state_questions(graph, state_dir))


def plan_save(intent: CheckpointInternal, scene: Scene) -> Plan:
    """Plan a checkpoint; or refuse.

    Raises:
        BadName: When the name is outside the grammar.
        TargetExists: When a moment of the machine has the name.
        Unsupported: When a writable disk is no qcow2 image, or there is none.
        NodeBusy: When a job runs, or a writable node without a use is in the way.
    """
    check_name(intent.name)
    refuse_taken(intent.name, scene)
    disks = _taken(scene)
    step = SaveVm(intent.name, tuple(disk.name for disk in disks))
    return _plan("checkpoint-internal", intent, scene, disks, "take the checkpoint", step)


def plan_revert(intent: RevertInternal, scene: Scene) -> Plan:
    """Plan to go back to a checkpoint; or refuse.

    Raises:
        UnknownNode: When no moment has the name.
        AmbiguousName: When two have it.
        NotInChain: When a writable disk has it not in its active layer.
        Unsupported: When it holds disks alone, is an external one, or a writable disk is no qcow2 image.
        NodeBusy: When a job runs, or a writable node without a use is in the way.
    """
    moment = internal_moment(intent.name, scene)
    disks = _taken(scene)
    _refuse_double(moment)
    have = {part.disk for part in moment.held if part.in_chain}
    for disk in disks:
        if disk.name not in have:
            raise NotInChain(
                f"checkpoint {intent.name!r} is not inside the active layer of {disk.name} "
                f"({disk.active.file})",
                hint="QEMU goes back with all writable disks: unplug that one, or fold its overlay",
            )
    if not any(part.vm_state_size for part in moment.held if part.disk in {one.name for one in disks}):
        raise Unsupported(
            f"{intent.name!r} holds disks alone, no VM state",
            feature="going back to an internal snapshot of disks while QEMU runs",
            hint=f"with the machine off: qemu-img snapshot -a {intent.name} FILE, for each disk",
        )
    return _plan("revert-internal", intent, scene, disks, f"go back to {intent.name!r}", LoadVm(intent.name))


def plan_delete(intent: DeleteCheckpoint, scene: Scene) -> Plan:
    """Plan the deletion of a checkpoint; or refuse.

    Raises:
        UnknownNode: When no moment has the name.
        AmbiguousName: When two have it.
        NotInChain: When a disk has it below its active layer.
        Unsupported: When it is an external one, or a writable disk is no qcow2 image.
        NodeBusy: When a job runs, or a writable node without a use is in the way.
    """
    moment = internal_moment(intent.name, scene)
    taken = {disk.name for disk in _taken(scene)}
    _refuse_double(moment)
    for part in moment.held:
        if not part.in_chain or part.disk not in taken:
            raise NotInChain(
                f"{intent.name!r} is inside {part.file}, where QEMU deletes nothing: it is below the active "
                f"layer of {part.disk}, or read-only",
                hint="it can be deleted there once the machine is off: qemu-img snapshot -d",
            )
    disks = [scene.graph.disks[name] for name in moment.disks]
    step = DelVm(intent.name, moment.disks)
    return _plan("delete-checkpoint", intent, scene, disks, f"delete {intent.name!r}", step)


def _plan(op: str, intent: CheckpointIntent, scene: Scene, disks: list[Disk], title: str, step: Step) -> Plan:
    return Plan(
        op=op,
        intent=intent,
        disks=tuple(disk.name for disk in disks),
        stages=(Stage(title, (step,), verify=True),),
        before=scene.graph,
        after=apply(scene.graph, step),
    )


def _taken(scene: Scene) -> list[Disk]:
    """The disks that QEMU takes: every writable one, when nothing is in the way."""
    scene.features.need("human-monitor-command")
    disks = [disk for disk in scene.graph.disks.values() if disk.layers and not disk.read_only]
    for disk in disks:
        if disk.filters:
            raise Unsupported(
                f"{disk.name} has a filter ({disk.filters[0].driver} {disk.filters[0].node!r}) above it: "
                "to go back to a checkpoint under a throttle ends QEMU 10.0 and 11.1",
                feature="checkpoints under a filter",
                hint="set limits by block_set_io_throttle instead of a throttle node",
            )
        if disk.active.format != "qcow2":
            raise Unsupported(
                f"{disk.name} ({disk.active.file}) is writable and {disk.active.format}, "
                "which keeps no checkpoints",
                feature=f"checkpoints inside {disk.active.format}",
                hint=_way_out(disk),
            )
    if not disks:
        raise Unsupported(
            "there is no writable qcow2 disk to keep it in", feature="a checkpoint without disks"
        )
    for job in scene.jobs:
        if job.status not in ENDED:
            raise NodeBusy(
                f"job {job.id!r} ({job.type}, {job.status.value}) is under way",
                node="",
                job_id=job.id,
                hint=f"wait for it (qmpsnap job wait {job.id}) or stop it (qmpsnap job cancel {job.id})",
            )
    _refuse_unused(scene.graph)
    return disks


def _way_out(disk: Disk) -> str:
    if "pflash" in disk.name or "flash" in disk.qdev:
        return "give QEMU the UEFI variables as a qcow2 image, or read-only"
    return "give it to QEMU as qcow2 or read-only, or unplug it; an external snapshot leaves the memory out"


def _refuse_unused(graph: Graph) -> None:
    """Refuse when a writable node has no use: QEMU would take it, too."""
    used = {layer.node for disk in graph.disks.values() for layer in disk.layers}
    images = [one for one in graph.nodes.values() if not one.is_filter and one.driver not in PATH_DRIVERS]
    below = {one.backing for one in images if one.backing}
    behind = {one.file for one in images}
    for node in graph.nodes.values():
        if node.is_filter or node.read_only or node.name in used:
            continue
        child = node.file in (behind if node.driver in PATH_DRIVERS else below)
        if not child:
            raise NodeBusy(
                f"node {node.name!r} ({node.file}) is writable and has no use: QEMU would take it, too",
                node=node.name,
                job_id="",
                hint=f"free it first: blockdev-del {node.name}",
            )


def _refuse_double(moment: Moment) -> None:
    places = [(part.disk, part.file) for part in moment.held]
    for part in moment.held:
        if places.count((part.disk, part.file)) > 1:
            raise AmbiguousName(
                f"{part.file} has more than one internal snapshot {moment.name!r}",
                candidates=[f"id {one.id}" for one in moment.held if one.file == part.file],
                hint="only qemu-img makes two of one name; it deletes them once the machine is off",
            )
