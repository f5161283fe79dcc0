"""Disks that an operation must leave alone: without a medium, read-only, or holding what would be lost."""

from __future__ import annotations

from collections.abc import Iterable

from qmpsnap.errors import Unsupported, WouldLose
from qmpsnap.model.graph import Disk, Layer

_HINT = "attach it read-write, or shut the machine off and work on its images"


def refuse_empty(disk: Disk) -> Disk:
    """Return the disk when it has a medium.

    Raises:
        Unsupported: When the drive is empty.
    """
    if not disk.layers:
        raise Unsupported(f"disk {disk.name!r} has no medium", feature="a chain in an empty drive")
    return disk


def refuse_read_only(disk: Disk, what: str, *, hint: str = _HINT) -> None:
    """Refuse to change the files of a disk that was attached read-only, which others may read as well.

    Args:
        disk: The disk.
        what: The operation, as a noun.
        hint: What can be done instead.

    Raises:
        Unsupported: When it is read-only.
    """
    if disk.layers and disk.read_only:
        raise Unsupported(
            f"disk {disk.name!r} is read-only",
            feature=f"{what} of a read-only disk",
            hint=hint,
        )


def refuse_loss(
    layers: Iterable[Layer], *, allowed: bool, hint: str = "discard it with --discard-internal"
) -> None:
    """Refuse when a layer that leaves the chain holds what only it can hold.

    Raises:
        WouldLose: Naming internal snapshots and persistent bitmaps.
    """
    what = []
    for layer in layers:
        what += [f"internal snapshot {one.name!r} of {layer.file}" for one in layer.snapshots]
        what += [f"persistent bitmap {one.name!r} of {layer.file}" for one in layer.bitmaps if one.persistent]
    if what and not allowed:
        raise WouldLose(f"this would be lost: {'; '.join(what)}", what=what, hint=hint)
