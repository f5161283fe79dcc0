"""Troubles of jobs: nobody will finish them, or they do not go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from qmpsnap.model.hints import qmp_words
from qmpsnap.model.interrupted import finishing, needs_guest, what_it_was
from qmpsnap.model.job import ENDED, IoStatus, Job, JobStatus
from qmpsnap.plan.diagnosis.facts import Case, Facts

_PAUSED = frozenset({JobStatus.PAUSED, JobStatus.STANDBY})
_WAITS = frozenset({JobStatus.PENDING, JobStatus.READY})


def operation_left(facts: Facts) -> Iterator[Case]:
    """An operation of ours whose client is gone."""
    jobs = {job.id: job for job in facts.jobs}
    known = set[str]()
    for record in facts.operations:
        job = jobs.get(record.id)
        known.add(record.id)
        if record.live or (record.permanent and job is None) or (job is not None and job.stopped_by_error):
            continue
        vanished = facts.vanished.get(record.id, "")
        state = f", and its job is {job.status}" if job is not None else ""
        invalid = f"; no longer valid: {', '.join(record.invalid)}" if record.invalid and vanished else ""
        cause = f"the client of {what_it_was(record)} ended before it was finished{state}{invalid}"
        remedy = finishing(record, vanished=bool(vanished))
        if facts.off and needs_guest(record):
            yield Case(record.id, cause, advice=f"start the machine, and then: {shlex.join(remedy)}")
            continue
        yield Case(
            record.id,
            cause,
            remedy,
            "" if job is None or job.status in ENDED else "it waits until the job ends",
        )
    for job in facts.jobs:
        # Where no record can be seen, its client may be at work on another host.
        unattended = job.status in ENDED or facts.moments.records_seen
        if job.mine and job.id not in known and not job.stopped_by_error and unattended:
            yield Case(
                job.id,
                f"this {job.type} job is {job.status}, and no record of its operation is left",
                ("qmpsnap", "job", "wait", job.id),
                "unless its client is at work, and keeps its record elsewhere (--state-dir)",
            )


def job_stopped(facts: Facts) -> Iterator[Case]:
    """A job that an I/O error has paused."""
    for job in facts.jobs:
        if job.stopped_by_error:
            full = job.io_status is IoStatus.NOSPACE
            yield Case(
                job.id,
                f"this {job.type} job is paused: {'there is no space' if full else 'an I/O error'} where it "
                "reads or writes",
                ("qmpsnap", "job", "resume", job.id, *_foreign(job)),
                "make space first, or it is paused again"
                if full
                else "it is paused again if the error stays",
            )


def job_paused(facts: Facts) -> Iterator[Case]:
    """A job that somebody has paused."""
    at_work = {record.id for record in facts.at_work}
    for job in facts.jobs:
        if job.status in _PAUSED and not job.stopped_by_error and (not job.mine or job.id in at_work):
            yield Case(
                job.id,
                f"this {job.type} job is {job.status}: it waits for a client that lets it go on",
                ("qmpsnap", "job", "resume", job.id, *_foreign(job)),
                "a client paused it; or an error did, and resuming the guest has cleared the reason",
            )


def job_concluded(facts: Facts) -> Iterator[Case]:
    """A job of another client that has ended and was not dismissed."""
    for job in facts.jobs:
        if not job.mine and job.status is JobStatus.CONCLUDED:
            outcome = f"it failed ({job.error})" if job.error else "it succeeded"
            yield Case(
                job.id,
                f"this {job.type} job of another client has ended, {outcome}, and still keeps its name",
                qmp_words("job-dismiss", id=job.id),
                "unless its client still wants to read the outcome",
            )


def job_waits(facts: Facts) -> Iterator[Case]:
    """A job of another client that waits to be told how it is to end."""
    for job in facts.jobs:
        if not job.mine and job.status in _WAITS:
            verb = "job-finalize" if job.status is JobStatus.PENDING else "job-complete"
            yield Case(
                job.id,
                f"this {job.type} job of another client is {job.status}, and holds its disk",
                qmp_words(verb, id=job.id),
                "if its client is gone. A mirror or commit that completes moves the disk to its target: "
                f"qmpsnap job cancel {job.id} --foreign gives it up instead",
            )


def _foreign(job: Job) -> tuple[str, ...]:
    return () if job.mine else ("--foreign",)
