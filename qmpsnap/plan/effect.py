"""What a step does to the graph: the one truth.

The planner predicts with it, the executor verifies by it, the fake target simulates by it. A job's
start already shows the graph as of its end when it ends by itself; a job that waits at READY
changes nothing until it is completed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph, InternalSnapshot, Layer, Node
from qmpsnap.plan.steps import (
    AddNode,
    AdoptJob,
    AwaitJob,
    CancelJob,
    CheckRoots,
    CompleteJob,
    CreateOverlay,
    CreatePlaceholder,
    DeleteInternal,
    DeleteNode,
    DeleteState,
    DelVm,
    DismissJob,
    EndCopy,
    FinalizeJob,
    FinishRecord,
    FlushNode,
    GuestStep,
    KeepMoment,
    LoadState,
    LoadVm,
    MemoryStep,
    MigrationStep,
    ProbeAbsent,
    RemoveMade,
    RemoveOrphan,
    ReopenFilter,
    RetireFile,
    SaveState,
    SaveVm,
    SetDrive,
    StartCommit,
    StartMirror,
    StartStream,
    TakeInternal,
    TakeSnapshots,
    WriteRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qmpsnap.model.graph import Disk
    from qmpsnap.plan.steps import NewRoot, Step

__all__ = ["apply", "apply_all"]


def apply_all(graph: Graph, steps: Iterable[Step]) -> Graph:
    """The graph after all of the steps."""
    for step in steps:
        graph = apply(graph, step)
    return graph


def apply(graph: Graph, step: Step) -> Graph:
    """The graph after one step that succeeded, and, for a job that ends by itself, after its end."""
    if isinstance(step, GuestStep | MigrationStep | MemoryStep):
        return graph
    match step:
        case TakeSnapshots():
            for one in step.overlays:
                disk = graph.disks[one.disk]
                covered = replace(disk.active, read_only=True)
                overlay = Layer(
                    node=one.node,
                    file=one.file,
                    format="qcow2",
                    virtual_size=covered.virtual_size,
                    backing=one.backing,
                    backing_format=covered.format,
                    io=replace(covered.io, detect_zeroes="off"),  # which QEMU does not hand on
                )
                graph = _with_layers(graph, disk, (overlay, covered, *disk.layers[1:]))
            return graph
        case TakeInternal() | DeleteInternal() | SaveVm() | DelVm() | SaveState() | DeleteState():
            return _inside(graph, step)
        case SetDrive() | ReopenFilter():
            disk = graph.disks[step.root.disk]
            moved = _with_layers(graph, disk, _rooted(graph, step.root), alone=isinstance(step, SetDrive))
            return _without_node(moved, disk.active.node) if step.closes else moved
        case AddNode():
            nodes = {**graph.nodes, step.node: Node(step.node, step.format, step.file)}
            return replace(graph, nodes=Frozen(nodes))
        case StartStream():
            disk = graph.disks[step.disk]
            files = disk.files
            into = files.index(step.file)
            base = len(files) if step.base_file is None else files.index(step.base_file)
            return _without(graph, disk, into + 1, base, backing=step.backing)
        case StartCommit() if not step.active:
            disk = graph.disks[step.disk]
            files = disk.files
            top, base = files.index(step.top_file), files.index(step.base_file)
            return _without(graph, disk, top, base, backing=step.backing)
        case CompleteJob(start=StartCommit() as start):
            disk = graph.disks[start.disk]
            base = disk.files.index(start.base_file)
            layers = (replace(disk.layers[base], read_only=False), *disk.layers[base + 1 :])
            return _with_layers(graph, disk, layers)
        case CompleteJob(start=StartMirror() as start):
            disk = graph.disks[start.disk]
            return _with_layers(graph, disk, _mirrored(disk, start))
        case DeleteNode():
            return _without_node(graph, step.node)
        case (
            StartCommit()
            | StartMirror()
            | CompleteJob()
            | EndCopy()
            | FlushNode()
            | FinalizeJob()
            | CancelJob()
            | DismissJob()
            | AwaitJob()
            | AdoptJob()
            | ProbeAbsent()
            | LoadVm()
            | LoadState()
            | CheckRoots()
            | WriteRecord()
            | FinishRecord()
            | KeepMoment()
            | CreateOverlay()
            | CreatePlaceholder()
            | RetireFile()
            | RemoveMade()
            | RemoveOrphan()
        ):
            return graph
        case _:
            assert_never(step)


def _without_node(graph: Graph, gone: str) -> Graph:
    nodes = {name: node for name, node in graph.nodes.items() if name != gone}
    return replace(graph, nodes=Frozen(nodes))


def _rooted(graph: Graph, root: NewRoot) -> tuple[Layer, ...]:
    """The layers that a disk reads by another root; those that it read before are known better."""
    disk = graph.disks[root.disk]
    known = {layer.file: layer for layer in disk.layers}
    size = disk.active.virtual_size
    files = ((root.file, root.format), *root.chain)
    layers = []
    for index, (file, form) in enumerate(files):
        below = files[index + 1] if index + 1 < len(files) else None
        layer = known.get(file) or Layer(
            node=root.node if index == 0 else "",
            file=file,
            format=form,
            virtual_size=size,
            backing=root.backing if index == 0 else below and below[0],
            backing_format=below and below[1],
            io=root.io,
        )
        layers.append(replace(layer, node=root.node if index == 0 else layer.node, read_only=index > 0))
    return tuple(layers)


def _inside(
    graph: Graph, step: TakeInternal | DeleteInternal | SaveVm | DelVm | SaveState | DeleteState
) -> Graph:
    """Snapshots inside active layers come and go; what QEMU calls them is not predicted, but their names."""
    match step:
        case TakeInternal() | SaveVm() | SaveState():
            names = tuple(name for name, _ in step.roots) if isinstance(step, TakeInternal) else step.disks
            for name in names:
                disk = graph.disks[name]
                snapshots = (*disk.active.snapshots, InternalSnapshot("", step.name))
                graph = _with_snapshots(graph, disk, snapshots)
        case DeleteInternal():
            disk = graph.disks[step.disk]
            kept = (one for one in disk.active.snapshots if (one.id, one.name) != (step.id, step.name))
            graph = _with_snapshots(graph, disk, tuple(kept))
        case DelVm() | DeleteState():
            for name in step.disks:
                disk = graph.disks[name]
                left = tuple(one for one in disk.active.snapshots if one.name != step.name)
                graph = _with_snapshots(graph, disk, left)
    return graph


def _with_snapshots(graph: Graph, disk: Disk, snapshots: tuple[InternalSnapshot, ...]) -> Graph:
    return _with_layers(graph, disk, (replace(disk.active, snapshots=snapshots), *disk.layers[1:]))


def _mirrored(disk: Disk, start: StartMirror) -> tuple[Layer, ...]:
    kept = {"full": (), "top": disk.layers[1:], "none": disk.layers}[start.sync]
    copy = Layer(
        node=start.node,
        file=start.target,
        format=start.format,
        virtual_size=disk.active.virtual_size,
        backing=kept[0].file if kept else None,
        backing_format=kept[0].format if kept else None,
    )
    return (copy, *kept)


def _without(graph: Graph, disk: Disk, first: int, end: int, *, backing: str | None) -> Graph:
    """Take the layers from `first` to just before `end` out; the one above stands on what is left."""
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
