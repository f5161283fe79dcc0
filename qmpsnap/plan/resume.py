"""Plan of what is left of an operation whose client went away: finish it, or clear it away.

The job's id tells how it was to end; the record beside the images tells the rest. Without a record
only what the id and the graph tell is done.
"""

from __future__ import annotations

from collections.abc import Mapping

from qmpsnap.errors import Busy, NotFound
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Chains, Graph
from qmpsnap.model.job import ENDED, Ending, Job, JobId, JobStatus, parse_job_id
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan import ownership, resume_checkpoint, resume_inside, resume_revert
from qmpsnap.plan.chain.invalidation import retire
from qmpsnap.plan.chain.layers import left_behind, unused_nodes
from qmpsnap.plan.chain.lineage import kept_found_later
from qmpsnap.plan.checks.disk import holders
from qmpsnap.plan.commands.block import blockdev_add, blockdev_del, flush
from qmpsnap.plan.commands.files import create_file, remove_orphan
from qmpsnap.plan.commands.jobs import adopt_job, await_job, end_copy, job_complete, job_dismiss, job_finalize
from qmpsnap.plan.commands.records import finish_record, keep_moment, write_record
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import local_chains, record_directories, state_questions
from qmpsnap.plan.scene import GuestScene, Scene

# The kernel stamps files with a clock that lags ours by some milliseconds.
_CLOCK_LAG = 0.1
_NOT_STARTED = "the job had not started"


def ask(graph: Graph, *, records: tuple[IntentRecord, ...] = (), state_dir: str = "") -> Ask:
    """What has to be known: every record of the machine's disks, and the files that they name."""
    places = (
        *state_questions(graph, state_dir),
        *(place for record in records for place in record_directories(record)),
    )
    chains = (file for record in records for files in record.chains.values() for file in files)
    named = (file for record in records for file in (*record.made, *record.overlays.values()))
    states = tuple(
        file
        for record in records
        if record.state is not None
        for file in (record.state.file, record.state.partial)
    )
    fresh = (
        (file, record.after[disk][1])
        for record in records
        if record.op == "revert"
        for disk, file in record.overlays.items()
        if len(record.after.get(disk, ())) > 1
    )
    copies = ((record.target, _below_copy(record)) for record in records if record.op == "mirror")
    return Ask(
        files=(*chains, *named, *states),
        records=places,
        memories=tuple(states),
        fresh=(*fresh, *copies),
    )


def plan(job_id: str, scene: Scene) -> Plan:
    """Plan what is left of the operation with that id.

    Raises:
        NotFound: When there is neither a job nor a record of that id, or the record is of another machine.
        Busy: When its client is at work yet.
    """
    name = parse_job_id(job_id)
    job = next((one for one in scene.jobs if one.id == job_id), None)
    record = _record(job_id, scene)
    if name is None or (job is None and record is None):
        raise NotFound(f"there is no job {job_id!r}", hint="qmpsnap jobs lists what there is")
    if record is not None:
        _refuse_not_left(record, scene)
    if record is not None and record.op in {"checkpoint", "save"}:
        return resume_checkpoint.plan(record, scene)
    if record is not None and record.op == "revert":
        return resume_revert.plan(record, scene)
    if (
        record.op in resume_inside.OPS
        if record is not None
        else job is not None and job.type in resume_inside.JOBS
    ):
        return resume_inside.plan(name, job, record, scene)
    if job is not None:
        return _with_job(name, job, record, scene)
    assert record is not None  # noqa: S101 - for the type checker
    match record.op:
        case "snapshot":
            return _snapshot(record, scene)
        case "mirror":
            return _mirror(record, scene)
        case "stream":
            return _stream(record, scene)
        case _:
            return _commit(record, scene)


def _record(job_id: str, scene: Scene) -> IntentRecord | None:
    for record in scene.files.records:
        if isinstance(record, IntentRecord) and record.id == job_id:
            return record
    return None


