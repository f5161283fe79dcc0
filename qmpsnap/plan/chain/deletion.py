"""What becomes of the names of deleted moments, and when: with the last job that takes one away.

Of a moment on several disks each job notes that its disk has it no more, so that the same deletion goes on
after a failure. A record is kept, as deleted, while other moments are found by it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from qmpsnap.model.moments import Moment, related_records
from qmpsnap.model.record import MomentRecord, Record
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
            for record in deleting.gone
            if _ends(record, part) and record not in names
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
    """Records that are not needed any more: without them every other moment is still found."""
    before = related_records(scene.graph, scene.files.records)
    live = {record.id for record in before if not record.deleted and record not in deleting.gone}
    links = tuple(record for record in before if record.deleted)
    after, rest = deleting.scene.graph, deleting.scene.files.records
    pool: tuple[Record, ...] = (*deleting.gone, *rest)
    ended = []
    for record in (*deleting.gone, *links):
        without = tuple(one for one in pool if one.id != record.id)
        if live <= {one.id for one in related_records(after, without)}:
            pool = without
            ended.append(record)
    return tuple(ended)


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
