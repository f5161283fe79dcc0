"""Steps on VM state by jobs, on a chosen set of nodes. Part of the vocabulary in steps.py.

The commands always succeed; what became of them only query-jobs tells, once the job has concluded.
Such a job never dismisses itself, and holds QEMU's main loop while it works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qmpsnap.plan.job_steps import QmpStep

__all__ = ["DeleteState", "LoadState", "SaveState", "StateJobStep"]

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class _StateJob(QmpStep):
    """A job on internal snapshots of some nodes.

    Attributes:
        job_id: The job's id.
        name: The snapshot's name; QEMU calls it a tag.
        nodes: Of each disk its name and the node-name of its active layer; ("", node) for a store.
    """

    job_id: str
    name: str
    nodes: tuple[tuple[str, str], ...]

    @property
    def disks(self) -> tuple[str, ...]:
        """Names of the disks that take part."""
        return tuple(disk for disk, _ in self.nodes if disk)

    @property
    def devices(self) -> list[str]:
        """The nodes' names."""
        return [node for _, node in self.nodes]


@dataclass(frozen=True, slots=True)
class SaveState(_StateJob):
    """Keep VM state in the first node, and a snapshot in each. QAPI: snapshot-save (migration.json).

    An equal name is an error, other than with savevm.
    """

    command: ClassVar[str] = "snapshot-save"

    @property
    def arguments(self) -> Arguments:
        """The job, the tag, and the nodes."""
        return {
            "job-id": self.job_id,
            "tag": self.name,
            "vmstate": self.nodes[0][1],
            "devices": self.devices,
        }


@dataclass(frozen=True, slots=True)
class LoadState(_StateJob):
    """Go back to VM state in the first node, and to the snapshot in each. QAPI: snapshot-load.

    A load that fails leaves a guest that ran standing, be it before anything moved or half-way.

    Attributes:
        vmstate: node-name of the node that keeps the VM state.
        running: Whether the guest is let run on when nothing has moved: it ran, and QEMU stopped it.
    """

    vmstate: str
    running: bool = False
    command: ClassVar[str] = "snapshot-load"

    @property
    def arguments(self) -> Arguments:
        """The job, the tag, and the nodes."""
        return {"job-id": self.job_id, "tag": self.name, "vmstate": self.vmstate, "devices": self.devices}


@dataclass(frozen=True, slots=True)
class DeleteState(_StateJob):
    """Delete the snapshot from each node; silent about a missing one. QAPI: snapshot-delete."""

    command: ClassVar[str] = "snapshot-delete"

    @property
    def arguments(self) -> Arguments:
        """The job, the tag, and the nodes."""
        return {"job-id": self.job_id, "tag": self.name, "devices": self.devices}


StateJobStep = SaveState | LoadState | DeleteState
