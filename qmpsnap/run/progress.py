"""How far a job is, and how fast it goes: the rate is computed from consecutive samples."""

from __future__ import annotations

from collections import deque

import anyio
from msgspec import Struct

from qmpsnap.model.job import Job

_WINDOW = 8  # samples that a rate is computed from


class Progress(Struct, frozen=True):
    """How far a job is.

    Attributes:
        job: The job as QEMU reported it just now; for VM state that is saved or loaded, a job of type
        "migrate".
        rate: Its recent speed in units of `job.length` (bytes, for block jobs) a second; None
            while there are too few samples.
        remaining: Seconds left at that rate; None when it is not known.
    """

    job: Job
    rate: float | None
    remaining: float | None

    def to_json(self) -> dict[str, object]:
        """The sample as `--progress --json` prints it."""
        return {
            "job": self.job.id,
            "status": self.job.status.value,
            "offset": self.job.offset,
            "length": self.job.length,
            "rate": self.rate,
            "remaining_s": self.remaining,
        }


class Meter:
    """Collects the samples of one job."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def look(self, job: Job) -> Progress:
        """Add a sample."""
        self._looks.append((anyio.current_time(), job.offset))
        (since, start), (now, offset) = self._looks[0], self._looks[-1]
        if now <= since or offset < start:
            return Progress(job, None, None)
        rate = (offset - start) / (now - since)
        return Progress(job, rate, (job.length - offset) / rate if rate > 0 else None)
