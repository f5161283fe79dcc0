"""Plans that finish or roll back an operation whose client has gone.

The record is the plan. What can be seen of it shows how far it came: a job, a chain, a complete file. If the
chains are as the operation was to leave them, only the cleanup remains. If the job exists, it is adopted, and
brought to the end that its id names. Otherwise what was created is removed. Without a record only the job's
id and the graph are used.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest

from qmpsnap.errors import Busy, NotFound
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Graph
from qmpsnap.model.interrupted import is_of_fork
from qmpsnap.model.job import ENDED, Ending, Job, JobId, JobStatus, parse_job_id
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Later, Stage, Step
from qmpsnap.plan import ownership, resume_fork, resume_guest, resume_inside, resume_merge
from qmpsnap.plan.chain.layers import flush_layer, unused_nodes
from qmpsnap.plan.checks.disk import holders
from qmpsnap.plan.commands.block import blockdev_add, blockdev_del
from qmpsnap.plan.commands.files import create_file, remove_orphan
from qmpsnap.plan.commands.jobs import adopt_job, await_job, end_copy, job_complete, job_dismiss, job_finalize
from qmpsnap.plan.commands.records import write_record
from qmpsnap.plan.plan import OperationEnd, Plan
from qmpsnap.plan.record_places import record_directories, state_questions
from qmpsnap.plan.recorded_steps import backing_of, finish, free, tidied
from qmpsnap.plan.recording import local_chains
from qmpsnap.plan.scene import GuestScene, Scene

# The kernel stamps files with a clock that lags ours by some milliseconds.
_CLOCK_LAG = 0.1
_NOT_STARTED = "the job had not started"


def ask(graph: Graph, *, records: tuple[IntentRecord, ...] = (), state_dir: str = "") -> Ask:
    """What the planner has to know: every record of the machine's disks, and the files that they name."""
    places = (
        *state_questions(graph, state_dir),
        *(place for record in records for place in record_directories(record)),
    )
    states = tuple(
        file
        for record in records
        if record.state is not None
        for file in (record.state.file, record.state.partial)
    )
    files = [file for record in records for chain in record.chains.values() for file in chain]
    files += [file for record in records for file in (*record.made, *record.overlays.values())]
    fresh = (pair for record in records for pair in backing_of(record).items())
    removed = (
        posixpath.dirname(step.arguments["file"])
        for record in records
        for step in record.steps
        if step.command == "retire-file"
    )
    return Ask(
        files=(*files, *states),
        survey=tuple(removed),
        records=places,
        memories=states,
        fresh=tuple(fresh),
    ) | resume_merge.ask(records, graph)


def plan(job_id: str, scene: Scene) -> Plan:
    """Plan the rest, or the rollback, of the operation with that id.

    Raises:
        NotFound: When there is neither a job nor a record with that id, or the record is another machine's.
        Busy: When its client is still at work.
        Unsupported: When a checkpoint would have to be deleted, and the machine's state does not allow it.
    """
    records = (record for record in scene.files.records if isinstance(record, IntentRecord))
    return replace(
        _rest(job_id, scene),
        finishes=job_id,
        takes_over=tuple(record for record in records if record.id == job_id),
    )


def _rest(job_id: str, scene: Scene) -> Plan:
    name = parse_job_id(job_id)
    job = next((job for job in scene.jobs if job.id == job_id), None)
    records = (
        found for found in scene.files.records if isinstance(found, IntentRecord) and found.id == job_id
    )
    record = next(records, None)
    if record is None and (forked := resume_fork.checkpoint(job_id, scene)) is not None:
        return resume_fork.plan(forked, scene)
    if name is None or (job is None and record is None):
        raise NotFound(f"there is no job {job_id!r}", hint="qmpsnap jobs lists the jobs that there are")
    if record is not None:
        _refuse_not_left(record, scene)
    if (
        job is not None
        and job.type in resume_inside.JOBS
        and (record is None or resume_inside.is_inside(record))
    ):
        return resume_inside.with_job(name, job, record, scene)
    if job is not None and (record is None or record.start is not None):
        return _with_job(name, job, record, scene)
    assert record is not None  # noqa: S101 - for the type checker
    if record.start is not None:
        return _job_gone(record, scene)
    if resume_inside.is_inside(record):
        return resume_inside.plan(record, scene)
    if is_of_fork(record.id):
        return resume_fork.interrupted(record, scene)
    return resume_guest.plan(record, scene)


