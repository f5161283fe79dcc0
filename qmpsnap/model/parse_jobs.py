"""Jobs from QEMU's answers: only this file reads `query-jobs` and `query-block-jobs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qmpsnap.errors import Malformed
from qmpsnap.model.job import IoStatus, Job, JobStatus

__all__ = ["parse_jobs", "parse_status"]


def parse_jobs(query_jobs: object, query_block_jobs: object) -> tuple[Job, ...]:
    """Join both answers into jobs, in QEMU's order.

    `query-jobs` says which jobs there are. A block job that only the other answer has came or
    went between the two, and is left out. Keys that we do not know are no harm.

    Args:
        query_jobs: What `query-jobs` returned.
        query_block_jobs: What `query-block-jobs` returned; an empty list leaves `speed` and
            `io_status` None.

    Raises:
        Malformed: When an answer has not the shape that the schema promises.

    QAPI: query-jobs (job.json), query-block-jobs (block-core.json).
    """
    block_jobs = {_text(entry, "device"): entry for entry in _entries(query_block_jobs, "query-block-jobs")}
    jobs = []
    for entry in _entries(query_jobs, "query-jobs"):
        job_id = _text(entry, "id")
        jobs.append(_job(job_id, entry, block_jobs.get(job_id)))
    return tuple(jobs)


def parse_status(value: object) -> JobStatus | None:
    """Return the state that a word names; None when it names none that we know."""
    try:
        return JobStatus(value)  # type: ignore[arg-type]
    except ValueError:
        return None


def _job(job_id: str, entry: Mapping[str, object], block: Mapping[str, object] | None) -> Job:
    word = _text(entry, "status")
    status = parse_status(word)
    if status is None:
        raise Malformed(f"job {job_id!r} has a state that we do not know: {word!r}")
    error = entry.get("error")
    job = Job(
        id=job_id,
        type=_text(entry, "type"),
        status=status,
        offset=_number(entry, "current-progress"),
        length=_number(entry, "total-progress"),
        error=None if error is None else str(error),
        paused=status in {JobStatus.PAUSED, JobStatus.STANDBY},
        ready=status in {JobStatus.READY, JobStatus.STANDBY},
    )
    if block is None:
        return job
    return replace(
        job, speed=_number(block, "speed"), io_status=_io_status(job_id, _text(block, "io-status"))
    )


def _io_status(job_id: str, word: str) -> IoStatus:
    try:
        return IoStatus(word)
    except ValueError:
        raise Malformed(f"job {job_id!r} has an I/O status that we do not know: {word!r}") from None


def _entries(answer: object, command: str) -> list[Mapping[str, object]]:
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        raise Malformed(f"{command!r} answered with {type(answer).__name__}, not with a list")
    entries: list[Mapping[str, object]] = []
    for entry in answer:
        if not isinstance(entry, Mapping):
            raise Malformed(f"{command!r} answered with {entry!r} in its list, not with an object")
        entries.append(entry)
    return entries


def _text(entry: Mapping[str, object], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise Malformed(f"a job without a text for {key!r}: {dict(entry)!r}")
    return value


def _number(entry: Mapping[str, object], key: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Malformed(f"a job without a number for {key!r}: {dict(entry)!r}")
    return value
