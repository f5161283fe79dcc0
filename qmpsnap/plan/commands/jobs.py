"""Jobs: stream, commit and mirror are started, watched and ended. QAPI: block-core.json, job.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.step import DropLayers, Later, MoveRoot, Root, Step
from qmpsnap.plan.intent import OnError, Sync


def block_stream(
    *,
    job: str,
    node: str,
    base_node: str | None,
    backing: str | None,
    on_error: OnError,
    speed: int,
    effect: DropLayers,
) -> Step:
    """Copy backing data up into a layer. QAPI: block-stream.

    The job waits to be finalized: QEMU would name the new backing file in the layer's header before all of
    the data is on the disk. It dismisses itself, unlike those of commit and mirror: QEMU 7.2 crashes when
    anybody asks for its block nodes while a concluded stream job waits to be dismissed
    (docs/explanation/qemu.md).

    Args:
        job: The job's id.
        node: node-name of the layer that receives the data.
        base_node: node-name of the layer that stays below, or None.
        backing: Name to record as backing file instead of the base's path, or None.
        on_error: The job's error policy.
        speed: Limit in bytes/s; 0: none.
        effect: The layers that leave.
    """
    arguments = {
        "job-id": job,
        "device": node,
        "base-node": base_node,
        "backing-file": backing,
        "on-error": on_error,
        "speed": speed,
        "auto-finalize": False,
    }
    return _starts("block-stream", arguments, effect, undo=_cancelled(job, dismissed=False), writes=True)


def block_commit(
    *,
    job: str,
    root: str,
    top_node: str,
    base_node: str,
    backing: str | None,
    on_error: OnError,
    speed: int,
    effect: DropLayers | Later,
) -> Step:
    """Copy layers' data down into the base. QAPI: block-commit.

    Without the active layer the job waits to be finalized: QEMU flushes the base only where it opens that
    read-only again, and some operations leave a base writable (docs/explanation/qemu.md). With it, QEMU
    flushes the base itself, and the job waits at READY.

    Args:
        job: The job's id.
        root: node-name of the disk's root.
        top_node: node-name of the newest layer that is folded.
        base_node: node-name of the layer that receives the data.
        backing: Name to record in the overlay of top instead of the base's path, or None.
        on_error: The job's error policy.
        speed: Limit in bytes/s; 0: none.
        effect: The layers that leave; or, with the active layer, the root that moves later.
    """
    arguments = {
        "job-id": job,
        "device": root,
        "top-node": top_node,
        "base-node": base_node,
        "backing-file": backing,
        "on-error": on_error,
        "speed": speed,
        "auto-finalize": None if isinstance(effect, Later) else False,
        "auto-dismiss": False,
    }
    return _starts("block-commit", arguments, effect, undo=_cancelled(job), writes=True)


def mirror_job(
    *,
    job: str,
    root: str,
    replaces: str | None,
    copy: Root,
    sync: Sync,
    opens: Literal["existing", "absolute-paths"] | None,
    on_error: OnError,
    speed: int,
) -> Step:
    """Copy a disk elsewhere and follow its writes. QAPI: drive-mirror, blockdev-mirror.

    drive-mirror takes no secret; and without devices QEMU would close at once what it opens, for nobody uses
    it after the pivot. Such a copy was opened before.

    Args:
        job: The job's id.
        root: node-name of the disk's root.
        replaces: node-name of the active layer when a filter stands above it, or None.
        copy: What the disk reads once the job is completed.
        sync: "full", "top" or "none".
        opens: How QEMU opens the copy's file: as it is, or formatted before; None: it is open.
        on_error: The job's error policy, of source and target.
        speed: Limit in bytes/s; 0: none.
    """
    file = {"target": copy.file, "format": copy.format, "node-name": copy.node}
    arguments = {
        "job-id": job,
        "device": root,
        "replaces": replaces,
        **(file if opens else {"target": copy.node}),
        "sync": sync,
        "mode": opens,
        "on-source-error": on_error,
        "on-target-error": on_error,
        "speed": speed,
        "auto-dismiss": False,
    }
    command = "drive-mirror" if opens else "blockdev-mirror"
    return _starts(command, arguments, Later(MoveRoot(copy)), undo=_cancelled(job))


def _starts(
    command: str,
    arguments: Mapping[str, object],
    effect: DropLayers | Later,
    *,
    undo: tuple[Step, ...],
    writes: bool = False,
) -> Step:
    sent = Frozen({name: value for name, value in arguments.items() if value is not None})
    return Step(on="qmp", command=command, arguments=sent, undo=undo, effect=effect, writes=writes)


def _cancelled(job: str, *, dismissed: bool = True) -> tuple[Step, ...]:
    """What takes a job's start back."""
    return (job_cancel(job), await_job(job, "concluded"), *((job_dismiss(job),) if dismissed else ()))