def _refuse_not_left(record: IntentRecord, scene: Scene) -> None:
    process = scene.machine.process if isinstance(scene, GuestScene) else ""
    if not (
        any(job.id == record.id for job in scene.jobs)
        or ownership.stands_here(record, scene.graph, scene.files.records)
        or ownership.ran_here(record, process)
    ):
        chains = "; ".join(f"{disk}: {' on '.join(files)}" for disk, files in record.chains.items())
        raise NotFound(
            f"{record.id} belongs to another machine ({chains or 'without a file'}), and was not touched",
            hint="connect to that machine; if it is off, start it on the layers that it had",
        )
    if record.live:
        raise Busy(
            f"{record.id} was not interrupted: its client is still at work",
            node="",
            job_id=record.id,
            hint="wait until that client ends",
        )


def _disks(record: IntentRecord, scene: Scene) -> tuple[str, ...]:
    return tuple(disk for disk in record.chains if disk in scene.graph.disks)


def _with_job(name: JobId, job: Job, record: IntentRecord | None, scene: Scene) -> Plan:
    """Bring the job to the end that its id names, then clean up."""
    if record is not None:
        disks = _disks(record, scene)
    else:
        # If another disk has a job of the same kind, only the outcome shows on which disk this job works.
        disks = tuple(
            disk.name for disk in scene.graph.disks.values() if disk.layers and job in holders(scene, disk)
        )
    end: list[Step] = []
    if job.status not in ENDED and _gets_ready(name, job, record, scene):
        if job.status is not JobStatus.READY:
            end.append(await_job(job.id, "ready"))
        end.append(job_complete(job.id) if name.ending is Ending.PIVOT else end_copy(job.id))
    elif job.status not in ENDED and job.type in {"stream", "commit"}:
        end.append(await_job(job.id, "pending"))
        # QEMU does not say which layer the job writes to; flushing any other layer does nothing.
        end += _flushed(disks, scene)
        end.append(job_finalize(job.id))
    end.append(await_job(job.id, "concluded"))
    target = unused_nodes((record.target,), scene) if record is not None and record.target else ()
    if name.ending is Ending.COPY:
        end += map(blockdev_del, target)
    if record is not None and name.ending is Ending.KEEP and not record.permanent:
        end += _flushed(disks, scene, record.after)  # the job has changed the backing file in a header
    if record is not None and name.ending is Ending.COPY:
        end += finish(record, scene)  # once the job is dismissed, nothing shows that the copy is complete
    if job.type != "stream":  # which dismisses itself
        end.append(job_dismiss(job.id))
    resumes: list[Step] = []
    if record is not None:
        places = (step.arguments["directory"] for step in finish(record, scene))
        resumes += [write_record(place, record) for place in places]
        resumes += [create_file(file, "") for file in record.made]
        resumes += [blockdev_add(node, record.target) for node in target]
    moves = disks if name.ending is Ending.PIVOT and job.status not in ENDED else ()
    return _plan(
        name.op if record is None else record.op,
        disks,
        scene,
        (
            Stage(f"finish {job.id}", tuple(end), verify=True),
            Stage("clean up", tidied(record, scene) if record is not None else (), tidy=True),
        ),
        record=record,
        moves=moves if record is None else record.moves,
        resumes=(*resumes, adopt_job(job.id, dismisses_itself=job.type == "stream")),
    )


def _flushed(
    disks: tuple[str, ...], scene: Scene, only: Mapping[str, tuple[str, ...]] | None = None
) -> list[Step]:
    """Steps that write the layers' data from QEMU's caches to the disk.

    Args:
        disks: The disks.
        scene: The machine and its files.
        only: Files of the layers to flush, by disk; None: all layers.
    """
    chains = {disk: scene.graph.disks[disk].layers for disk in disks}
    return [
        flush_layer(scene, layer, below)
        for disk, layers in chains.items()
        for layer, below in zip_longest(layers, layers[1:])
        if only is None or layer.file in only.get(disk, ())
    ]


def _gets_ready(name: JobId, job: Job, record: IntentRecord | None, scene: Scene) -> bool:
    """Whether the job becomes READY: every mirror does, and a commit of the active layer."""
    if job.type == "mirror" or name.ending is Ending.PIVOT or job.ready:
        return True
    if job.type != "commit":
        return False
    if record is not None and record.start is not None:
        return isinstance(record.start.effect, Later)
    return any(node.driver == "mirror_top" for node in scene.graph.nodes.values())


