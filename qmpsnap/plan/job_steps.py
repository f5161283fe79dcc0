"""Steps on a job that runs: its end, and the wait for it. Part of the vocabulary in steps.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = [
    "AdoptJob",
    "AwaitJob",
    "CancelJob",
    "DismissJob",
    "EndCopy",
    "FinalizeJob",
    "FlushNode",
    "QmpStep",
    "WaitStep",
]

Arguments = dict[str, object]


class QmpStep:
    """A step that is one QMP command."""

    __slots__ = ()
    on: ClassVar[Literal["qmp"]] = "qmp"


class WaitStep:
    """A step that waits for an event; nothing is sent."""

    __slots__ = ()
    on: ClassVar[Literal["wait"]] = "wait"


@dataclass(frozen=True, slots=True)
class EndCopy(QmpStep):
    """End a READY job without a pivot, its target consistent. QAPI: block-job-cancel, force false.

    job-cancel would not do: it is force, and promises nothing about the target.
    """

    job_id: str
    command: ClassVar[str] = "block-job-cancel"

    @property
    def arguments(self) -> Arguments:
        """The job."""
        return {"device": self.job_id, "force": False}


@dataclass(frozen=True, slots=True)
class FlushNode(QmpStep):
    """Put on the disk what a node has in its caches. HMP: qemu-io; QMP has no command for it.

    Only an empty answer is a success. Whether the flush itself failed QEMU tells nobody but its own
    standard error.
    """

    node: str
    command: ClassVar[str] = "human-monitor-command"

    @property
    def arguments(self) -> Arguments:
        """The line for the human monitor; node names have no character that it would take for its own."""
        return {"command-line": f"qemu-io {self.node} flush"}


@dataclass(frozen=True, slots=True)
class FinalizeJob(QmpStep):
    """Let a job end that waits for it. QAPI: job-finalize (job.json)."""

    job_id: str
    command: ClassVar[str] = "job-finalize"

    @property
    def arguments(self) -> Arguments:
        """The job."""
        return {"id": self.job_id}


@dataclass(frozen=True, slots=True)
class CancelJob(QmpStep):
    """Stop a job wherever it stands. QAPI: job-cancel (job.json)."""

    job_id: str
    command: ClassVar[str] = "job-cancel"

    @property
    def arguments(self) -> Arguments:
        """The job."""
        return {"id": self.job_id}


@dataclass(frozen=True, slots=True)
class DismissJob(QmpStep):
    """Let a concluded job go. QAPI: job-dismiss (job.json)."""

    job_id: str
    command: ClassVar[str] = "job-dismiss"

    @property
    def arguments(self) -> Arguments:
        """The job."""
        return {"id": self.job_id}


@dataclass(frozen=True, slots=True)
class AwaitJob(WaitStep):
    """Wait for a job's event. QAPI: JOB_STATUS_CHANGE (job.json).

    Attributes:
        job_id: The job.
        until: "ready" (a mirror or an active commit has caught up), "pending" (a stream has copied all,
            and waits to be finalized) or "concluded".
    """

    job_id: str
    until: Literal["ready", "pending", "concluded"]
    command: ClassVar[str] = "await-job"

    @property
    def arguments(self) -> Arguments:
        """The job and what is waited for."""
        return {"id": self.job_id, "until": self.until}


@dataclass(frozen=True, slots=True)
class AdoptJob(WaitStep):
    """Take over a job of ours that an earlier client started; nothing is sent.

    Attributes:
        job_id: The job.
        dismisses_itself: Whether QEMU lets it go at its end.
    """

    job_id: str
    dismisses_itself: bool = False
    command: ClassVar[str] = "adopt-job"

    @property
    def arguments(self) -> Arguments:
        """The job."""
        return {"id": self.job_id}
