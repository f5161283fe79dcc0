"""What becomes of the names of deleted moments, and when: with the last job that takes one away.

Of a moment on several disks each job notes that its disk has it no more, so that the same deletion goes on
after a failure. A record is kept, as deleted, while other moments are found by it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from qmpsnap.model.moments import Moment, related_records
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.commands.files import remove_state
from qmpsnap.plan.commands.records import finish_record, keep_link, keep_lost
from qmpsnap.plan.intent import Delete, Prune
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.recording import recorded_anew
from qmpsnap.plan.scene import Scene


@dataclass(frozen=True, slots=True)
class Part:
    """A job by which moments go from a disk.

    Attributes:
        plan: The job, with all that belongs to it.
        disk: The disk's name.
        files: Layers whose moments are no more once it is done.
    """

    plan: Plan
    disk: str
    files: tuple[str, ...]


@dataclass(slots=True)
class Deleting:
    """What is known while the parts of a deletion are planned.

    Attributes:
        intent: What is asked for.
        scene: The machine, as predicted after the parts so far; without the records of the moments that go.
        gone: Records of these moments.
        parts: The jobs so far.
        notes: What the caller should know of what is done without a job.
        removed: Layers that are in no chain, and are put away.
    """

    intent: Delete | Prune
    scene: Scene
    gone: tuple[MomentRecord, ...]
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    removed: list[Step] = field(default_factory=list)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps so far."""
        return (*(step for part in self.parts for step in part.plan.steps), *self.removed)


def with_tidying(job: Plan, steps: tuple[Step, ...]) -> Plan:
    """The plan with more steps in its last stage, before its record is removed."""
    *stages, last = job.stages
    own = [
        step for step in last.steps if step.command == "finish-record" and job.job_id in step.arguments["ids"]
    ]
    others = [step for step in last.steps if step not in own]
    tidy = Stage(last.title, (*others, *steps, *own), tidy=True)
    if not last.tidy:
        tidy, stages = Stage("clean up", steps, tidy=True), [*stages, last]
    return replace(job, stages=(*stages, tidy))


def whole(deleting: Deleting, chosen: tuple[Moment, ...], scene: Scene) -> Plan:
    """The jobs with what becomes of the names, as one plan."""
    ended = _ended(deleting, scene)
    last: dict[str, int] = {}
    for index, part in enumerate(deleting.parts):
        last |= {record.id: index for record in deleting.gone if _ends(record, part)}
    done: list[Plan] = []
    for index, part in enumerate(deleting.parts):
        names = [record for record in deleting.gone if last.get(record.id) == index]
        steps = [step for record in names for step in _state(record)]
        steps += [
            keep_lost(record.directory, record.id, part.disk)
            for record in (*deleting.gone, *_links(scene))
            if _ends(record, part) and (record not in ended or last.get(record.id, index) != index)
        ]
        steps += _names(names, ended, more=index == len(deleting.parts) - 1)
        job = with_tidying(part.plan, tuple(steps))
        done.append(recorded_anew(replace(job, op=deleting.intent.kind, repeats=())))
    unnamed = tuple(record for record in deleting.gone if record.id not in last)
    if unnamed or deleting.removed or deleting.notes or not done:
        done.append(_without_jobs(deleting, chosen, unnamed, ended, more=not done))
    first, *then = done  # these are checked as the commits and streams that they are, before each is run
    return replace(first, intent=deleting.intent, then=tuple(then))


def _ends(record: MomentRecord, part: Part) -> bool:
    return record.covered.get(part.disk) in part.files


def _state(record: MomentRecord) -> list[Step]:
    state = record.state
    return [] if state is None else [remove_state(state.file, record.id, state.tag)]


def _names(records: Iterable[MomentRecord], ended: Collection[MomentRecord], *, more: bool) -> list[Step]:
    """What deletes these names; with `more`, also the records of earlier deletions that nobody needs."""
    named = tuple(records)
    steps = [keep_link(record.directory, record.id) for record in named if record not in ended]
    finished = [record for record in ended if record in named or (more and record.deleted)]
    for place in dict.fromkeys(record.directory for record in finished):
        ids = tuple(record.id for record in finished if record.directory == place)
        steps.append(finish_record(place, (), ids))
    return steps


def _ended(deleting: Deleting, scene: Scene) -> tuple[MomentRecord, ...]:
    """Records that nothing is found by any more.

    A record is kept while a layer goes on from it, be it in a chain, aside, or another machine's: other
    moments are found by it, and so is what stands on the layer whose name alone has gone.
    """
    pending = [*deleting.gone, *_links(scene)]
    users = [
        record
        for record in deleting.scene.files.records
        if isinstance(record, MomentRecord) and not record.deleted
    ]
    while True:
        read = {file for user in users for disk in user.covered for file in user.read_from(disk)}
        linked = [record for record in pending if _leads(record, read, deleting, scene)]
        if not linked:
            return tuple(pending)
        users += linked
        pending = [record for record in pending if record not in linked]


def _links(scene: Scene) -> list[MomentRecord]:
    """Records of moments that were deleted before."""
    return [record for record in related_records(scene.graph, scene.files.records) if record.deleted]


def _leads(record: MomentRecord, read: Collection[str], deleting: Deleting, scene: Scene) -> bool:
    """Whether a layer goes on from the moment, other than those that have been merged with its own."""
    removed = {step.arguments["file"] for step in deleting.steps if step.command == "retire-file"}
    before, after = (
        {file for disk in graph.disks.values() for file in disk.files}
        for graph in (scene.graph, deleting.scene.graph)
    )
    for disk in record.covered:
        merged = disk in record.lost or any(
            part.disk == disk and record.covered[disk] in part.files for part in deleting.parts
        )
        for file in record.goes_on(disk):
            if file in removed or (merged and (file in before or file in after)):
                continue
            fact = scene.files.files.get(file)
            if file in after or file in read or fact is None or fact.kind != "missing":
                return True
    return False


def _without_jobs(
    deleting: Deleting,
    chosen: tuple[Moment, ...],
    unnamed: tuple[MomentRecord, ...],
    ended: tuple[MomentRecord, ...],
    *,
    more: bool,
) -> Plan:
    """What copies no data: the VM state, the layers aside, and the names of moments whose layers stay."""
    states = tuple(step for record in unnamed for step in _state(record))
    names = " and ".join(repr(record.name) for record in unnamed)
    disks = dict.fromkeys(disk for moment in chosen for disk in moment.disks)
    tidy = (*deleting.removed, *_names(unnamed, ended, more=more))
    return Plan(
        op=deleting.intent.kind,
        intent=deleting.intent,
        disks=tuple(disks),
        stages=(
            Stage(f"delete the VM state of {names}", states),
            Stage("delete its name", tidy if chosen else (), tidy=True),
        ),
        before=deleting.scene.graph,
        notes=tuple(deleting.notes),
    )
