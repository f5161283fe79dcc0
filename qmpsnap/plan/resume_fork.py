"""Plans that delete the checkpoint that a fork has taken for itself, when its client was killed.

The record of the operation that takes the checkpoint, and then that of the moment, have an id with the
operation "fork". The client holds a lock on the first, as on that of any operation. For the second it holds
locks on the layers (run/view_lock.py), from before the checkpoint is taken until it is deleted.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import replace

from msgspec import structs

from qmpsnap.errors import Busy, StillNeeded
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import command
from qmpsnap.model.interrupted import FORK, is_of_fork
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.moments import Moment, find_moments
from qmpsnap.model.names import SCRATCH
from qmpsnap.model.record import IntentRecord, MomentRecord, Record, moment_of
from qmpsnap.model.step import Stage
from qmpsnap.plan.chain import delete
from qmpsnap.plan.checks.disk import refuse_migrated
from qmpsnap.plan.checks.keepers import without_abandoned
from qmpsnap.plan.commands.files import remove_scratch
from qmpsnap.plan.commands.records import finish_record
from qmpsnap.plan.intent import Delete
from qmpsnap.plan.ownership import has_moment
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.recorded_steps import removed, tidied
from qmpsnap.plan.resume_ends import end_and_resume
from qmpsnap.plan.resume_guest import plan as plan_rest
from qmpsnap.plan.scene import GuestScene, Scene


def checkpoints(graph: Graph, records: Iterable[Record]) -> tuple[MomentRecord, ...]:
    """Records of checkpoints that forks of this machine have taken, whether their clients are at work or not.

    Those are left out on whose chains another operation works, or was interrupted: that ends first.
    """
    known = tuple(records)
    working = [record for record in known if isinstance(record, IntentRecord) and not record.permanent]
    busy = {file for record in working for files in record.chains.values() for file in files[:1]}
    made = (moment.record for moment in find_moments(graph, known).moments)
    return tuple(
        one
        for one in made
        if one is not None
        and is_of_fork(one.id)
        and busy.isdisjoint((*one.all_going_on, *one.covered.values()))
    )


def ask_live(moments: Iterable[MomentRecord]) -> Ask:
    """What shows whether their clients are at work."""
    return Ask(readers=tuple((file, record.name) for record in moments for file in _held(record)))


def is_live(record: MomentRecord, files: Files) -> bool:
    """Whether the client is at work, by the answer to `ask_live`."""
    return any((file, record.name) in files.readers for file in _held(record))


def operation(record: MomentRecord) -> IntentRecord:
    """A fork whose client is gone, as an operation that was interrupted."""
    end = Stage("delete the checkpoint", (finish_record(record.directory, (record.id,)),), tidy=True)
    return IntentRecord(
        id=record.id,
        op=FORK,
        created=record.created,
        chains=record.chains,
        formats=record.formats,
        stages=(end,),
        name=record.name,
        directory=record.directory,
    )


def ask(job_id: str, graph: Graph, files: Files) -> Ask:
    """What the planner has to know of a fork's checkpoint, also of one that will be there only later."""
    records = tuple(_later(record) if record.id == job_id else record for record in files.records)
    moments = [each for each in find_moments(graph, records).moments if _has_id(each, job_id)]
    known = structs.replace(files, records=records)
    question = Ask()
    for moment in moments:
        assert moment.record is not None  # noqa: S101 - by its id
        question |= delete.ask(Delete(moment.name), graph, known, [moment]) | ask_live([moment.record])
    return question


def checkpoint(job_id: str, scene: Scene) -> Moment | None:
    """The checkpoint of the fork with that id; None if there is none, or if the id is not of a fork."""
    if not is_of_fork(job_id):
        return None
    return next((each for each in scene.moments.moments if _has_id(each, job_id)), None)


