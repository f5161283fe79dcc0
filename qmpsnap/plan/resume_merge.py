"""Plans that merge the overlays of a checkpoint that cannot be completed into the layers that they cover.

The guest writes to them since they were put on, and without its memory nothing needs them. The record of the
checkpoint stays until the last one is merged: whatever interrupts that, the checkpoint is still shown as
interrupted, and the rest is planned again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from msgspec import structs

from qmpsnap.errors import Busy, NotInChain, Refused
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Graph
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.chain import commit
from qmpsnap.plan.commands.records import rewritten
from qmpsnap.plan.intent import Commit
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.resume_ends import migrated_away
from qmpsnap.plan.scene import GuestScene, Scene


def ask(records: Iterable[IntentRecord], graph: Graph) -> Ask:
    """What the planner has to know to merge the overlays of these operations, where they save VM state."""
    question = Ask()
    for record in records:
        if record.state is not None and not record.loads:
            for disk in _moved(record, graph):
                question |= commit.ask(Commit(disk), graph, "")
    return question


def merges(
    record: IntentRecord, scene: GuestScene, end: tuple[Step, ...], *, resumes: bool
) -> tuple[tuple[Plan, ...], str]:
    """Plan a commit for each overlay that a disk uses, and then `end`; or return none, and why.

    Args:
        record: The operation.
        scene: The machine and its files.
        end: The steps that remove the record, once all overlays are merged.
        resumes: Whether the guest is resumed before.

    Raises:
        Busy: When a job holds one of the chains, and the guest need not be resumed before that has ended.
    """
    status = scene.machine.guest
    if migrated_away(record, scene) or (not resumes and (status.state == "postmigrate" or status.incoming)):
        return (), f"QEMU does not own its images in run state {status.state!r}"
    try:
        parts, after = _commits(record, scene)
    except Busy as busy:
        if not resumes:
            raise
        return (), busy.message
    except Refused as error:
        return (), error.message
    clean_up = Stage("remove the record", end, tidy=True)
    disks = tuple(record.overlays)
    last = Plan(op=record.op, intent=None, disks=disks, stages=(clean_up,), before=after, after=after)
    return (*parts, last), ""


def _commits(record: IntentRecord, scene: Scene) -> tuple[list[Plan], Graph]:
    """The commits, and the graph as predicted after them.

    Raises:
        NotInChain: When there are more layers on an overlay, which may hold other snapshots.
        Refused: As a commit does.
    """
    parts: list[Plan] = []
    for disk in _moved(record, scene.graph):
        overlay, below = record.overlays[disk], record.chains[disk][0]
        if scene.graph.disks[disk].files[:2] != (overlay, below):
            raise NotInChain(f"{overlay} is no longer the active layer of {disk}, or no longer on {below}")
        part = commit.plan(Commit(disk, top=overlay, base=below, folded="remove"), scene)
        assert part.after is not None  # noqa: S101 - it has an intent
        records = rewritten(scene.files.records, part.steps)
        scene = replace(scene, graph=part.after, files=structs.replace(scene.files, records=records))
        parts.append(part)
    return parts, scene.graph


def _moved(record: IntentRecord, graph: Graph) -> tuple[str, ...]:
    """The disks that have an overlay of the operation."""
    return tuple(
        disk
        for disk, file in record.overlays.items()
        if disk in graph.disks and file in graph.disks[disk].files
    )
