"""What a step does to the graph: the one truth.

The planner predicts with it, the executor verifies by it, the fake target simulates by it. The start of a job
that ends by itself already has the effect of its end; a job that waits at READY has none until it is
completed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import assert_never

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk, Graph, InternalSnapshot, Layer, Node
from qmpsnap.model.step import (
    AddNode,
    DropLayers,
    DropNode,
    Effect,
    Inside,
    Later,
    MoveRoot,
    Overlay,
    PutOverlays,
    Root,
    Step,
)


def apply_all(graph: Graph, steps: Iterable[Step]) -> Graph:
    """The graph after all of the steps."""
    for step in steps:
        graph = apply(graph, step)
    return graph


def overlays(steps: Iterable[Step]) -> Iterator[Overlay]:
    """The overlays that the steps put on disks."""
    for step in steps:
        if isinstance(step.effect, PutOverlays):
            yield from step.effect.overlays


def apply(graph: Graph, step: Step) -> Graph:
    """The graph after one step that succeeded, and, for a job that ends by itself, after its end."""
    return graph if step.effect is None else after_effect(graph, step.effect)


def after_effect(graph: Graph, effect: Effect) -> Graph:
    """The graph after one effect."""
    match effect:
        case PutOverlays():
            return _with_overlays(graph, effect)
        case DropLayers():
            disk = graph.disks[effect.disk]
            first = disk.files.index(effect.above) + 1
            end = len(disk.layers) if effect.base is None else disk.files.index(effect.base)
            return _without(graph, disk, first, end, backing=effect.backing)
        case MoveRoot():
            disk = graph.disks[effect.root.disk]
            moved = _with_layers(graph, disk, _rooted(disk, effect.root), alone=effect.alone)
            return _without_node(moved, disk.active.node) if effect.closes else moved
        case AddNode():
            nodes = {**graph.nodes, effect.node: Node(effect.node, effect.format, effect.file)}
            return replace(graph, nodes=Frozen(nodes))
        case DropNode():
            return _without_node(graph, effect.node)
        case Inside():
            return _inside(graph, effect)
        case Later():
            return graph
        case _:
            assert_never(effect)


def _with_overlays(graph: Graph, effect: PutOverlays) -> Graph:
    for overlay in effect.overlays:
        disk = graph.disks[overlay.disk]
        covered = replace(disk.active, read_only=True)
        active = Layer(
            node=overlay.node,
            file=overlay.file,
            format="qcow2",
            virtual_size=covered.virtual_size,
            backing=overlay.backing,
            backing_format=covered.format,
            io=replace(covered.io, detect_zeroes="off"),  # which QEMU does not hand on
            encrypted=overlay.secret != "",
            secret=overlay.secret,
        )
        graph = _with_layers(graph, disk, (active, covered, *disk.layers[1:]))
    return graph


def _without_node(graph: Graph, gone: str) -> Graph:
    nodes = {name: node for name, node in graph.nodes.items() if name != gone}
    return replace(graph, nodes=Frozen(nodes))


def _rooted(disk: Disk, root: Root) -> tuple[Layer, ...]:
    """The layers that a disk reads by another root; those that it read before are known better."""
    known = {layer.file: layer for layer in disk.layers}
    size = disk.active.virtual_size
    files = ((root.file, root.format), *root.chain)
    layers = []
    for index, (file, form) in enumerate(files):
        below = files[index + 1] if index + 1 < len(files) else None
        layer = known.get(file) or Layer(
            node="",
            file=file,
            format=form,
            virtual_size=size,
            backing=root.backing if index == 0 else below and below[0],
            backing_format=below and below[1],
            read_only=True,
            io=root.io,
            encrypted=index == 0 and root.secret != "",
            secret=root.secret if index == 0 else "",
        )
        layers.append(layer)
    # An old root below a mirror's copy stays writable. A shorter layer grows before a commit fills it.
    size = max(size, layers[0].virtual_size)
    layers[0] = replace(layers[0], node=root.node, read_only=False, virtual_size=size)
    return tuple(layers)


def _inside(graph: Graph, effect: Inside) -> Graph:
    """Snapshots inside active layers are added or deleted; their names are predicted, their ids are not."""
    for name in effect.disks:
        disk = graph.disks[name]
        snapshots = disk.active.snapshots
        if effect.gone:
            kept = tuple(
                snapshot
                for snapshot in snapshots
                if snapshot.name != effect.name or (effect.id and snapshot.id != effect.id)
            )
        else:
            kept = (*snapshots, InternalSnapshot("", effect.name))
        graph = _with_layers(graph, disk, (replace(disk.active, snapshots=kept), *disk.layers[1:]))
    return graph


def _without(graph: Graph, disk: Disk, first: int, end: int, *, backing: str | None) -> Graph:
    """Remove the layers from `first` to just before `end`; the one above is backed by what is left."""
    below = disk.layers[end] if end < len(disk.layers) else None
    above = replace(
        disk.layers[first - 1],
        backing=None if below is None else (backing or below.file),
        backing_format=None if below is None else below.format,
    )
    return _with_layers(graph, disk, (*disk.layers[: first - 1], above, *disk.layers[end:]))


def _with_layers(graph: Graph, disk: Disk, layers: tuple[Layer, ...], *, alone: bool = False) -> Graph:
    root = layers[0].node if disk.root == disk.active.node else disk.root
    disks = dict(graph.disks)
    for name, other in graph.disks.items():
        if name == disk.name or (not alone and root and other.root == disk.root):  # two devices, one node
            disks[name] = replace(other, layers=layers, root=root)
    nodes = dict(graph.nodes)
    for layer in layers:
        if layer.node:  # else QEMU names it
            nodes[layer.node] = Node(layer.node, layer.format, layer.file, layer.read_only)
    return Graph(Frozen(disks), Frozen(nodes))
