"""What a revert may give up: layers that began at a moment of ours, and that nobody else needs."""

from __future__ import annotations

import posixpath

from qmpsnap.errors import StillNeeded, WouldLose
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.moments import related_records
from qmpsnap.plan.checks.disk import refuse_loss
from qmpsnap.plan.checks.place import other_disks, refuse_unsearched
from qmpsnap.plan.scene import Scene

_KEEP = "omit --discard to keep it"


def ask(disks: list[Disk], graph: Graph) -> Ask:
    """What the planner wants to know: who is backed by what is given up.

    An export's image may lie in a directory that nobody thinks of; QEMU has it open all the same.
    """
    nodes = graph.nodes.values()
    above = tuple(node.file for node in nodes if node.backing and node.file.startswith("/"))
    return Ask(files=above, survey=_places(disks))


def refuse_discard(disks: list[Disk], scene: Scene) -> None:
    """Refuse when a layer that the disks write to is not ours to remove, or somebody needs it.

    It may belong to no snapshot of ours, hold internal snapshots or bitmaps, or be read by another disk or
    image; or this is not known.
    """
    ours = related_records(scene.graph, scene.files.records)
    for disk in disks:
        layer = disk.active
        if layer.file not in {file for record in ours for file in record.began(disk.name)}:
            raise WouldLose(
                f"{layer.file}, to which {disk.name} writes, is not the overlay of a snapshot",
                what=[layer.file],
                hint=_KEEP,
            )
        if len(disk.layers) == 1:
            raise WouldLose(
                f"{layer.file}, to which {disk.name} writes, is no overlay any more: it is backed by nothing",
                what=[layer.file],
                hint=_KEEP,
            )
        refuse_loss((layer,), allowed=False, hint=f"{_KEEP}; or delete that first")
        by = [*other_disks(scene, disk, layer), *scene.files.backed_by(layer.file)]
        if by:
            raise StillNeeded(
                f"{layer.file} is still needed: it is the backing file of {', '.join(by)}", by=by, hint=_KEEP
            )
    refuse_unsearched(scene, _places(disks), "what would be removed", hint=f"; {_KEEP}")


def _places(disks: list[Disk]) -> tuple[str, ...]:
    """Directories whose images may be backed by the layers."""
    files = (layer.file for disk in disks for layer in disk.layers if layer.file.startswith("/"))
    return tuple(dict.fromkeys(map(posixpath.dirname, files)))
