"""Steps on snapshots inside images. Part of the vocabulary in steps.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qmpsnap.plan.job_steps import QmpStep

__all__ = ["DeleteInternal", "InternalStep", "TakeInternal"]

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class TakeInternal(QmpStep):
    """Take an internal snapshot on each disk, at one instant.

    QEMU wants a root's name: given a node under a throttle it answers "Need a root block node", given
    the throttle it takes the snapshot in the image below.

    Attributes:
        name: What the snapshot is called, on each disk.
        roots: Of each disk its name and its root's node-name.

    QAPI: transaction, blockdev-snapshot-internal-sync (transaction.json, block-core.json).
    """

    name: str
    roots: tuple[tuple[str, str], ...]
    command: ClassVar[str] = "transaction"

    @property
    def parts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each disk, with the names that an error of QEMU's may call it by."""
        return tuple((disk, (root,)) for disk, root in self.roots)

    @property
    def arguments(self) -> Arguments:
        """One action a disk."""
        return {
            "actions": [
                {"type": "blockdev-snapshot-internal-sync", "data": {"device": root, "name": self.name}}
                for _, root in self.roots
            ]
        }


@dataclass(frozen=True, slots=True)
class DeleteInternal(QmpStep):
    """Delete one internal snapshot of a disk's active layer.

    There is no such action in a transaction. Id and name have to agree, so that of two snapshots with
    one name the right one goes. QAPI: blockdev-snapshot-delete-internal-sync (block-core.json).

    Attributes:
        disk: The disk's name.
        root: node-name of its root.
        id: The snapshot's id, as the image has it.
        name: The snapshot's name.
    """

    disk: str
    root: str
    id: str
    name: str
    command: ClassVar[str] = "blockdev-snapshot-delete-internal-sync"

    @property
    def arguments(self) -> Arguments:
        """The root, and which of the snapshots."""
        return {"device": self.root, "id": self.id, "name": self.name}


InternalStep = TakeInternal | DeleteInternal
