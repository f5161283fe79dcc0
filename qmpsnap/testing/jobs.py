"""Jobs for a scripted QMP server: what QEMU says of them when asked, and by itself.

jobs = ScriptedJobs(server)
jobs.put("drive0", "concluded", error="No space left on device")
server.emit(*job_turns("drive0", "aborting", "concluded"))
"""

from __future__ import annotations

from dataclasses import dataclass

from qmpsnap.testing.server import Emit, QmpServer

__all__ = ["ScriptedJobs", "job_turns"]


def job_turns(job_id: str, *states: str, at: float = 100.0) -> list[Emit]:
    """Return a JOB_STATUS_CHANGE to each state, the first at `at` seconds, the others a second apart."""
    return [
        Emit("JOB_STATUS_CHANGE", {"id": job_id, "status": state}, at + number)
        for number, state in enumerate(states)
    ]


@dataclass(frozen=True, slots=True)
class _Entry:
    status: str
    offset: int
    length: int
    io_status: str
    error: str | None


class ScriptedJobs:
    """Answers query-jobs and query-block-jobs of a server with what `put` says."""

    def __init__(self, server: QmpServer) -> None:
        self._entries: dict[str, _Entry] = {}
        server.compute("query-jobs", lambda _: self.jobs())
        server.compute("query-block-jobs", lambda _: self.block_jobs())

    def put(
        self,
        job_id: str,
        status: str,
        *,
        offset: int = 0,
        length: int = 8,
        io_status: str = "ok",
        error: str | None = None,
    ) -> None:
        """Add or replace a mirror job with this state."""
        self._entries[job_id] = _Entry(status, offset, length, io_status, error)

    def remove(self, job_id: str) -> None:
        """Remove a job."""
        self._entries.pop(job_id, None)

    def jobs(self) -> list[dict[str, object]]:
        """Return what query-jobs returns."""
        replies: list[dict[str, object]] = []
        for job_id, entry in self._entries.items():
            progress = {"current-progress": entry.offset, "total-progress": entry.length}
            error = {} if entry.error is None else {"error": entry.error}
            replies.append({"id": job_id, "type": "mirror", "status": entry.status, **progress, **error})
        return replies

    def block_jobs(self) -> list[dict[str, object]]:
        """Return what query-block-jobs returns, of the keys that matter."""
        return [
            {"device": job_id, "status": entry.status, "speed": 5, "io-status": entry.io_status}
            for job_id, entry in self._entries.items()
        ]
