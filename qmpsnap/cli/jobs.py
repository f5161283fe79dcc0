"""`qmpsnap jobs`: list jobs and interrupted operations."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from qmpsnap.cli.app import verb
from qmpsnap.cli.output import Row, emit, json_line, relative, table, to_stderr, wrap
from qmpsnap.cli.runner import current_app, run
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import Refused
from qmpsnap.model.backup import RunningBackup
from qmpsnap.model.interrupted import LeftBehind, finishing, needs_guest, what_it_was
from qmpsnap.model.job import ENDED, IoStatus, Job, JobStatus
from qmpsnap.model.job_place import JobPlace
from qmpsnap.model.printable import printable
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.units import size
from qmpsnap.vm import VM

_HEADER = ("ID", "TYPE", "STATE", "DONE", "LIMIT", "WHOSE")
_RIGHT = ("DONE", "LIMIT")


@verb(
    "jobs", example="qmpsnap -s /run/vm1/qmp.sock jobs", short_help="List jobs, and interrupted operations."
)
def jobs() -> None:
    """List the jobs of all clients, running backups, and operations that were interrupted."""
    closed = bool(current_app().images)  # until something was interrupted: planning the rest needs them open

    async def work(vm: VM, _: Signals) -> _Seen:
        running = await vm.jobs.list()
        alive = {job.id for job in running}
        places: Mapping[str, JobPlace] = {}
        behind: tuple[LeftBehind, ...] = ()
        backups: tuple[RunningBackup, ...] = ()
        try:
            graph = await vm.graph()
            places = await vm.jobs.places(graph) if running else {}
            records = await vm.jobs.interrupted(graph)
            behind = await vm.jobs.left_behind(graph)
            backups = await vm.jobs.backups(graph)
        except Refused as error:  # the jobs are known, and one of them may be the reason
            to_stderr(f"warning: cannot search for interrupted operations: {printable(error.message)}")
            to_stderr(f"  next: {printable(error.hint)}")
            records = ()
        left = [record for record in records if record.id not in alive and not record.permanent]
        listed = [_Listed(job, places.get(job.id, JobPlace())) for job in running]
        return _Seen(listed, left, [] if closed else await _planned(vm, left), behind, backups)

    listed, left, interrupted, behind, backups = run(work, looks=True)
    if closed and left:
        waiting = [_Left(record, "", starts=True) for record in left if needs_guest(record)]
        left = [record for record in left if not needs_guest(record)]
        interrupted = [*waiting, *(run(lambda vm, _: _planned(vm, left)) if left else [])]
    if current_app().json:
        emit(
            json_line(
                jobs=[job.to_json() for job in listed],
                interrupted=[item.to_json() for item in interrupted],
                backups=[_backup_json(backup) for backup in backups],
                left=[{**item.to_json(), "ways": [shlex.join(item.remedy)]} for item in behind],
            )
        )
        return
    lines = table(_HEADER, [job.row() for job in listed], right=_RIGHT, indent="") if listed else []
    for backup in backups:
        lines += _backup_text(backup)
    for item in interrupted:
        lines += item.text()
    for thing in behind:
        lines += _left_behind(thing)
    emit(*lines or ["no jobs"])


async def _planned(vm: VM, records: Iterable[IntentRecord]) -> list[_Left]:
    """What is left of each operation."""
    return [_Left(record, await _vanished(vm, record)) for record in records]


async def _vanished(vm: VM, record: IntentRecord) -> str:
    """Why it cannot be completed, or ""."""
    try:
        return (await vm.jobs.plan(record.id)).vanished
    except Refused:  # something is in the way now, as its command will say
        return ""


class _Seen(NamedTuple):
    """What there is: jobs, interrupted operations, those of which the rest is planned, images, backups."""

    listed: list[_Listed]
    left: list[IntentRecord]
    planned: list[_Left]
    behind: tuple[LeftBehind, ...]
    backups: tuple[RunningBackup, ...]


def _backup_text(backup: RunningBackup) -> list[str]:
    """The lines of text output about a backup that is running."""
    who = f", by {backup.process}" if backup.process else ""
    what = f"{backup.id}: backup of {', '.join(backup.disks)}, started {_ago(backup.created)}{who}"
    return [*wrap(printable(what), more="  "), f"  {backup.ends}"]


def _backup_json(backup: RunningBackup) -> dict[str, object]:
    """The entry of `--json`."""
    return {**backup.to_json(), "created": backup.created, "age_s": _age(backup.created)}


def _left_behind(left: LeftBehind) -> list[str]:
    """The lines of text output about what a killed process has left beside layers."""
    what = f"a template in {left.directory}" if left.kind == "template" else "a fork"
    lines = wrap(f"{printable(what)}: its client is gone, and has left", more="  ")
    lines += [f"  {printable(relative(file))}" for file in left.files]
    return [*lines, f"  to remove that: {printable(shlex.join(left.remedy))}"]


@dataclass(frozen=True, slots=True)
class _Listed:
    """A job, and where it works."""

    job: Job
    place: JobPlace

    def row(self) -> Row:
        """The row of the table."""
        job, place = self.job, self.place
        cells = (
            job.id,
            job.type,
            job_state(job),
            f"{job.fraction:.0%} of {size(job.length)}",
            f"{size(job.speed)}/s" if job.speed else "",
            "ours" if job.mine else "another's",
        )
        where = [f"of {place.disk}"] if place.disk else []
        where += [f"started {_ago(place.created) if place.created else 'at an unknown time'}"]
        where += [f"into {relative(place.target)}"] if place.target else []
        remarks = [", ".join(where)] if where else []
        remarks += [f"error: {job.error}"] if job.error else []
        remarks += [way if index == 0 else f"or {way}" for index, way in enumerate(_ways(job))]
        return Row(cells, tuple(remarks))

    def to_json(self) -> dict[str, object]:
        """The entry of `--json`."""
        place = self.place
        age = {"age_s": _age(place.created) if place.created else None}
        return {**self.job.to_json(), **place.to_json(), **age, "ways": _ways(self.job)}


def _age(created: str) -> float:
    """Seconds since an ISO 8601 time; 0 for a future time, by another clock."""
    return max((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds(), 0.0)


def _ago(created: str) -> str:
    """The time since then, such as "12 s ago", "3 days ago"."""
    age = _age(created)
    for unit, seconds in (("days", 86400), ("h", 3600), ("min", 60)):
        if age >= 2 * seconds:
            return f"{age / seconds:.0f} {unit} ago"
    return f"{age:.0f} s ago"


def job_state(job: Job) -> str:
    """The job's state, and why it is paused if an error paused it."""
    if job.stopped_by_error:
        return "paused: no space" if job.io_status is IoStatus.NOSPACE else "paused: I/O error"
    if job.status is JobStatus.PENDING and job.mine:
        return "pending: job wait"
    return str(job.status)


