"""Plan of an internal snapshot: inside the active layers of one or more disks, at one instant.

One transaction, so that it is on every disk or on none. It needs no record: the images have it.
"""

from __future__ import annotations

from qmpsnap.errors import AmbiguousName, BadName, NotFound, TargetExists, Unsupported
from qmpsnap.model.disk_names import find_disk, refuse_twin
from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import NO_DISK_CHANGES
from qmpsnap.model.names import check_name, is_kept_inside
from qmpsnap.model.step import Stage
from qmpsnap.plan.checks.disk import refuse_empty, refuse_in_use
from qmpsnap.plan.checks.opened import refuse_lost
from qmpsnap.plan.commands.block import internal_snapshot
from qmpsnap.plan.inside.loadable import refuse_data_file
from qmpsnap.plan.intent import Snapshot
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene


def plan(intent: Snapshot, scene: Scene) -> Plan:
    """Plan the transaction; or refuse.

    Raises:
        BadName: When the name is outside the grammar, or a number.
        NotFound: When a disk is not there.
        AmbiguousName: When a disk's spelling fits two, or a disk is named twice.
        Unsupported: When a disk is empty, read-only or no qcow2 image, or this QEMU lacks a command.
        TargetExists: When a moment of the machine has the name.
        Busy: When a job holds one of the chains.
    """
    check_inside_name(intent.name)
    scene.features.need("transaction", "blockdev-snapshot-internal-sync")
    disks, left_out = _chosen(intent, scene)
    refuse_lost(scene, disks)
    for disk in disks:
        _check(disk, scene, named=bool(intent.disks))
    refuse_taken(intent.name, scene)
    for disk in disks:
        refuse_in_use(scene, disk)
    step = internal_snapshot(intent.name, tuple((disk.name, disk.root) for disk in disks))
    return Plan(
        op="snapshot-internal",
        intent=intent,
        disks=tuple(disk.name for disk in disks),
        stages=(Stage("take the snapshot inside the images", (step,), verify=True),),
        before=scene.graph,
        notes=(f"left out: {', '.join(left_out)}",) if left_out else (),
    )


def check_inside_name(name: str) -> None:
    """Check the name of what is to be kept inside images: QEMU looks for an id first, and ids are numbers.

    Raises:
        BadName: When it is outside the grammar, a number, or one that a revert uses for itself.
    """
    check_name(name)
    if name.isdecimal():
        raise BadName(
            f"{name!r} is a number, which QEMU would take for the id of an internal snapshot",
            name=name,
            hint=f"put a letter in front, as in s{name}",
        )
    if is_kept_inside(name):
        raise BadName(
            f"{name!r} is a name of our own: a revert with the machine off deletes such snapshots",
            name=name,
            hint="choose another name",
        )


def refuse_taken(name: str, scene: Scene) -> None:
    """Refuse when a moment of the machine has the name, on whichever of its disks."""
    for moment in scene.moments.named(name):
        part = moment.held[0]
        raise TargetExists(
            f"there already is an {moment.kind} snapshot {name!r}, on {part.disk}: "
            f"{part.overlay or part.file}",
            file=part.overlay or part.file,
            hint="choose another name",
        )


def _chosen(intent: Snapshot, scene: Scene) -> tuple[list[Disk], list[str]]:
    """The disks to take, and the others, each with the reason why it is left out."""
    if not intent.disks:
        chosen = [*scene.graph.writable()]
        if not chosen:
            raise NotFound("there is no writable disk with a medium", hint=NO_DISK_CHANGES)
        return chosen, scene.graph.left_out(chosen)
    chosen = []
    for spelling in intent.disks:
        disk = find_disk(scene.graph, spelling)
        if disk in chosen:
            raise AmbiguousName(
                f"disk {disk.name!r} is named twice", candidates=[disk.name], hint="name it once"
            )
        refuse_twin(disk, chosen)
        chosen.append(disk)
    return chosen, []


def _check(disk: Disk, scene: Scene, *, named: bool) -> None:
    refuse_empty(disk)
    if disk.read_only:
        raise Unsupported(f"disk {disk.name!r} is read-only", feature="snapshot of a read-only disk")
    if disk.active.format != "qcow2":
        able = [other.name for other in scene.graph.disks.values() if _able(other)]
        hint = "take an external snapshot, which works with every kind of disk"
        if able and not named:
            hint = f"name the disks to snapshot ({', '.join(able)}), or {hint}"
        raise Unsupported(
            f"the active layer of {disk.name} ({disk.active.file}) has the format {disk.active.format}, "
            "which cannot hold internal snapshots",
            feature=f"internal snapshots in {disk.active.format}",
            hint=hint,
        )
    refuse_data_file(disk, hint="take an external snapshot, which works with every kind of disk")


def _able(disk: Disk) -> bool:
    return disk.writable and disk.active.format == "qcow2"
