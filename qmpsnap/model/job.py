"""Jobs: their states, what each state allows, and what a job's id says.

The two tables are QEMU's own (job.c, JobSTT and JobVerbTable), as data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from msgspec import Struct

from qmpsnap.model.frozen import JsonStruct


class JobStatus(StrEnum):
    """The state of a job. QAPI: JobStatus (job.json)."""

    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"


class JobVerb(StrEnum):
    """A command on a job. QAPI: JobVerb (job.json)."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    SET_SPEED = "set-speed"
    COMPLETE = "complete"
    FINALIZE = "finalize"
    DISMISS = "dismiss"


class IoStatus(StrEnum):
    """The effect of an I/O error on a job. QAPI: BlockDeviceIoStatus (block-core.json)."""

    OK = "ok"
    FAILED = "failed"
    NOSPACE = "nospace"


class Ending(StrEnum):
    """How a job of ours is to end."""

    PIVOT = "pivot"  # job-complete at READY: the disk gets another root
    COPY = "copy"  # block-job-cancel without force at READY: the root stays
    KEEP = "keep"  # it ends by itself, and the root stays


_S = JobStatus
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = MappingProxyType(
    {
        _S.UNDEFINED: frozenset({_S.CREATED}),
        _S.CREATED: frozenset({_S.RUNNING, _S.ABORTING, _S.NULL}),
        _S.RUNNING: frozenset({_S.PAUSED, _S.READY, _S.WAITING, _S.ABORTING}),
        _S.PAUSED: frozenset({_S.RUNNING}),
        _S.READY: frozenset({_S.STANDBY, _S.WAITING, _S.ABORTING}),
        _S.STANDBY: frozenset({_S.READY}),
        _S.WAITING: frozenset({_S.PENDING, _S.ABORTING}),
        _S.PENDING: frozenset({_S.ABORTING, _S.CONCLUDED}),
        _S.ABORTING: frozenset({_S.ABORTING, _S.CONCLUDED}),
        _S.CONCLUDED: frozenset({_S.NULL}),
        _S.NULL: frozenset(),
    }
)
"""The states that may follow each state."""

_ALIVE = frozenset({_S.CREATED, _S.RUNNING, _S.PAUSED, _S.READY, _S.STANDBY})
VERBS: Mapping[JobVerb, frozenset[JobStatus]] = MappingProxyType(
    {
        JobVerb.CANCEL: _ALIVE | {_S.WAITING, _S.PENDING},
        JobVerb.PAUSE: _ALIVE,
        JobVerb.RESUME: _ALIVE,
        JobVerb.SET_SPEED: _ALIVE,
        # QEMU 7.2, 10.0 and 11.1 take it in standby too; the job then completes when it is resumed.
        JobVerb.COMPLETE: frozenset({_S.READY, _S.STANDBY}),
        JobVerb.FINALIZE: frozenset({_S.PENDING}),
        JobVerb.DISMISS: frozenset({_S.CONCLUDED}),
    }
)
"""The states in which QEMU takes each verb."""

ENDED = frozenset({_S.CONCLUDED, _S.NULL})
"""The states in which a job does nothing any more."""

STAYS = _ALIVE - {_S.CREATED, _S.RUNNING} | {_S.WAITING, _S.PENDING}
"""The states in which a job may remain until a client, or another job, lets it continue; or pass through."""


class JobId(Struct, frozen=True):
    """The name of a job of ours, taken apart: `qmpsnap-<op>-<ending>-<token>`.

    Attributes:
        op: The operation, such as "commit"; a word.
        ending: What has to be done at its end.
        token: Eight hexadecimal digits.
    """

    op: str
    ending: Ending
    token: str

    def __str__(self) -> str:
        return f"qmpsnap-{self.op}-{self.ending}-{self.token}"


_GRAMMAR = re.compile(r"qmpsnap-([a-z]+)-({})-([0-9a-f]{{8}})".format("|".join(Ending)))


def parse_job_id(text: str) -> JobId | None:
    """Take a job's id apart; None when it is not one of ours."""
    match = _GRAMMAR.fullmatch(text)
    return JobId(match[1], Ending(match[2]), match[3]) if match else None


class Job(JsonStruct, frozen=True):
    """One job, as QEMU reported it at one moment.

    Attributes:
        id: Its name.
        type: QEMU's kind of job: stream, commit, mirror, backup, create, ...
        status: Its state.
        offset: How much is done, in the unit of `length`.
        length: How much there is to do; may grow, and may be 0. Bytes, for block jobs.
        speed: Limit in bytes per second, 0 for none; None when QEMU did not report it.
        error: QEMU's text if it failed; None while it runs and after success.
        io_status: What an I/O error did; None when it is not a block job.
        paused: Whether it is paused: on request, by an error, or briefly by a drain.
        ready: Whether source and target are in sync; it can then be completed.
    """

    id: str
    type: str
    status: JobStatus
    offset: int = 0
    length: int = 0
    speed: int | None = None
    error: str | None = None
    io_status: IoStatus | None = None
    paused: bool = False
    ready: bool = False

    @property
    def mine(self) -> bool:
        """Whether its id says that it is ours."""
        return parse_job_id(self.id) is not None

    @property
    def op(self) -> str | None:
        """The operation that it belongs to; None when it is not ours."""
        name = parse_job_id(self.id)
        return name.op if name else None

    @property
    def ending(self) -> Ending | None:
        """How it is to end; None when it is not ours."""
        name = parse_job_id(self.id)
        return name.ending if name else None

    @property
    def fraction(self) -> float:
        """How much is done, from 0 to 1; a job without length is at 1 once it is ready or has ended."""
        if self.length <= 0:
            return 1.0 if self.ready or self.status in ENDED else 0.0
        return min(max(self.offset / self.length, 0.0), 1.0)

    @property
    def stopped_by_error(self) -> bool:
        """Whether an I/O error paused it and it has not been resumed since.

        QEMU sets the I/O status only with the policies `stop` and `enospc`, and clears it
        when the job is resumed. A pause without it was requested, or is brief.
        """
        return self.paused and self.io_status in {IoStatus.FAILED, IoStatus.NOSPACE}

    def to_json(self) -> dict[str, object]:
        """The job as `jobs --json` prints it."""
        return {**super().to_json(), "ours": self.mine}
