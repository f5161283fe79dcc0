"""Adds the changes to records to the jobs of a deletion: a moment's name is deleted with its last job.

If a moment is on several disks, each job notes in the record that its disk no longer has the moment. So the
same deletion continues after a failure. A record stays, marked as deleted, as long as other moments can be
found only through it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
    """A job that deletes moments from one disk.

    Attributes:
        plan: The plan of the job.
        disk: The disk's name.
        files: Layers whose moments no longer exist after the job.
    """

    plan: Plan
    disk: str
    files: tuple[str, ...]


@dataclass(slots=True)
class Deleting:
    """A deletion while its parts are being planned.

    Attributes:
        intent: The user's request.
        scene: The machine as predicted after the parts so far, without the records of the deleted moments.
        gone: Records of the deleted moments.
        staying: Disks that are not here, on which a moment stays, by the id of its record.
        parts: The jobs so far.
        notes: Notes for the user about changes without a job.
        removed: Steps that remove layers that are in no chain.
    """

    intent: Delete | Prune
    scene: Scene
    gone: tuple[MomentRecord, ...]
    staying: Mapping[str, tuple[str, ...]]
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    removed: list[Step] = field(default_factory=list)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps so far."""
        return (*(step for part in self.parts for step in part.plan.steps), *self.removed)

    def stays(self, disk: str, file: str, why: str) -> None:
        """Note that a layer stays although its moments are deleted; one without a moment needs no note."""
        names = [repr(record.name) for record in self.gone if record.covered.get(disk) == file]
        if names:
            verb = "are" if len(names) > 1 else "is"
            note = f"{' and '.join(names)} {verb} no longer listed, but {file} stays"
            self.notes.append(f"{note}: {why}" if why else note)


def with_tidying(job: Plan, steps: tuple[Step, ...]) -> Plan:
    """The plan with more cleanup steps, before the step that removes its record."""
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
    """One plan of all jobs, with the steps that change or remove the records of the moments."""
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
        steps += _names(deleting, names, ended, more=index == len(deleting.parts) - 1)
        new = tuple(step for step in steps if step not in part.plan.steps)
        job = with_tidying(part.plan, new)
        done.append(recorded_anew(replace(job, op=deleting.intent.kind, repeats=(), deleted=_listed(names))))
    unnamed = tuple(record for record in deleting.gone if record.id not in last)
    deleting.notes += _partly(deleting)
    if unnamed or deleting.removed or deleting.notes or not done:
        done.append(_without_jobs(deleting, chosen, unnamed, ended, more=not done))
    first, *then = done  # before each part runs, it is checked as an ordinary commit or stream
    return replace(first, intent=deleting.intent, then=tuple(then))


def _ends(record: MomentRecord, part: Part) -> bool:
    return record.covered.get(part.disk) in part.files


def _state(record: MomentRecord) -> list[Step]:
    state = record.state
    return [] if state is None else [remove_state(state.file, record.id, state.tag)]


def _listed(records: Iterable[MomentRecord]) -> tuple[str, ...]:
    return tuple(record.name for record in records)


def _partly(deleting: Deleting) -> list[str]:
    """Notes on moments that stay on disks which are not here."""
    by_disks: dict[tuple[tuple[str, ...], tuple[str, ...]], list[MomentRecord]] = {}
    for record in deleting.gone:
        if record.id in deleting.staying:
            away = deleting.staying[record.id]
            here = tuple(disk for disk in record.disks if disk not in away and disk not in record.lost)
            by_disks.setdefault((here, away), []).append(record)
    return [
        f"{' and '.join(map(repr, _listed(records)))} {'is' if len(records) == 1 else 'are'} deleted from "
        f"{', '.join(here)} only, and {'stays' if len(records) == 1 else 'stay'} on {', '.join(away)} "
        f"({', '.join(records[-1].covered[disk] for disk in away)}), which "
        f"{'is' if len(away) == 1 else 'are'} not among the disks here; to delete "
        f"{'it' if len(records) == 1 else 'them'} there, too, name the image while the machine is off: "
        f"{' '.join(f'-i {disk}=IMAGE' for disk in away)}"
        for (here, away), records in by_disks.items()
    ]


def _names(
    deleting: Deleting, records: Iterable[MomentRecord], ended: Collection[MomentRecord], *, more: bool
) -> list[Step]:
    """Steps that delete these names; with `more`, also records of earlier deletions that nothing needs."""
    named = tuple(records)
    steps = [
        keep_link(record.directory, record.id, _from(record, deleting))
        for record in named
        if record not in ended
    ]
    finished = [record for record in ended if record in named or (more and record.deleted)]
    for place in dict.fromkeys(record.directory for record in finished):
        ids = tuple(record.id for record in finished if record.directory == place)
        steps.append(finish_record(place, (), ids))
    return steps


def _from(record: MomentRecord, deleting: Deleting) -> tuple[str, ...]:
    """Disks from which the moment is deleted while it stays on others; none: it is deleted from all."""
    away = deleting.staying.get(record.id, ())
    return tuple(disk for disk in record.disks if disk not in away) if away else ()


def _ended(deleting: Deleting, scene: Scene) -> tuple[MomentRecord, ...]:
    """Records through which nothing is found any more.

    A record stays while a layer continues from its moment, whether in a chain, in a branch, or in another
    machine. Other moments are found through the record, and so are images on a layer that lost its name.
    """
    pending = [*(record for record in deleting.gone if record.id not in deleting.staying), *_links(scene)]
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
    """Whether a layer continues from the moment, other than layers that were merged with the moment's own."""
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
    """The part without a job: delete VM state, layers in no chain, and names of moments whose layers stay."""
    states = tuple(step for record in unnamed for step in _state(record))
    names = " and ".join(repr(record.name) for record in unnamed if record.state is not None)
    disks = dict.fromkeys(disk for moment in chosen for disk in moment.disks)
    tidy = (*deleting.removed, *_names(deleting, unnamed, ended, more=more))
    return Plan(
        op=deleting.intent.kind,
        intent=deleting.intent,
        disks=tuple(disks),
        stages=(
            Stage(f"delete the VM state of {names}", states),
            Stage("delete the name", tidy if chosen else (), tidy=True),
        ),
        before=deleting.scene.graph,
        notes=tuple(deleting.notes),
        deleted=_listed(unnamed),
    )
