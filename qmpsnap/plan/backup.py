"""Refuses a backup of disks that cannot be read from outside, or whose overlays could not be merged back."""

from __future__ import annotations

from collections.abc import Sequence

from qmpsnap.errors import InvalidTarget, StillNeeded
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.hints import command
from qmpsnap.plan.chain import commit
from qmpsnap.plan.intent import Commit
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.view import readable


def ask(disks: Sequence[str], graph: Graph) -> Ask:
    """Return what the planner asks: the kind of each file, and what a commit into the active layers asks.

    Args:
        disks: Disks by their names.
        graph: The graph.
    """
    layers = (layer for disk in disks for layer in graph.disks[disk].layers)
    question = Ask(files=tuple(file for layer in layers for file in layer.parts if file.startswith("/")))
    for disk in disks:
        question |= commit.ask(Commit(disk), graph, "")
    return question


def refuse_unlisted(plan: Plan) -> None:
    """Refuse a backup whose snapshot is not recorded: its overlays could not be found to be merged back.

    Args:
        plan: The plan of the snapshot.

    Raises:
        InvalidTarget: When there is no writable directory for its record.
    """
    if plan.record is None:
        raise InvalidTarget(
            "there is no writable directory for records, and without a record a backup's overlays cannot "
            "be found to be merged back",
            file=next(iter(plan.chains_before.values()))[-1],
            hint="name one: --state-dir DIR",
        )


def coverable(disks: Sequence[str], scene: Scene) -> tuple[Disk, ...]:
    """Return the disks, if each can be copied beneath an overlay that can be merged back; or refuse.

    Args:
        disks: Disks by their names.
        scene: The machine, and its files.

    Raises:
        StillNeeded: When another image is backed by an active layer; `.by` names each.
        InvalidTarget: When such images cannot be searched for.
        Refused: As `plan.view.readable`.
    """
    chosen = readable(disks, scene)
    for disk in chosen:
        try:
            commit.refuse_needed(Commit(disk.name), scene, disk, (disk.active,))
        except StillNeeded as error:
            raise StillNeeded(
                f"still needed by {', '.join(error.by)}: backed by {disk.active.file}, so the "
                f"overlay of a backup of {disk.name} could not be merged back into it",
                by=error.by,
                hint=f"take a snapshot that stays: {command('snapshot', '--disk', disk.name)}; a backup then "
                "merges its overlay into that of the snapshot",
            ) from error
    return chosen
