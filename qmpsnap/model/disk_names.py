"""Names of disks and layers: what a disk is called, and how a user may spell it or a layer.

query-block gives a device either by its id alone or by its path in QEMU's object model (QOM). A name has
to be stable for QEMU's lifetime, which the root node's is not: every snapshot puts another node on top.
QEMU numbers devices without an id and never uses a number twice (hw/core/qdev.c, `anon_count`).

A disk is found by its name, qdev id, QOM path, drive id, a node name or a file; a layer by its full
path, else by the last part of the path, its node name or a snapshot's name, else by that last part
without its suffix. Several spellings of the same thing are one match; two things are ambiguous and refused.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from qmpsnap.errors import AmbiguousName, Malformed, NotFound, NotInChain
from qmpsnap.model.graph import Disk, Graph, Layer, draw
from qmpsnap.model.names import stem


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


_MACHINE = "/machine/"
_PERIPHERAL = "/machine/peripheral/"
_ANONYMOUS = "/machine/peripheral-anon/"


def disk_names(disks: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """The name of each disk: qdev id, else drive id, else the part of the QOM path that distinguishes it.

    A disk's stronger claim to a name beats a weaker one, whatever QEMU's order. The root
    node is the name if there is neither device nor drive.

    Args:
        disks: For each disk its qdev as in query-block, its drive id and its root node; each may be "".

    Raises:
        Malformed: When two disks cannot be distinguished.
    """
    claims = [_claims(*disk) for disk in disks]
    names: dict[int, str] = {}
    taken: set[str] = set()
    for rank in range(max(map(len, claims), default=0)):
        for index, claimed in enumerate(claims):
            if index in names or rank >= len(claimed) or not claimed[rank] or claimed[rank] in taken:
                continue
            names[index] = claimed[rank]
            taken.add(claimed[rank])
    for index, claimed in enumerate(claims):
        if index not in names:
            raise Malformed(f"QEMU lists two disks that cannot be told apart: {[*filter(None, claimed)]!r}")
    return tuple(names[index] for index in range(len(disks)))


def _claims(qdev: str, drive: str, root: str) -> tuple[str, ...]:
    """Possible names of a disk, the best first; "" for a missing one."""
    return (
        _user_id(qdev),
        drive,
        _anonymous(qdev),
        qdev.removeprefix(_MACHINE),
        qdev,
        drive and f"drive/{drive}",  # of a -drive without a device, whose id is another device's
        "" if qdev or drive else root,
    )


def _user_id(qdev: str) -> str:
    if not qdev.startswith("/"):
        return qdev
    return qdev.removeprefix(_PERIPHERAL).partition("/")[0] if qdev.startswith(_PERIPHERAL) else ""


def _anonymous(qdev: str) -> str:
    """The number that QEMU gave a device without an id: `device[0]`."""
    return qdev.removeprefix(_ANONYMOUS).partition("/")[0] if qdev.startswith(_ANONYMOUS) else ""


def spellings_of(qdev: str) -> Iterator[str]:
    """Every spelling of the device: its id or number, and its QOM path, whole or up to the device."""
    if not qdev:
        return
    yield qdev
    if not qdev.startswith("/"):
        yield from (_PERIPHERAL + qdev, f"peripheral/{qdev}")
        return
    yield qdev.removeprefix(_MACHINE)
    for prefix in (_PERIPHERAL, _ANONYMOUS):
        if qdev.startswith(prefix):
            parts = qdev.removeprefix(prefix).split("/")
            yield parts[0]
            for count in range(1, len(parts)):
                path = prefix + "/".join(parts[:count])
                yield from (path, path.removeprefix(_MACHINE))
