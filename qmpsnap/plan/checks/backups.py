"""Keeps others away from what a running backup reads, and from the overlay that it is to merge back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from qmpsnap.errors import Busy
from qmpsnap.model.backup import overlay_moment
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.step import Inside
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene


def ask_backups(graph: Graph) -> Ask:
    """What `refuse_backed_up` has to know: whether clients are at work whose overlays are in the chains."""
    return Ask(
        readers=tuple(
            (covered, moment) for disk in graph.disks.values() for moment, _, covered in _overlays(disk)
        )
    )


def running_backups(graph: Graph, files: Files) -> dict[str, dict[str, str]]:
    """The layer of each disk that a running backup copies, by the names of its snapshot and of the disk.

    Args:
        graph: The machine's disks.
        files: The answer to `ask_backups`.
    """
    running: dict[str, dict[str, str]] = {}
    for disk in graph.disks.values():
        for moment, _, covered in _running(files, disk):
            running.setdefault(moment, {})[disk.name] = covered
    return running


def refuse_read(scene: Scene, file: str) -> None:
    """Refuse to write into a layer, or to remove it, that is being read, if a running backup reads it.

    Raises:
        Busy: Naming the backup.
    """
    for disk in scene.graph.disks.values():
        for moment, _, covered in _running(scene.files, disk):
            if file in disk.files[disk.files.index(covered) :]:
                raise _busy(moment, disk.name)


def refuse_backed_up(planned: Plan, scene: Scene) -> None:
    """Refuse a plan that changes the part of a chain that a running backup needs, its own merge excepted.

    What comes above the overlay is no obstacle. A snapshot inside the overlay would be lost by the merge.

    Raises:
        Busy: Naming the backup.
    """
    for part in planned.parts:
        for name in part.disks:
            disk = scene.graph.disks[name]
            after = part.chains_after.get(name, ())
            for moment, overlay, covered in _running(scene.files, disk):
                kept = disk.files[disk.files.index(overlay) :]
                merged = part.op == "commit" and part.folded == (overlay,) and covered in after
                if not merged and (after[-len(kept) :] != kept or _snapshot_inside(part, disk, overlay)):
                    raise _busy(moment, name)


def _snapshot_inside(plan: Plan, disk: Disk, overlay: str) -> bool:
    inside = (step.effect for step in plan.steps if isinstance(step.effect, Inside))
    return disk.active.file == overlay and any(
        disk.name in effect.disks and not effect.gone for effect in inside
    )


def _overlays(disk: Disk) -> Iterator[tuple[str, str, str]]:
    """The snapshot of each backup of the disk, its overlay, and the layer beneath that."""
    for overlay, covered in pairwise(disk.files):
        if moment := overlay_moment(overlay):
            yield moment, overlay, covered


def _running(files: Files, disk: Disk) -> Iterator[tuple[str, str, str]]:
    """Those of them whose client is at work."""
    return (found for found in _overlays(disk) if (found[2], found[0]) in files.readers)


def _busy(moment: str, disk: str) -> Busy:
    return Busy(
        f"a backup of {disk} is running ({moment})",
        node="",
        job_id="",
        hint="wait until it ends; Ctrl-C or SIGTERM stops it",
    )
