"""The picture of an operation: each disk's chain before and after, or only after."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Chains, Graph, summary
from qmpsnap.model.names import invalid_names
from qmpsnap.model.picture.boxes import Box, Edge, Kind, Panel, base_name, named, stacked
from qmpsnap.model.picture.picture import Picture


def picture_of_change(
    before: Chains,
    after: Chains,
    *,
    graph_before: Graph,
    graph_after: Graph | None,
    invalid: Collection[str],
    prepared: Mapping[str, str],
) -> Picture:
    """A row for each disk: its chain before and after.

    Args:
        before: Files of each disk's chain, active first.
        after: The same, as predicted; a disk may be missing.
        graph_before: Tells the snapshots inside the images.
        graph_after: The same, as predicted; None where that is not known.
        invalid: Files that hold no moment afterwards, under their names of then.
        prepared: Overlays for another QEMU to start from, by disk.
    """
    rows = []
    for disk, files in before.items():
        then = after.get(disk)
        inside = _inside(graph_before, disk)
        gone = {file: _leaves(file, invalid) for file in files if then is not None and file not in then}
        old = [_box(file, active=file == files[0], gone=gone.get(file, ""), inside=inside) for file in files]
        panels = [Panel(f"{disk} before", *_stack(old))]
        if then is not None:
            within = _inside(graph_after, disk) if graph_after is not None else Frozen()
            new = [
                _box(file, active=file == then[0], new=file not in files, bad=file in invalid, inside=within)
                for file in then
            ]
            boxes, edges = _stack(new)
            if disk in prepared:
                boxes = (_for_another(prepared[disk]), *boxes)
            panels.append(Panel(f"{disk} after", boxes, edges, follows=True))
        rows.append(tuple(panels))
    return Picture(f"before: {summary(before)}; after: {summary(after)}", tuple(rows))


def picture_of_chains(chains: Chains, *, invalid: Collection[str]) -> Picture:
    """The chains side by side.

    Args:
        chains: Files of each disk's chain, active first.
        invalid: Files that no longer hold their moment.
    """
    panels = []
    for disk, files in chains.items():
        boxes = [_box(file, active=file == files[0], bad=file in invalid, inside=Frozen()) for file in files]
        panels.append(Panel(disk, *_stack(boxes)))
    return Picture(summary(chains), (tuple(panels),))


def _stack(boxes: list[Box]) -> tuple[tuple[Box, ...], tuple[Edge, ...]]:
    return tuple(boxes) or (Box("", "(empty)", kind="more"),), stacked(boxes)


def _box(
    file: str,
    *,
    active: bool,
    inside: Mapping[str, tuple[str, ...]],
    gone: str = "",
    new: bool = False,
    bad: bool = False,
) -> Box:
    lines = (
        *((f"{'new ' if new else ''}active layer",) if active else ("new",) if new else ()),
        *((gone,) if gone else ()),
        *(("INVALID: a commit writes into it",) if bad else ()),
        *named("inside", inside.get(file, ())),
    )
    kind: Kind = "bad" if bad else "gone" if gone else "new" if new else "active" if active else "layer"
    return Box(file, base_name(file), lines, kind, full=file)


def _for_another(file: str) -> Box:
    return Box(
        f"prepared {file}", base_name(file), ("new, for another QEMU to start from",), "new", full=file
    )


def _leaves(file: str, invalid: Collection[str]) -> str:
    """What becomes of a file that leaves the chain."""
    if file in invalid or any(name in invalid for name in invalid_names(file)):
        return "leaves the chain, invalid"
    return "leaves the chain"


def _inside(graph: Graph, disk: str) -> Mapping[str, tuple[str, ...]]:
    layers = graph.disks[disk].layers if disk in graph.disks else ()
    return {layer.file: tuple(snapshot.name for snapshot in layer.snapshots) for layer in layers}
