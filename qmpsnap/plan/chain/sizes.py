"""Layers of different sizes: what cannot be merged without showing old bytes, or another disk.

A layer that is shorter than those above it reads as zeroes beyond its end, whatever lies beneath. QEMU
forgets this when it merges: where nothing was written it copies nothing, and the bytes of the base beyond
that end are read again. An active commit leaves the guest with the base's size if that is the larger
one. Seen on all QEMUs (docs/explanation/qemu.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import Unsupported
from qmpsnap.model.hints import command

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk

__all__ = ["refuse_commit_of_shorter", "refuse_stream_of_shorter"]

_FEATURE = "merging layers of different sizes"


def refuse_stream_of_shorter(disk: Disk, *, into: int, base: int) -> None:
    """Refuse a stream after which the receiver would read what lies beyond the end of a layer that goes.

    Args:
        disk: The disk.
        into: Index of the layer that receives the data.
        base: Index of the layer that stays below; the number of layers: none stays.

    Raises:
        Unsupported: Naming the layer that is too short.
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
    """Refuse a commit after which the guest, or a moment, would read other bytes or another size.

    Args:
        disk: The disk.
        top: Index of the newest layer that is folded; 0: the active layer.
        base: Index of the layer that receives the data.

    Raises:
        Unsupported: Naming the layer that is too short.
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
