"""The picture of a running machine: its disks, and what its jobs do to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from qmpsnap.model.graph import Disk, Graph, summary
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.job_place import JobPlace
from qmpsnap.model.picture.boxes import Box, Edge, Panel, base_name
from qmpsnap.model.picture.picture import Picture


def picture_of_machine(
    graph: Graph,
    jobs: Iterable[Job],
    places: Mapping[str, JobPlace],
    *,
    invalid: Collection[str] = (),
    disks: Collection[str] = (),
) -> Picture:
    """The disks with their chains, filters and jobs; jobs of no known disk have a panel of their own.

    Args:
        graph: The graph.
        jobs: All jobs.
        places: Where each of them works, by its id.
        invalid: Files that no longer hold their moment.
        disks: Names of the disks that are shown; none: all.
    """
    shown = {name: disk for name, disk in graph.disks.items() if name in disks or not disks}
    beside: dict[str, list[tuple[Job, str]]] = {}
    elsewhere: list[tuple[Job, str]] = []
    for job in jobs:
        place = places.get(job.id, JobPlace())
        names = [name for name in place.disk.split(", ") if name in graph.disks]
        for name in names:
            beside.setdefault(name, []).append((job, place.target))
        if not names:
            elsewhere.append((job, place.target))
    panels = [
        _with_jobs(disk, disk.panel(invalid=invalid), beside.get(disk.name, ())) for disk in shown.values()
    ]
    if elsewhere and not disks:
        panels.append(Panel("other jobs", tuple(_job(job) for job, _ in elsewhere)))
    chains = {name: files for name, files in graph.chains().items() if name in shown}
    return Picture(summary(chains), (tuple(panels),))


def _with_jobs(disk: Disk, panel: Panel, jobs: Iterable[tuple[Job, str]]) -> Panel:
    """The disk's panel, with its jobs aside; each points to the file that it writes."""
    aside: list[Box] = []
    edges = [*panel.edges]
    for job, target in jobs:
        box = _job(job)
        aside.append(box)
        if target in disk.files:
            edges.append(Edge(box.key, target))
        elif target:
            key = f"target of {job.id}"
            aside.append(Box(key, base_name(target), ("target",), full=target))
            edges.append(Edge(box.key, key))
    return replace(panel, aside=tuple(aside), edges=tuple(edges))


def _job(job: Job) -> Box:
    state = () if job.status is JobStatus.RUNNING else (str(job.status),)
    error = (f"error: {job.error}",) if job.error else ()
    return Box(f"job {job.id}", f"{job.type}, {job.fraction:.0%}", (job.id, *state, *error), "job")