def plan(moment: Moment, scene: Scene) -> Plan:
    """Plan the deletion of a checkpoint whose fork was killed; overlays are committed, as the fork does.

    Raises:
        Busy: When its client is at work, or a job holds one of the chains.
        Refused: As a deletion does.
    """
    assert moment.record is not None  # noqa: S101 - by its id
    if is_live(moment.record, scene.files):
        raise Busy(
            f"{moment.record.id} was not interrupted: the client of {moment.name!r} is still at work",
            node="",
            job_id=moment.record.id,
            hint="wait until that client ends",
        )
    if isinstance(scene, GuestScene):
        refuse_migrated(scene.machine.guest)
    return _deletion(moment, scene)


def interrupted(record: IntentRecord, scene: Scene) -> Plan:
    """Plan the rollback of a fork whose client was killed while the checkpoint was being taken.

    If the guest writes to the overlays already, the moment is recorded, and then deleted as `plan` does it.
    So a record shows what is left, whatever interrupts the rollback.
    """
    moved = any(
        scene.graph.disks[disk].files[:1] == (file,)
        for disk, file in record.overlays.items()
        if disk in scene.graph.disks
    )
    known = has_moment(record, scene.files.records)
    if not isinstance(scene, GuestScene) or not (moved or known):
        rest = plan_rest(record, scene)
        return replace(rest, stages=(*rest.stages, _temporary(record.state, scene.files)))
    first = plan_rest(record, scene) if known else _recorded(record, scene)
    records = tuple(_later(each) if each.id == record.id else each for each in scene.files.records)
    after = replace(
        scene,
        files=structs.replace(scene.files, records=records),
        jobs=tuple(job for job in scene.jobs if job.id != record.id),
    )
    moment = checkpoint(record.id, after)
    return first if moment is None else replace(first, then=_deletion(moment, after).parts)


def _recorded(record: IntentRecord, scene: GuestScene) -> Plan:
    """End what writes the memory, which nobody needs, resume the guest, and record the moment."""
    steps = end_and_resume(record, scene)
    tidy = (*removed(record, scene, keep_overlays=True), *tidied(record, scene))
    return Plan(
        op=FORK,
        intent=None,
        disks=tuple(disk for disk in record.chains if disk in scene.graph.disks),
        stages=(Stage("end the checkpoint", steps, verify=True), Stage("clean up", tidy, tidy=True)),
        before=scene.graph,
        after=scene.graph,
        ended="rolled-back",
    )


def _deletion(moment: Moment, scene: Scene) -> Plan:
    """The plan that deletes the checkpoint, and what else the fork has left."""
    deleted = without_abandoned(delete.plan(Delete(moment.name, down=True), [moment], scene), scene.files)
    stays = [part for part in moment.held if part.in_chain and not part.invalid]
    if len(deleted.jobs) < len(stays):
        notes = [note for part in deleted.parts for note in part.notes]
        raise StillNeeded(
            f"the overlays of {moment.name!r} cannot be merged: {'; '.join(notes)}",
            by=(),
            hint="try again once what needs the layers has ended; to delete the name alone: "
            f"{command('delete', moment.name)}",
        )
    temporary = _temporary(moment.record.state if moment.record is not None else None, scene.files)
    return replace(deleted, stages=(temporary, *deleted.stages))


def _temporary(state: KeptState | None, files: Files) -> Stage:
    """Remove the fork's temporary directories: the usual ones, and where a file in one of them is known."""
    owners = [keeper.owner for keeper in files.keepers.values() if keeper.state == "left"]
    inside = [owner.directory for owner in owners if owner.kind == FORK]
    directories = [
        posixpath.dirname(file) for file in (*([state.file] if state is not None else []), *inside)
    ]
    places = [posixpath.dirname(each) for each in directories if posixpath.basename(each).startswith(SCRATCH)]
    return Stage("remove temporary files", (remove_scratch(tuple(dict.fromkeys(("", *places)))),))


def _held(record: MomentRecord) -> tuple[str, ...]:
    """Files of which the client holds locks."""
    files = (file for disk in record.covered for file in (record.covered[disk], *record.read_from(disk)))
    return tuple(dict.fromkeys(file for file in files if file.startswith("/")))


def _has_id(moment: Moment, record_id: str) -> bool:
    return moment.record is not None and moment.record.id == record_id


def _later(record: Record) -> Record:
    """The record once the operation has kept its moment."""
    return moment_of(record) if isinstance(record, IntentRecord) else record
