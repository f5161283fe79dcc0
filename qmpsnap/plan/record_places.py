"""Where records lie: beside the base image, or in the directory that the caller names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.files import Files
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.names import state_directory_choices
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.record_rules import is_plain
from qmpsnap.model.step import Step
from qmpsnap.plan.scene import Scene

# Room for a record: a guest whose disk is full must not be refused the snapshot that rescues it.
_RECORD_BYTES = 64 * 1024


def state_directories(disk: Disk, state_dir: str) -> tuple[str, ...]:
    """Where records of this disk may lie, the preferred place first.

    Beside the base image; where that directory cannot be written, beside the next layer up. Last comes
    each layer's own place: it becomes the base image's when a stream leaves nothing below it.
    """
    if state_dir:
        return (state_dir,)
    return state_directory_choices(
        disk.base.file, [layer.file for layer in reversed(disk.layers) if layer.local]
    )


def record_directories(record: IntentRecord) -> tuple[str, ...]:
    """Where the record of an operation may lie: beside the chains of before, then those of after."""
    chains = (files for files in (*record.chains.values(), *record.after.values()) if files)
    places = (place for files in chains for place in state_directory_choices(files[-1], files[::-1]))
    return tuple(dict.fromkeys((*places, record.directory)))


def state_place(scene: Scene, disk: Disk) -> str:
    """The directory that takes our records, or "" when none can be written.

    None can where a layer's path has control characters: such a record is refused when it is read.
    """
    if not scene.files.shared and not scene.state_dir:
        return ""
    files = [file for one in scene.graph.disks.values() for file in one.files if file.startswith("/")]
    if not all(map(is_plain, files)):
        return ""
    facts = scene.files.directories
    for place in state_directories(disk, scene.state_dir):
        own, parent = facts.get(place), facts.get(posixpath.dirname(place))
        where = own if own is not None and own.exists else parent
        if where is not None and where.writable and where.free_bytes >= _RECORD_BYTES:
            return place
    return ""


def refuse_unrecorded(scene: Scene, disk: Disk, files: Iterable[str]) -> None:
    """Refuse to change layers that moments are read from where that cannot be written down first.

    After a failure nobody would know that such a moment is lost, and it could be gone back to.

    Args:
        scene: The machine, with the records of its moments.
        disk: The disk.
        files: Layers that change, or leave the chain.

    Raises:
        InvalidTarget: Naming the moments.
    """
    if state_place(scene, disk):
        return
    layers = {*files}
    names = [
        repr(record.name)
        for record in scene.files.records
        if isinstance(record, MomentRecord)
        and any(
            name not in record.lost and not layers.isdisjoint(record.read_from(name)) for name in record.disks
        )
    ]
    if names:
        where = state_directories(disk, scene.state_dir)[0]
        raise InvalidTarget(
            f"no record can be written in {where}, and after a failure it would not be known whether "
            f"{', '.join(names)} can still be read",
            file=where,
            hint=f"{_RECORD_BYTES // 1024} KiB must be free in a directory that can be written; "
            "--state-dir names another one",
        )


def refuse_unchangeable(steps: Iterable[Step], files: Files) -> None:
    """Refuse a plan that would end, its layers changed, at a record that we may not change.

    A directory of records that root has made, for example.

    Args:
        steps: Those of the plan.
        files: What is known of the directories.

    Raises:
        InvalidTarget: Naming the directory.
    """
    for step in steps:
        changes = step.command.startswith("keep-") and step.command != "keep-moment"
        if not changes and not step.arguments.get("moments"):
            continue
        where = files.directories.get(str(step.arguments.get("directory")))
        if where is not None and where.exists and not where.writable:
            raise InvalidTarget(
                f"the record of a snapshot in {where.path} cannot be changed: {where.problem}",
                file=where.path,
                hint="run as a user who can write there, or get that permission",
            )


def state_questions(graph: Graph, state_dir: str) -> tuple[str, ...]:
    """Directories in which records of any of the disks may lie."""
    return tuple(
        place for disk in graph.disks.values() if disk.layers for place in state_directories(disk, state_dir)
    )


def with_parents(places: Iterable[str]) -> tuple[str, ...]:
    """The directories and those that they lie in: what `state_place` has to know of."""
    return tuple(path for place in places for path in (place, posixpath.dirname(place)))
