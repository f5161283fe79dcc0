"""Keeps moments findable while chains change: no moment is hidden by a layer that leaves.

A moment is found by a layer in a chain that goes on from it, and through other moments that are found. When a
stream or a mirror takes the last such layer away, the layer in its place is noted with the nearest moment.
Records stay where they are: a link beside a new base image leads to them.
"""

from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.moments import related_records
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.records import keep_continued, link_records
from qmpsnap.plan.record_places import state_directories, state_place
from qmpsnap.plan.scene import Scene


def kept_found(scene: Scene, after: Graph) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """What keeps the machine's moments findable once that is the graph, and notes on those that are not."""
    moments = related_records(scene.graph, scene.files.records)
    steps: list[Step] = []
    notes: list[str] = []
    for disk in after.disks.values():
        before = scene.graph.disks[disk.name]
        if disk.layers and disk.files != before.files:
            steps += _noted(moments, before, disk, after)
            more, unfound = _linked(moments, disk, scene)
            steps += more
            notes += unfound
    return tuple(steps), tuple(notes)


def put_over(scene: Scene, disks: tuple[Disk, ...]) -> tuple[Step, ...]:
    """The steps that note the active layers which somebody else put on, once overlays of ours cover them."""
    moments = related_records(scene.graph, scene.files.records)
    steps = []
    for disk in disks:
        nearest = _nearest(moments, disk, 0)
        if nearest is not None and disk.active.file not in nearest.goes_on(disk.name):
            steps.append(keep_continued(nearest.directory, nearest.id, disk.name, disk.active.file))
    return tuple(steps)


def left_behind(scene: Scene, disk: Disk, files: tuple[str, ...]) -> tuple[str, ...]:
    """A note on the moments that these files of the disk hold, which it leaves."""
    names = [
        record.name
        for record in sorted(related_records(scene.graph, scene.files.records), key=_time)
        if disk.name in record.disks and record.covered[disk.name] in files
    ]
    return (f"the snapshots {', '.join(names)} stay in layers that {disk.name} leaves",) if names else ()


def _only(disk: Disk, graph: Graph) -> Graph:
    """The graph with that disk alone."""
    return replace(graph, disks=Frozen({disk.name: disk}))


def _time(moment: MomentRecord) -> str:
    return moment.created


def _noted(moments: tuple[MomentRecord, ...], before: Disk, disk: Disk, after: Graph) -> tuple[Step, ...]:
    """The step that notes what goes on from the nearest moment, if one would not be found any more."""
    # By each disk alone: the others may lose what leads to a moment at the same time, or be unplugged.
    led, leads = (related_records(_only(one, after), moments) for one in (before, disk))
    lost = tuple(moment for moment in led if moment not in leads)
    if not lost:
        return ()
    same = next(
        (index for index, file in enumerate(disk.files) if before.files[index : index + 1] != (file,)),
        len(disk.files),
    )
    place = max(same - 1, 0)
    nearest = _nearest(lost, before, place)
    if nearest is None:
        return ()
    return (keep_continued(nearest.directory, nearest.id, disk.name, disk.files[place]),)


def _nearest(moments: tuple[MomentRecord, ...], disk: Disk, place: int) -> MomentRecord | None:
    """The moment from which the layer there goes on, or the next layer down from which one does."""
    for file in disk.files[place:]:
        for record in moments:
            if file in record.goes_on(disk.name):
                return record
    return None


def _linked(moments: tuple[MomentRecord, ...], disk: Disk, scene: Scene) -> tuple[list[Step], list[str]]:
    """The steps that link the records of moments of this disk, of which the chain no longer leads to them."""
    places = state_directories(disk, scene.state_dir)
    away: dict[str, list[str]] = {}
    for record in moments:
        if disk.name in record.covered and record.directory not in places:
            away.setdefault(record.directory, []).extend([record.name] if disk.name in record.disks else [])
    place = state_place(scene, disk)
    if place:
        return [link_records(place, directory) for directory in away], []
    return [], [
        f"the snapshots {', '.join(names)} are not listed afterwards: their records are in "
        f"{where}, where they are no longer found (name it with --state-dir)"
        for where, names in away.items()
        if names
    ]