def copied_and_finalized(start: Step, *, filled: Step, named: Step) -> tuple[Step, ...]:
    """A job that waits to be finalized, from its start to its end; what it writes is put on the disk.

    Args:
        start: What starts the job.
        filled: What flushes the layer that receives the data.
        named: What flushes the layer whose header names another backing file in the end.
    """
    job = start.job_id
    return (
        start,
        await_job(job, "pending"),
        filled,
        job_finalize(job),
        await_job(job, "concluded"),
        named,
    )


def copied_and_ended(start: Step, *, pivot: bool) -> tuple[Step, ...]:
    """A job that waits at READY, from its start to its end: the disk pivots, or the copy is left."""
    job = start.job_id
    assert isinstance(start.effect, Later)  # noqa: S101 - for the type checker
    end = job_complete(job, start.effect.effect) if pivot else end_copy(job)
    return (start, await_job(job, "ready"), end, await_job(job, "concluded"))


def done_and_dismissed(start: Step) -> tuple[Step, ...]:
    """A job on VM state from its start to its dismissal; it cannot be cancelled."""
    return (start, await_job(start.job_id, "concluded"), job_dismiss(start.job_id))


def job_complete(job: str, effect: MoveRoot | None = None) -> Step:
    """Let a READY job pivot; without `effect` where it is not known which root moves. QAPI: job-complete."""
    return Step(on="qmp", command="job-complete", arguments=Frozen(id=job), effect=effect, final=True)


def end_copy(job: str) -> Step:
    """End a READY job without a pivot, its target consistent. QAPI: block-job-cancel, force false.

    job-cancel would not do: it is force, and promises nothing about the target.
    """
    return Step(
        on="qmp", command="block-job-cancel", arguments=Frozen({"device": job, "force": False}), final=True
    )


def job_finalize(job: str) -> Step:
    """Let a job end that waits to be finalized. QAPI: job-finalize."""
    return Step(on="qmp", command="job-finalize", arguments=Frozen(id=job), final=True)


def job_cancel(job: str) -> Step:
    """Stop a job in whichever state it is. QAPI: job-cancel."""
    return Step(on="qmp", command="job-cancel", arguments=Frozen(id=job))


def job_dismiss(job: str) -> Step:
    """Remove a concluded job from QEMU's list. QAPI: job-dismiss."""
    return Step(on="qmp", command="job-dismiss", arguments=Frozen(id=job))


def await_job(job: str, until: Literal["ready", "pending", "concluded"]) -> Step:
    """Wait until a job's status has come: "pending" means that all is copied. QAPI: JOB_STATUS_CHANGE."""
    return Step(on="wait", command="await-job", arguments=Frozen(id=job, until=until))


def adopt_job(job: str, *, dismisses_itself: bool = False) -> Step:
    """Take over a job of ours that an earlier client started; nothing is sent."""
    undo = _cancelled(job, dismissed=not dismisses_itself)
    return Step(on="wait", command="adopt-job", arguments=Frozen(id=job), undo=undo)