def _refuse_not_left(record: IntentRecord, scene: Scene) -> None:
    process = scene.machine.process if isinstance(scene, GuestScene) else ""
    if not (
        any(job.id == record.id for job in scene.jobs)
        or ownership.stands_here(record, scene.graph, scene.files.records)
        or ownership.ran_here(record, process)
    ):
        chains = "; ".join(f"{disk}: {' on '.join(files)}" for disk, files in record.chains.items())
        raise NotFound(
            f"{record.id} belongs to another machine ({chains or 'without a file'}), and is not touched",
            hint="connect to that machine; if it is off, start it on the layers that it had",
        )
    if record.live:
        raise Busy(
            f"{record.id} was not interrupted: its client is still at work",
            node="",
            job_id=record.id,
            hint="wait until that client ends",
        )


def _below_copy(record: IntentRecord) -> str:
    """The layer that a mirror's copy of the active layer alone is backed by, or ""."""
    return next((files[1] for files in record.chains.values() if len(files) > 1), "")


def _places(record: IntentRecord, scene: Scene) -> tuple[str, ...]:
    """Where the record lies; last where the chain of after leads to it.

    A mirror whose copy becomes the base image keeps it beside both.
    """
    found = {one.directory for one in scene.files.records if one.id == record.id}
    places = record_directories(record)
    return tuple(place for place in places if place in found or place == record.directory)