def _ways(job: Job) -> list[str]:
    """Commands that finish or cancel a job of ours, the most likely first."""
    if not job.mine:
        return []
    if job.status in ENDED:
        return [f"qmpsnap job wait {job.id}"]
    if job.stopped_by_error:
        return [f"qmpsnap job resume {job.id}", f"qmpsnap job cancel {job.id}"]
    return [f"qmpsnap job wait {job.id}", f"qmpsnap job cancel {job.id}"]


@dataclass(frozen=True, slots=True)
class _Left:
    """An interrupted operation without a job.

    Attributes:
        record: Its record.
        vanished: Why it cannot be completed, or "".
        starts: Whether the machine is off, and has to be started first.
    """

    record: IntentRecord
    vanished: str
    starts: bool = False

    @property
    def way(self) -> str:
        """The command that finishes it: the remaining steps, or the whole commit again."""
        return shlex.join(finishing(self.record, vanished=bool(self.vanished)))

    def text(self) -> list[str]:
        """The lines of text output."""
        record = self.record
        became = "was stopped half-way" if self.vanished else "its client is gone"
        lines = wrap(
            f"{record.id}: {printable(what_it_was(record))}, started {_ago(record.created)}, {became}",
            more="  ",
        )
        lines += [f"  into {printable(relative(record.written))}"] if record.written else []
        lines += [
            f"  invalid, no longer holds its snapshot: {printable(relative(file))}" for file in record.invalid
        ]
        first = "start the machine, and then: " if self.starts else ""
        return [*lines, f"  to finish it: {first}{printable(self.way)}"]

    def to_json(self) -> dict[str, object]:
        """The entry of `--json`."""
        age = _age(self.record.created)
        return {**self.record.to_json(), "age_s": age, "vanished": self.vanished, "ways": [self.way]}
