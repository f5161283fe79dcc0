"""Keeps us from a query that kills an older QEMU.

QEMU 7.2 ends with a segmentation fault when query-named-block-nodes meets the filter of a stream
job that has concluded and was not dismissed (docs/explanation/qemu.md). Our own streams dismiss
themselves; this looks out for those of others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import NodeBusy
from qmpsnap.model.hints import qmp
from qmpsnap.model.job import JobStatus

if TYPE_CHECKING:
    from qmpsnap.run.jobs import JobMonitor
    from qmpsnap.run.session import Session
    from qmpsnap.run.session.event import Event

__all__ = ["ConcludedStreams"]


class ConcludedStreams:
    """Remembers which jobs have concluded and are not dismissed; feed it every event.

    Args:
        session: To ask QEMU for its schema, once, when it matters.
        monitor: To ask for the jobs, and for those that were there at the beginning.
    """

    def __init__(self, session: Session, monitor: JobMonitor) -> None:
        self._session = session
        self._monitor = monitor
        self._lingering = {job.id for job in monitor.found if job.status is JobStatus.CONCLUDED}
        self._harmless: bool | None = None

    def note(self, event: Event) -> None:
        """Take note of an event."""
        if event.name == "JOB_STATUS_CHANGE":
            if event.data.get("status") == JobStatus.CONCLUDED:
                self._lingering.add(str(event.data.get("id")))
            elif event.data.get("status") == JobStatus.NULL:
                self._lingering.discard(str(event.data.get("id")))

    async def check(self) -> None:
        """Return when the block nodes may be asked for.

        Raises:
            NodeBusy: When that would kill this QEMU.
        """
        if not self._lingering or await self._is_harmless():
            return
        for job in await self._monitor.jobs():
            if job.type == "stream" and job.status is JobStatus.CONCLUDED:
                raise NodeBusy(
                    f"stream job {job.id!r} has concluded and was not dismissed: "
                    "this QEMU would crash if it were asked for its block nodes",
                    node="",
                    job_id=job.id,
                    hint=f"let whoever started it dismiss it, or do it: {qmp('job-dismiss', id=job.id)}",
                )

    async def _is_harmless(self) -> bool:
        """Whether this QEMU is newer than the fault: it masks protocol names in block-stream."""
        if self._harmless is None:
            schema = await self._session.query("query-qmp-schema")
            self._harmless = "backing-mask-protocol" in _arguments(schema, "block-stream")
        return self._harmless


def _arguments(schema: object, command: str) -> set[str]:
    """Names of a command's arguments. QAPI: SchemaInfo (introspect.json)."""
    entries = {one["name"]: one for one in schema} if isinstance(schema, list) else {}
    kind = entries.get(entries.get(command, {}).get("arg-type"), {})
    return {member["name"] for member in kind.get("members", ())}
