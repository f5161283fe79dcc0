"""Which disks take part in a checkpoint inside images, and by which of the two ways it is worked on.

The one rule: through the human monitor when every writable disk takes part, through the jobs when one is
left out, and under a throttle. What is in the way of the chosen one is named before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qmpsnap.errors import AmbiguousName, Busy, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.graph import PATH_DRIVERS, Disk, Graph
from qmpsnap.model.hints import frees, quoted
from qmpsnap.model.moments import Moment
from qmpsnap.plan.checks.disk import refuse_jobs
from qmpsnap.plan.intent import Via
from qmpsnap.plan.scene import Scene


@dataclass(frozen=True, slots=True)
class Taking:
    """The disks of a checkpoint inside images, and the way that it is taken or loaded.

    Attributes:
        disks: The disks that take part, at least one.
        left: Writable disks that do not.
        via: The human monitor, or jobs.
        named: Names of all disks that are to be left, read-only ones too.
    """

    disks: tuple[Disk, ...]
    left: tuple[Disk, ...]
    via: Via
    named: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the disks that take part."""
        return tuple(disk.name for disk in self.disks)

    @property
    def nodes(self) -> tuple[tuple[str, str], ...]:
        """Name and active layer's node of each disk, UEFI variables last.

        QEMU saves VM state in the first; a filter above has no snapshots.
        """
        ordered = sorted(self.disks, key=_is_flash)
        return tuple((disk.name, disk.active.node) for disk in ordered)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the caller should know."""
        return (f"left out: {', '.join(disk.name for disk in self.left)}",) if self.left else ()


def taking(scene: Scene, *, leave: Sequence[str], via: Via | None) -> Taking:
    """Find the disks that take part, and the way; or refuse.

    Args:
        scene: The machine.
        leave: Disks that take no part, in any spelling.
        via: What the caller forces, or None.

    Raises:
        NotFound, AmbiguousName: When a disk of `leave` is not there, or its name fits two.
        Unsupported: When a disk that takes part is no qcow2 image or has a filter above, when none is left,
            or the human monitor is asked to leave one out.
        Busy: When a job runs, or an unused writable node is in the human monitor's way.
    """
    named = frozenset(find_disk(scene.graph, spelling).name for spelling in leave)
    disks = tuple(disk for disk in scene.graph.writable() if disk.name not in named)
    left = tuple(disk for disk in scene.graph.writable() if disk.name in named)
    for disk in disks:
        _refuse_format(disk)
    if not disks:
        raise Unsupported("there is no writable qcow2 disk to hold it", feature="a checkpoint without disks")
    refuse_jobs(scene.jobs)  # first: a mirror's target is an unused writable node
    filtered = [disk for disk in disks if disk.filters]
    chosen: Via = via or ("jobs" if left or filtered else "hmp")
    if chosen == "jobs":
        _refuse_filters(filtered)
    else:
        scene.features.need("human-monitor-command")
        _refuse_for_hmp(left, filtered, scene.graph)
    return Taking(disks, left, chosen, named)


def _refuse_format(disk: Disk) -> None:
    if disk.active.format != "qcow2":
        way = "give it to QEMU as qcow2 or read-only"
        if _is_flash(disk):
            way = "give QEMU the UEFI variables as a qcow2 image, or read-only"
        raise Unsupported(
            f"{disk.name} ({disk.active.file}) is writable and {disk.active.format}, "
            "which cannot hold checkpoints",
            feature=f"checkpoints inside {disk.active.format}",
            hint=f"{way}, or leave it out: --leave {quoted(disk.name)}",
        )


def _is_flash(disk: Disk) -> bool:
    return "pflash" in disk.name or "flash" in disk.qdev


def _refuse_filters(disks: Iterable[Disk]) -> None:
    """Refuse filters but the throttle, under which the jobs were tried; others may show the disk's past."""
    for disk in disks:
        for above in disk.filters:
            if above.driver != "throttle":
                raise Unsupported(
                    f"{disk.name} has a filter ({above.driver} {above.node!r}) above it",
                    feature=f"checkpoints under {above.driver}",
                    hint=f"remove the filter, or leave the disk out: --leave {quoted(disk.name)}",
                )


def _refuse_for_hmp(left: Sequence[Disk], filtered: Sequence[Disk], graph: Graph) -> None:
    """Refuse the human monitor where it would take another disk, or crash QEMU."""
    if left:
        raise Unsupported(
            f"the human monitor includes every writable disk, also {left[0].name}",
            feature="leaving a disk out through the human monitor",
            hint="use jobs: omit --via, or use --via jobs",
        )
    if filtered:
        above = filtered[0].filters[0]
        raise Unsupported(
            f"{filtered[0].name} has a filter ({above.driver} {above.node!r}) above it: a revert through the "
            "human monitor under a throttle crashes QEMU 10.0 and 11.1",
            feature="checkpoints under a filter through the human monitor",
            hint="use jobs: omit --via, or use --via jobs",
        )
    if name := stray(graph):
        raise Busy(
            f"node {name!r} ({graph.nodes[name].file}) is writable and unused: QEMU would include it",
            node=name,
            job_id="",
            hint=f"remove it first ({frees(name)}), or use jobs: --via jobs",
        )


def stray(graph: Graph) -> str:
    """The first unused writable node, which the human monitor would include; or ""."""
    used = {layer.node for disk in graph.disks.values() for layer in disk.layers}
    images = [node for node in graph.nodes.values() if not node.is_filter and node.driver not in PATH_DRIVERS]
    below = {image.backing for image in images if image.backing}
    parts = {file for disk in graph.disks.values() for layer in disk.layers for file in layer.parts}
    behind = {image.file for image in images} | parts
    for node in graph.nodes.values():
        if node.is_filter or node.read_only or node.name in used:
            continue
        if node.file not in (behind if node.driver in PATH_DRIVERS else below):
            return node.name
    return ""


def refuse_double(moment: Moment) -> None:
    """Refuse a name that two snapshots inside one image have."""
    places = [(part.disk, part.file) for part in moment.held]
    for part in moment.held:
        if places.count((part.disk, part.file)) > 1:
            raise AmbiguousName(
                f"{part.file} has more than one internal snapshot {moment.name!r}",
                candidates=[f"id {other.id}" for other in moment.held if other.file == part.file],
                hint="two of one name come from qemu-img; shut the machine off and delete them with it",
            )
