"""All that a planner may know: the graph, the files, the jobs, what this QEMU can do, and its guest."""

from __future__ import annotations

from dataclasses import dataclass, field

from qmpsnap.errors import AmbiguousName, NotFound
from qmpsnap.model.features import Features
from qmpsnap.model.files import Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import Job
from qmpsnap.model.machine import Machine
from qmpsnap.model.moments import Moment, Moments, find_moments
from qmpsnap.model.record import IntentRecord


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
    """

    graph: Graph
    files: Files
    jobs: tuple[Job, ...]
    features: Features
    now: str
    state_dir: str = ""

    @property
    def names(self) -> frozenset[str]:
        """Names that are in use: nodes, jobs and records."""
        records = (record.id for record in self.files.records if isinstance(record, IntentRecord))
        return frozenset((*self.graph.nodes, *(job.id for job in self.jobs), *records))

    @property
    def moments(self) -> Moments:
        """The machine's moments, by its images and their records."""
        return find_moments(self.graph, self.files.records, memories=self.files.memories)

    def moment(self, name: str) -> Moment:
        """The one moment of that name.

        Raises:
            NotFound: When no moment has it.
            AmbiguousName: When two have it.
        """
        moments = self.moments
        named = moments.named(name)
        if not named:
            names = ", ".join(dict.fromkeys(repr(moment.name) for moment in moments.moments))
            there = f"there are: {names}" if names else "there are no snapshots"
            unread = "".join(f"; not read: {reason}" for reason in self.files.bad_records)
            raise NotFound(f"there is no snapshot {name!r}", hint=f"{there}{unread}")
        if len(named) > 1:
            each = [f"{moment.kind} on {', '.join(moment.disks)}" for moment in named]
            raise AmbiguousName(
                f"{name!r} is the name of {len(named)} snapshots: {'; '.join(each)}",
                candidates=each,
                hint="commit or stream the disks of an external one, which removes it",
            )
        return named[0]


@dataclass(frozen=True, slots=True)
class GuestScene(Scene):
    """What is, with the guest: for planners of VM state alone.

    Attributes:
        machine: What the machine is beyond its disks.
    """

    machine: Machine = field(kw_only=True)
