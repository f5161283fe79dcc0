"""Layers of a chain: how one is named by a caller and in a header, and which nodes are ours to free."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from qmpsnap.model.find import find_layer
from qmpsnap.model.names import is_owned_node
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.checks.opened import odd
from qmpsnap.plan.commands.block import blockdev_del

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qmpsnap.model.graph import Disk, Layer
    from qmpsnap.plan.scene import Scene
    from qmpsnap.plan.step import Step

__all__ = [
    "delete_owned",
    "layer_index",
    "recorded_like",
]


def layer_index(scene: Scene, disk: Disk, spelling: str) -> int:
    """Index of the layer that somebody means, snapshots' recorded names included."""
    moments = {
        record.name: record.overlays[disk.name]
        for record in scene.files.records
        if isinstance(record, MomentRecord)
        and not record.deleted
        and record.overlays.get(disk.name) in disk.files
    }
    return find_layer(disk, spelling, moments=moments)


def recorded_like(scene: Scene, overlay: Layer, below: Sequence[Layer]) -> str | None:
    """How the overlay's header shall name its new backing file; None: as QEMU does, by the name it has.

    A chain whose headers hold relative names can be moved as a whole; QEMU would write the full path. A
    name that QEMU has from a command line, relative to another directory or a descriptor, leads nowhere
    from the overlay: then it is the path of the file that QEMU has open.

    Args:
        scene: What is.
        overlay: The layer whose header is written.
        below: The layers that it is to stand on, the next one first; none: nothing is recorded.
    """
    if not below or not below[0].local or not overlay.file.startswith("/"):
        return None
    base = below[0]
    recorded = overlay.backing
    if recorded is not None and not recorded.startswith("/") and ":" not in recorded:
        return posixpath.relpath(base.file, posixpath.dirname(overlay.file))
    return base.file if odd(scene.graph, below) else None


def delete_owned(layers: Iterable[Layer]) -> tuple[Step, ...]:
    """The steps that free the nodes among these layers that we added ourselves."""
    return tuple(blockdev_del(layer.node) for layer in layers if is_owned_node(layer.node))
