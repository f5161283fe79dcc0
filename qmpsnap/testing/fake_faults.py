"""Faults of a fake target: each happens once."""

from __future__ import annotations

from dataclasses import dataclass

from qmpsnap.errors import CommandFailed, JobFailed, QmpsnapError
from qmpsnap.model.step import Step

__all__ = ["Fault", "Faults", "failed", "refused"]


def refused(desc: str, *, command: str = "", qmp_class: str = "GenericError") -> CommandFailed:
    """QEMU's error reply, as an error."""
    return CommandFailed(desc, command=command, arguments={}, qmp_class=qmp_class, desc=desc)


def failed(job_id: str, error: str) -> JobFailed:
    """A job's failure, as an error."""
    return JobFailed(f"job {job_id!r} failed: {error}", job_id=job_id, error=error)


@dataclass(frozen=True, slots=True)
class Fault:
    """An error at a step.

    Attributes:
        at: A step, or a command; "graph" for a reading of the graph.
        error: What is raised.
        happened: Whether the step is performed nevertheless.
    """

    at: Step | str
    error: QmpsnapError
    happened: bool


class Faults:
    """Pending faults, in the order in which they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Let the fault happen at the next such step."""
        self._faults.append(fault)

    def take(self, at: Step | str) -> Fault | None:
        """Remove and return the fault that happens now, if any."""
        names = (at,) if isinstance(at, str) else (at, at.command)
        fault = next((fault for fault in self._faults if fault.at in names), None)
        if fault is not None:
            self._faults.remove(fault)
        return fault
