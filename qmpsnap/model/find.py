"""Which disk, and which layer, somebody means.

A disk is found by its name, qdev id, QOM path, drive id, a node name or a file; a layer by its full
path, else by the last part of the path, its node name or a snapshot's name, else by that last part
without its suffix. Several spellings of one thing are one match; two things are a refusal.
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
    """The one disk that `spelling` means, an empty drive as well.

    Raises:
        NotFound: When no disk is called so.
        AmbiguousName: When two are.
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
    """Index in the disk's chain, active first, of the one layer that `spelling` means.

    Args:
        disk: The disk in whose chain the layer is looked for.
        spelling: Full path, last part of it, node name or snapshot's name.
        moments: Overlay that began at each named moment on this disk, where that is recorded.

    Raises:
        NotInChain: When no layer of the chain is called so.
        AmbiguousName: When two are.
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
    """Refuse a disk that reads the same node as one that is chosen: what is done to the one moves both.

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
    """Last part of the path that a snapshot's overlay gets when nobody says where."""
    return f"{stem(base)}.{name}.qcow2"
