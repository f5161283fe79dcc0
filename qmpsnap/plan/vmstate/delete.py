"""Plan of the deletion of an external checkpoint: its VM state and its name go, the layers stay."""

from __future__ import annotations

from qmpsnap.errors import Unsupported
from qmpsnap.model.hints import command
from qmpsnap.model.moments import Moment, related_records
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.checks.disk import refuse_jobs
from qmpsnap.plan.commands.files import remove_state
from qmpsnap.plan.commands.records import finish_record, keep_link
from qmpsnap.plan.intent import Delete
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.step import Step


def plan(intent: Delete, moment: Moment, scene: Scene) -> Plan:
    """Plan to delete an external moment that has VM state; or refuse.

    Raises:
        Unsupported: When it is of disks alone.
        Busy: When a job is running, which may be loading that state.
    """
    record = moment.record
    folds = [
        command("commit", part.disk, "--top", part.overlay, "--base", part.file)
        for part in moment.held
        if part.in_chain
    ]
    if record is None or record.state is None:
        overlays = ", ".join(part.overlay for part in moment.held)
        raise Unsupported(
            f"{intent.name!r} is an external snapshot (its overlay is {overlays}); those cannot be deleted "
            "yet",
            feature="deletion of an external snapshot",
            hint=f"commit its overlay, which loses no other snapshot: {'; '.join(folds)}" if folds else "",
        )
    refuse_jobs(scene.jobs)
    remove = remove_state(record.state.file, record.id, record.state.tag)
    present = {file for disk in scene.graph.disks.values() for file in disk.files}
    aside = [file for part in moment.held for file in record.began(part.disk) if file not in present]
    notes = [f"the layers stay; to commit its overlay: {'; '.join(folds)}"] if folds else ["the layers stay"]
    if aside:
        notes.append(f"no longer in a chain of this machine: {', '.join(aside)}")
    return Plan(
        op="delete",
        intent=intent,
        disks=tuple(part.disk for part in moment.held),
        stages=(
            Stage(f"delete the VM state of {intent.name!r}", (remove,)),
            Stage("delete its name", _records(record, scene), tidy=True),
        ),
        before=scene.graph,
        notes=tuple(notes),
    )


def _records(record: MomentRecord, scene: Scene) -> tuple[Step, ...]:
    """What becomes of the record, and of those of deleted moments that nobody needs from then on.

    A moment is found by the overlays that it stands on, so the records of these outlive their own moments.
    """
    ours = related_records(scene.graph, scene.files.records)
    live = [one for one in ours if not one.deleted and one.id != record.id]
    needed: list[MomentRecord] = []
    pending = [record, *(one for one in ours if one.deleted)]
    while live and pending:
        found = [
            one for one in pending if _in_chain(one, scene) or any(x.stands_on(one) for x in (*live, *needed))
        ]
        if not found:
            break
        needed += found
        pending = [one for one in pending if one not in found]
    keep = (keep_link(record.directory, record.id),) if record in needed else ()
    ended = [one for one in (record, *ours) if one not in needed and one not in live]
    places = dict.fromkeys(one.directory for one in ended)
    return (
        *keep,
        *(
            finish_record(place, (), tuple(dict.fromkeys(one.id for one in ended if one.directory == place)))
            for place in places
        ),
    )


def _in_chain(record: MomentRecord, scene: Scene) -> bool:
    return any(
        file in scene.graph.disks[disk].files
        for disk in record.covered
        if disk in scene.graph.disks
        for file in record.began(disk)
    )
