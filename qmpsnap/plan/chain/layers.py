"""Layers of a chain: their names, which nodes are ours to free, and which sizes can be merged.

A layer that is shorter than those above it reads as zeroes beyond its end, whatever lies beneath. QEMU
forgets this when it merges: where nothing was written it copies nothing, and the bytes of the base beyond
that end are read again. An active commit leaves the guest with the base's size if that is the larger
one. Seen on all QEMUs (docs/explanation/qemu.md).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from qmpsnap.errors import Unsupported
from qmpsnap.model.disk_names import find_layer
from qmpsnap.model.graph import Disk, Layer
from qmpsnap.model.hints import command
from qmpsnap.model.names import is_owned_node
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.step import Step
from qmpsnap.plan.checks.opened import odd
from qmpsnap.plan.commands.block import blockdev_del, flush, flush_by_reopen
from qmpsnap.plan.scene import Scene


def layer_index(scene: Scene, disk: Disk, spelling: str) -> int:
    """Index of the layer that is meant by a spelling; a snapshot's recorded name is one, too."""
    moments = {
        record.name: record.overlays[disk.name]
        for record in scene.files.records
        if isinstance(record, MomentRecord)
        and not record.deleted
        and disk.name not in record.deleted_from
        and record.overlays.get(disk.name) in disk.files
    }
    return find_layer(disk, spelling, moments=moments)


def recorded_like(scene: Scene, overlay: Layer, below: Sequence[Layer]) -> str | None:
    """The name of the new backing file that goes into the overlay's header; None: the one that QEMU uses.

    A chain whose headers have relative names can be moved as a whole; QEMU would write the full path. A name
    that QEMU got from a command line, relative to another directory or a descriptor, leads nowhere from the
    overlay, and its name of an encrypted layer contains the secret's id: then it is the path of the file that
    QEMU has open.

    Args:
        scene: The machine, and its files.
        overlay: The layer whose header is written.
        below: The layers that it is to be backed by, the next one first; none: nothing is recorded.
    """
    if not below or not below[0].local or not overlay.file.startswith("/"):
        return None
    base = below[0]
    recorded = overlay.backing
    if recorded is not None and not recorded.startswith("/") and ":" not in recorded:
        return posixpath.relpath(base.file, posixpath.dirname(overlay.file))
    return base.file if base.encrypted or odd(scene.graph, below) else None


def unused_nodes(files: Iterable[str], scene: Scene) -> tuple[str, ...]:
    """Names of nodes that we added on these files, and that no disk uses."""
    used = {layer.node for disk in scene.graph.disks.values() for layer in disk.layers}
    wanted = set(files)
    return tuple(
        node.name
        for node in scene.graph.nodes.values()
        if node.file in wanted and is_owned_node(node.name) and node.name not in used
    )


def flush_layer(scene: Scene, layer: Layer, below: Layer | None, *, filled: bool = False) -> Step:
    """What puts on the disk what a layer has in QEMU's caches, in the way that this QEMU has for it.

    Args:
        scene: The machine, and its files.
        layer: The layer.
        below: The layer that it is backed by at that time, or None.
        filled: Whether a job writes into it at that time.

    Raises:
        Unsupported: When there is no way.
    """
    if scene.features.human_monitor:
        return flush(layer.node)
    scene.features.need("blockdev-reopen")
    if not layer.file_node:
        raise Unsupported(
            f"{layer.file} cannot be flushed: there is no human monitor, and its file has no node of a known "
            "name",
            feature="flush of a layer",
        )
    return flush_by_reopen(layer, below, read_only=layer.read_only and not filled)


def delete_owned(layers: Iterable[Layer]) -> tuple[Step, ...]:
    """The steps that free those layers' nodes that we added."""
    return tuple(blockdev_del(layer.node) for layer in layers if is_owned_node(layer.node))


_FEATURE = "merging layers of different sizes"


def refuse_stream_of_shorter(disk: Disk, *, into: int, base: int) -> None:
    """Refuse a stream after which data beyond the end of a shorter layer would be read again.

    Args:
        disk: The disk.
        into: Index of the layer that receives the data.
        base: Index of the layer that stays below; the number of layers: none stays.
    """
    if base >= len(disk.layers):
        return
    seen = min(disk.layers[base].virtual_size, disk.layers[into].virtual_size)
    for layer in disk.layers[into + 1 : base]:
        if layer.virtual_size < seen:
            kept = disk.layers[base]
            raise Unsupported(
                f"{layer.file} has {layer.virtual_size} bytes, {kept.file} below it has "
                f"{kept.virtual_size}: data beyond the end of the shorter one would become visible again",
                feature=_FEATURE,
                hint=f"stream without a base: {command('stream', disk.name)}"
                if into == 0
                else "stream into it without a base",
            )


def refuse_commit_of_shorter(disk: Disk, *, top: int, base: int) -> None:
    """Refuse a commit after which the guest, or a snapshot, would read other bytes or another size.

    Args:
        disk: The disk.
        top: Index of the newest layer that is folded; 0: the active layer.
        base: Index of the layer that receives the data.
    """
    receiver = disk.layers[base]
    # An active commit copies zeroes as well; only the guest's size is at stake then.
    for layer in disk.layers[top : top + 1 if top == 0 else base]:
        if layer.virtual_size < receiver.virtual_size:
            raise Unsupported(
                f"{layer.file} has {layer.virtual_size} bytes, {receiver.file} below it has "
                f"{receiver.virtual_size}: "
                + (
                    f"{disk.name} would grow to that"
                    if top == 0
                    else "data beyond the end of the shorter one would become visible again"
                ),
                feature=_FEATURE,
                hint=f"stream instead, which keeps all data: {command('stream', disk.name)}",
            )
