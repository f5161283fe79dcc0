"""Goes back to a snapshot inside an image that no machine uses. QAPI: block-core.json, transaction.json.

No command of a storage daemon does that, so the image is closed, qemu-img does it, and the image is opened
again. What the image held until then is kept in a snapshot of its own meanwhile.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk
from qmpsnap.model.step import Inside, Step
from qmpsnap.plan.commands.block import blockdev_del, internal_snapshot


def keep_inside(name: str, roots: tuple[tuple[str, str], ...]) -> Step:
    """Keep what each disk holds in an internal snapshot, from which it can be taken back.

    Args:
        name: The snapshot's name, on each disk.
        roots: Each disk's name and its root's node-name.

    QAPI: transaction, blockdev-snapshot-internal-sync.
    """
    taken = tuple(drop_inside(name, disk, root) for disk, root in roots)
    return replace(internal_snapshot(name, roots), final=False, writes=False, drains=False, undo=taken)


def drop_inside(name: str, disk: str, root: str) -> Step:
    """Delete that snapshot from one disk. QAPI: blockdev-snapshot-delete-internal-sync."""
    return Step(
        on="qmp",
        command="blockdev-snapshot-delete-internal-sync",
        arguments=Frozen({"device": root, "name": name}),
        effect=Inside((disk,), name, gone=True),
    )


def revert_inside(disk: Disk, name: str, kept: str) -> tuple[Step, ...]:
    """Close a disk's active layer, go back to a snapshot inside it, and open it as before.

    Args:
        disk: The disk, whose lower layers stay open.
        name: The snapshot.
        kept: The snapshot that keeps what the disk holds, to which an undo goes back.
    """
    layer = disk.active
    opened = _open_active(disk)
    return (
        replace(blockdev_del(layer.node), undo=(opened,), effect=None),
        replace(_apply(layer.file, name), undo=(_apply(layer.file, kept),)),
        replace(opened, undo=(replace(blockdev_del(layer.node), effect=None),)),
    )


def _apply(file: str, name: str) -> Step:
    """Go back to the snapshot: `qemu-img snapshot -a`; no graph shows it."""
    return Step(
        on="host", command="apply-snapshot", arguments=Frozen({"file": file, "name": name}), unseen=True
    )


def _open_active(disk: Disk) -> Step:
    layer = disk.active
    file: dict[str, Any] = {"driver": "file", "filename": layer.file, "auto-read-only": True}
    if layer.file_node and not layer.file_node.startswith("#"):  # QEMU's own names cannot be given
        file["node-name"] = layer.file_node
    return Step(
        on="qmp",
        command="blockdev-add",
        arguments=Frozen(
            {
                "driver": layer.format,
                "node-name": layer.node,
                "read-only": False,
                "file": file,
                "backing": disk.layers[1].node if len(disk.layers) > 1 else None,
            }
        ),
    )