def _finish(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """Remove the record wherever it lies."""
    return tuple(finish_record(place, (record.id,)) for place in _places(record, scene))


def _disks(record: IntentRecord, scene: Scene) -> tuple[str, ...]:
    return tuple(disk for disk in record.chains if disk in scene.graph.disks)


def _with_job(name: JobId, job: Job, record: IntentRecord | None, scene: Scene) -> Plan:
    """The job is there: bring it to the end that its id names, then put everything away."""
    if record is not None:
        disks = _disks(record, scene)
    else:
        # With another job of its kind on another disk, only the outcome tells which of them it was.
        disks = tuple(
            disk.name for disk in scene.graph.disks.values() if disk.layers and job in holders(scene, disk)
        )
    end: list[Step] = []
    if job.status not in ENDED and _gets_ready(name, job, record, scene):
        if job.status is not JobStatus.READY:
            end.append(await_job(job.id, "ready"))
        end.append(job_complete(job.id) if name.ending is Ending.PIVOT else end_copy(job.id))
    elif job.status not in ENDED and name.op in {"stream", "commit"}:
        end.append(await_job(job.id, "pending"))
        # Which layer it fills is not told; a flush of one that is not written does nothing.
        end += _flushed(disks, scene)
        end.append(job_finalize(job.id))
    end.append(await_job(job.id, "concluded"))
    target = unused_nodes((record.target,), scene) if record is not None and record.target else ()
    if name.ending is Ending.COPY:
        end += map(blockdev_del, target)
    if record is not None and name.ending is Ending.KEEP and not _keeps_overlay(record):
        end += _flushed(disks, scene, record.after)  # a header names another backing file now
    tidy: list[Step] = []
    notes: tuple[str, ...] = ()
    if record is not None:
        steps, notes = retire(record, scene.files.records)
        tidy += [*map(blockdev_del, left_behind(record, scene)), *steps, *kept_found_later(record, scene)]
        if not _keeps_overlay(record):
            # No chain tells that a copy is whole: the job does, until the record needs it no more.
            (end if name.ending is Ending.COPY else tidy).extend(_finish(record, scene))
    if name.op != "stream":  # which dismisses itself
        end.append(job_dismiss(job.id))
    resumes: list[Step] = []
    if record is not None:
        resumes += [write_record(place, record) for place in _places(record, scene)]
        resumes += [create_file(file, "") for file in record.made]
        resumes += [blockdev_add(node, record.target) for node in target]
    return _plan(
        name.op,
        disks,
        scene,
        (
            Stage(f"finish {job.id}", tuple(end), verify=True),
            Stage("clean up", tuple(tidy), tidy=True),
        ),
        record=record,
        moves=_moves(job.id, disks) if job.status not in ENDED or record is not None else (),
        notes=notes,
        resumes=(*resumes, adopt_job(job.id, dismisses_itself=name.op == "stream")),
    )


def _flushed(
    disks: tuple[str, ...], scene: Scene, only: Mapping[str, tuple[str, ...]] | None = None
) -> list[Step]:
    """Put on the disk what the layers have in QEMU's caches.

    Args:
        disks: The disks.
        scene: What is.
        only: Files of the layers that are there for certain, by disk; None: all.
    """
    layers = [(disk, layer) for disk in disks for layer in scene.graph.disks[disk].layers]
    return [flush(layer.node) for disk, layer in layers if only is None or layer.file in only.get(disk, ())]


def _moves(job_id: str, disks: tuple[str, ...]) -> tuple[str, ...]:
    """The disks whose root an operation of that id moves: whoever comes later has to be told so too."""
    name = parse_job_id(job_id)
    return disks if name is not None and name.ending is Ending.PIVOT else ()


def _gets_ready(name: JobId, job: Job, record: IntentRecord | None, scene: Scene) -> bool:
    """Whether the job waits at READY: every mirror, and a commit of the active layer."""
    if name.op == "mirror" or name.ending is Ending.PIVOT or job.ready:
        return True
    if name.op != "commit":
        return False
    if record is not None:
        return _keeps_overlay(record)
    return any(node.driver == "mirror_top" for node in scene.graph.nodes.values())


def _keeps_overlay(record: IntentRecord) -> bool:
    return record.op == "commit" and not record.policy


def _invalid_after(record: IntentRecord) -> tuple[str, ...]:
    """Files that hold no moment once the commit has succeeded: the folded ones, and what was given up."""
    chain = {file for files in record.chains.values() for file in files}
    given_up = (file for file in record.invalid if file not in chain)
    match record.policy:
        case "rename":
            return (*record.renames.values(), *given_up)
        case "remove":
            return tuple(given_up)
        case _:
            return (*record.folded, *given_up)


def _snapshot(record: IntentRecord, scene: Scene) -> Plan:
    """A snapshot happened, or it did not: its transaction is atomic, so one disk speaks for all."""
    taken = any(
        disk in scene.graph.disks and file in scene.graph.disks[disk].files
        for disk, file in record.overlays.items()
    )
    finish = finish_record(record.directory, (record.id,))
    steps: tuple[Step, ...] = (finish,)
    note = f"snapshot {record.name!r} was taken"
    notes: tuple[str, ...] = ()
    if ownership.has_moment(record, scene.files.records):
        pass
    elif (later := ownership.superseded_by(record, scene.files.records)) is not None:
        note = f"a later operation uses the overlays of {record.id}: {later.id}"
    elif taken:
        steps, notes = (keep_moment(record.directory, record.id, record.name),), record.notes
    else:
        backing = {
            file: record.chains[disk][0] for disk, file in record.overlays.items() if record.chains.get(disk)
        }
        unused = unused_nodes(record.overlays.values(), scene)
        held = {node.file for node in scene.graph.nodes.values()}
        held -= {scene.graph.nodes[name].file for name in unused}
        orphans = (
            remove_orphan(file, backing.get(file))
            for file in record.made
            if file not in held and ownership.may_remove(file, record, scene)
        )
        steps = (*map(blockdev_del, unused), *orphans, finish)
        note = f"snapshot {record.name!r} was not taken; its files are removed"
    stage = Stage(note, steps, tidy=True)
    return _plan("snapshot", _disks(record, scene), scene, (stage,), notes=(note, *notes))


def _mirror(record: IntentRecord, scene: Scene) -> Plan:
    """The job is gone: the mirror had pivoted, or the job had not started, or nobody can tell any more."""
    finish = _finish(record, scene)
    disks = _disks(record, scene)
    if any(record.target in scene.graph.disks[disk].files for disk in disks):
        left = (*map(blockdev_del, left_behind(record, scene)), *kept_found_later(record, scene))
        done = (Stage("the mirror had pivoted", (*left, *finish), tidy=True),)
        return _plan("mirror", disks, scene, done, record=record, moves=_moves(record.id, disks))
    fact = scene.files.files.get(record.target)
    freed = tuple(map(blockdev_del, unused_nodes((record.target,), scene)))
    encrypted = fact is not None and fact.luks and record.target in scene.files.fresh
    if (
        record.made
        and fact is not None
        and (encrypted or fact.kind == "missing" or (fact.kind, fact.size) == ("regular", 0))
    ):
        ours = ownership.may_remove(record.target, record, scene)
        backing = _below_copy(record) if encrypted else None
        steps: tuple[Step, ...] = (
            *freed,
            *((remove_orphan(record.target, backing),) if ours else ()),
            *reversed(finish),
        )
        stays = f"{record.target} stays: it is not known whose empty file it is"
        notes = (_NOT_STARTED,) if ours or fact.kind == "missing" else (_NOT_STARTED, stays)
        return _plan("mirror", disks, scene, (Stage(_NOT_STARTED, steps, tidy=True),), notes=notes)
    return _plan(
        "mirror",
        disks,
        scene,
        (Stage("the job is gone", (*freed, *reversed(finish)), tidy=True),),
        vanished=f"the job is gone; it is not known whether {record.target} is a complete copy, so it was "
        "left there",
    )


def _stream(record: IntentRecord, scene: Scene) -> Plan:
    """The job is gone: the chain tells whether the job had succeeded; no file lost its moment either way."""
    disks = _disks(record, scene)
    finish = finish_record(record.directory, (record.id,))
    if _chains_now(disks, scene) == record.after:
        steps, _ = retire(record, scene.files.records)
        found = kept_found_later(record, scene)
        done = (Stage("the job had succeeded", (*steps, *found, finish), tidy=True),)
        return _plan("stream", disks, scene, done, record=record)
    gone = (Stage("the job is gone", (finish,), tidy=True),)
    vanished = "the job was gone before its end; no snapshot was lost"
    return _plan("stream", disks, scene, gone, vanished=vanished)


def _chains_now(disks: tuple[str, ...], scene: Scene) -> Chains:
    return local_chains(scene.graph.chains(*disks))


def _commit(record: IntentRecord, scene: Scene) -> Plan:
    """The job is gone: what the chain is now tells whether the job had succeeded."""
    disks = _disks(record, scene)
    finish = finish_record(record.directory, (record.id,))
    if _keeps_overlay(record):
        return _plan("commit", disks, scene, (), record=record, notes=("the overlay is kept",))
    if _chains_now(disks, scene) == record.after:
        steps, notes = retire(record, scene.files.records)
        done = (Stage("the job had succeeded", (*_flushed(disks, scene), *steps, finish), tidy=True),)
        return _plan("commit", disks, scene, done, record=record, moves=_moves(record.id, disks), notes=notes)
    if not _written(record, scene):
        not_begun = (Stage(_NOT_STARTED, (finish,), tidy=True),)
        return _plan("commit", disks, scene, not_begun, notes=(_NOT_STARTED,))
    vanished = "the job was gone before its end; it had written into its base"
    return _plan("commit", disks, scene, (), record=record, vanished=vanished)


def _written(record: IntentRecord, scene: Scene) -> bool:
    """Whether the base was, or may have been, written since the record was made."""
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
    vanished: str = "",
) -> Plan:
    stopped = record.invalid if record is not None else ()
    if record is not None and not vanished:
        notes = tuple(dict.fromkeys((*record.notes, *notes)))
    invalid: tuple[str, ...] = ()
    if record is not None and op == "commit":
        invalid = stopped if _keeps_overlay(record) or vanished else _invalid_after(record)
    return Plan(
        op=op,
        intent=None,
        disks=disks,
        stages=stages,
        before=scene.graph,
        after=None,
        expect=dict(record.after) if record is not None else {},
        began=dict(record.chains) if record is not None else {},
        moves=moves,
        invalid=invalid,
        invalid_if_stopped=stopped,
        notes=notes,
        resumes=resumes,
        vanished=vanished,
    )
