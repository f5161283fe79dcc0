"""Resolves how a user spells a disk or a layer.

A disk is found by its name, qdev id, QOM path, drive id, a node name or a file; a layer by its full
path, else by the last part of the path, its node name or a snapshot's name, else by that last part
without its suffix. Several spellings of the same thing are one match; two things are ambiguous and refused.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from qmpsnap.errors import AmbiguousName, NotFound, NotInChain
from qmpsnap.model.graph import draw
from qmpsnap.model.names import stem
from qmpsnap.model.qdev import spellings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from qmpsnap.model.graph import Disk, Graph, Layer

__all__ = ["find_disk", "find_layer", "refuse_twin", "snapshot_file_name"]


def find_disk(graph: Graph, spelling: str) -> Disk:
    """Find the disk that `spelling` names; it may be an empty drive.

    Raises:
        NotFound: When no disk has that name.
        AmbiguousName: When more than one has.
    """
    if spelling in graph.disks:
        return graph.disks[spelling]
    matches = [disk for disk in graph.disks.values() if spelling and spelling in _spellings(disk)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = [disk.name for disk in matches]
        raise AmbiguousName(
            f"{spelling!r} matches more than one disk: {', '.join(names)}",
            candidates=names,
            hint="use one of the names listed here",
        )
    known = ", ".join(graph.disks) or "none"
    raise NotFound(f"there is no disk {spelling!r}", hint=f"the disks are: {known}")


def _spellings(disk: Disk) -> Iterable[str]:
    yield from (disk.drive, disk.root)
    yield from spellings_of(disk.qdev)
    for node in disk.filters:
        yield node.node
    for layer in disk.layers:
        yield from (layer.node, layer.file, posixpath.basename(layer.file))


def find_layer(disk: Disk, spelling: str, *, moments: Mapping[str, str] | None = None) -> int:
    """Find the layer that `spelling` names; return its index in the disk's chain, active first.

    Args:
        disk: The disk whose chain is searched.
        spelling: Full path, last part of it, node name or snapshot's name.
        moments: Recorded overlay of each named moment on this disk.

    Raises:
        NotInChain: When no layer of the chain has that name.
        AmbiguousName: When more than one has.
    """
    base = disk.base.file
    recorded = (moments or {}).get(spelling)
    ways: tuple[Callable[[Layer], bool], ...] = (
        lambda layer: layer.file == spelling,
        lambda layer: (
            posixpath.basename(layer.file) in {spelling, snapshot_file_name(base, spelling)}
            or layer.node == spelling
            or (recorded is not None and layer.file == recorded)
        ),
        lambda layer: stem(layer.file) == spelling,
    )
    for fits in ways:
        matches = [index for index, layer in enumerate(disk.layers) if fits(layer)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = [disk.layers[index].file for index in matches]
            raise AmbiguousName(
                f"{spelling!r} matches more than one layer of {disk.name}: {', '.join(names)}",
                candidates=names,
                hint="name the layer by its full path",
            )
    raise NotInChain(
        f"there is no layer {spelling!r} in the chain of {disk.name}", hint=f"the chain is {draw(disk.files)}"
    )


def refuse_twin(disk: Disk, chosen: Iterable[Disk]) -> None:
    """Refuse a disk with the same root node as a chosen one: an operation on one would change both.

    Raises:
        AmbiguousName: Naming both.
    """
    for other in chosen:
        if disk.root and disk.root == other.root:
            raise AmbiguousName(
                f"disks {other.name!r} and {disk.name!r} are two devices on the same node ({disk.root})",
                candidates=[other.name, disk.name],
                hint="name only one of them: the other is included",
            )


def snapshot_file_name(base: str, name: str) -> str:
    """Default file name of a snapshot's overlay."""
    return f"{stem(base)}.{name}.qcow2"