def _job_gone(record: IntentRecord, scene: Scene) -> Plan:
    """The job no longer exists: the chain shows whether it has succeeded."""
    disks = _disks(record, scene)
    if record.permanent:
        return _plan(record.op, disks, scene, (), record=record, notes=("the overlay is kept",))
    now = local_chains(scene.graph.chains(*disks))
    # The copy was in no chain before; the base of a commit was.
    pivoted = record.target != "" and any(record.target in files for files in now.values())
    if pivoted or now == record.after != record.chains:
        flushed = _flushed(disks, scene) if record.folded else ()
        done = Stage("the job had succeeded", (*flushed, *tidied(record, scene)), tidy=True)
        return _plan(record.op, disks, scene, (done,), record=record, moves=record.moves)
    if record.target:
        return _copy_left(record, scene, disks)
    remove_record = tuple(finish(record, scene))
    if record.invalid and _written(record, scene):
        vanished = "the job was gone before its end; it had written into its base"
        return _plan(record.op, disks, scene, (), record=record, vanished=vanished)
    if record.invalid:
        not_begun = Stage(_NOT_STARTED, remove_record, tidy=True)
        return _plan(record.op, disks, scene, (not_begun,), notes=(_NOT_STARTED,), ended="rolled-back")
    gone = Stage("the job is gone", remove_record, tidy=True)
    vanished = "the job was gone before its end; no snapshot was lost"
    return _plan(record.op, disks, scene, (gone,), vanished=vanished)


def _copy_left(record: IntentRecord, scene: Scene, disks: tuple[str, ...]) -> Plan:
    """No disk uses the copy: the job had not started, or it is unknown whether the copy is complete."""
    fact = scene.files.files.get(record.target)
    close_nodes = tuple(map(blockdev_del, free(record, scene)))
    remove_record = tuple(reversed(finish(record, scene)))
    encrypted = fact is not None and fact.luks and record.target in scene.files.fresh
    if (
        record.made
        and fact is not None
        and (encrypted or fact.kind == "missing" or (fact.kind, fact.size) == ("regular", 0))
    ):
        ours = ownership.may_remove(record.target, record, scene)
        backing = backing_of(record)[record.target] if encrypted else None
        orphan = (remove_orphan(record.target, backing),) if ours else ()
        stays = f"{record.target} stays: it is not known whose empty file it is"
        notes = (_NOT_STARTED,) if ours or fact.kind == "missing" else (_NOT_STARTED, stays)
        steps = (*close_nodes, *orphan, *remove_record)
        stages = (Stage(_NOT_STARTED, steps, tidy=True),)
        return _plan(record.op, disks, scene, stages, notes=notes, ended="rolled-back")
    return _plan(
        record.op,
        disks,
        scene,
        (Stage("the job is gone", (*close_nodes, *remove_record), tidy=True),),
        vanished=f"the job is gone; it is not known whether {record.target} is a complete copy, so it was "
        "left there",
    )


def _written(record: IntentRecord, scene: Scene) -> bool:
    """Whether the base was written, or may have been written, after the record."""
    facts = [scene.files.files.get(file) for file in record.invalid]
    return any(
        fact is None or not fact.modified or fact.modified >= record.started - _CLOCK_LAG for fact in facts
    )


def _plan(
    op: str,
    disks: tuple[str, ...],
    scene: Scene,
    stages: tuple[Stage, ...],
    *,
    record: IntentRecord | None = None,
    moves: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    resumes: tuple[Step, ...] = (),
    ended: OperationEnd = "finished",
    vanished: str = "",
) -> Plan:
    """The plan; with `record` where its job exists, or the chain shows the outcome."""
    return Plan(
        op=op,
        intent=None,
        disks=disks,
        stages=stages,
        before=scene.graph,
        after=None,
        expect=dict(record.after) if record is not None else {},
        began=dict(record.chains) if record is not None else {},
        moves=tuple(disk for disk in moves if disk in disks),
        invalid=() if record is None else record.invalid if vanished else record.invalid_after,
        invalid_if_stopped=record.invalid if record is not None else (),
        notes=tuple(dict.fromkeys((*record.notes, *notes))) if record is not None and not vanished else notes,
        resumes=resumes,
        ended=ended,
        vanished=vanished,
    )
