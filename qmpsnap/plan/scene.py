"""All that a planner may know: the graph, the files, the jobs and what this QEMU can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmpsnap.model.record import IntentRecord

if TYPE_CHECKING:
    from qmpsnap.model.features import Features
    from qmpsnap.model.files import Files
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.job import Job
    from qmpsnap.model.machine import Machine, Status

__all__ = ["Scene"]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is, at the moment of planning.

    Attributes:
        graph: QEMU's block graph.
        files: What the planner asked about the file system.
        jobs: Every job that QEMU has, of any client.
        features: What this QEMU can do.
        now: Time of planning, UTC, ISO 8601, for records.
        state_dir: Where records go when the caller says so, else "".
        machine: What the machine is beyond its disks; None where the plan does not depend on it.
        standing: Whether it runs or migrates; None where `machine` says it, or nothing depends on it.
    """

    graph: Graph
    files: Files
    jobs: tuple[Job, ...]
    features: Features
    now: str
    state_dir: str = ""
    machine: Machine | None = None
    standing: Status | None = None

    @property
    def names(self) -> frozenset[str]:
        """Names that are in use: nodes, jobs and records."""
        records = (record.id for record in self.files.records if isinstance(record, IntentRecord))
        return frozenset((*self.graph.nodes, *(job.id for job in self.jobs), *records))
