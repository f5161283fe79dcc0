"""Prevents a query that would crash an older QEMU.

QEMU 7.2 crashes when query-named-block-nodes meets one of two things (docs/explanation/qemu.md): the filter
of a stream job that has concluded and was not dismissed (our own streams dismiss themselves), or the image
of a qcow2 that a running blockdev-create has opened and not read yet.
"""

from __future__ import annotations

import anyio

from qmpsnap.errors import Busy
from qmpsnap.model.features import SchemaInfo, has_argument
from qmpsnap.model.hints import qmp
from qmpsnap.model.job import ENDED, Job, JobStatus
from qmpsnap.model.parse_jobs import JobEvent
from qmpsnap.model.qapi import heard, read
from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.session import Session
from qmpsnap.run.session.event import Event

_OURS = "qmpsnap-"  # how ids of our jobs begin, none of which makes an image
_PATIENCE = 10.0  # seconds; an image is made in less, but on a very slow disk


class QueryGuard:
    """Remembers which jobs make the query dangerous; pass it every event.

    Args:
        session: To ask QEMU for its schema, once, when it matters.
        monitor: To ask for the jobs, and for those that existed at the beginning.
        patience_s: Seconds to wait for an image that is being created.
    """

    def __init__(self, session: Session, monitor: JobMonitor, *, patience_s: float = _PATIENCE) -> None:
        self._session = session
        self._monitor = monitor
        self._patience = patience_s
        self._lingering = {job.id for job in monitor.found if job.status is JobStatus.CONCLUDED}
        self._running = {job.id for job in monitor.found if _makes_an_image(job)}
        self._changed = anyio.Event()
        self._harmless: bool | None = None

    def note(self, event: Event) -> None:
        """Follow JOB_STATUS_CHANGE; ignore other events."""
        if event.name != "JOB_STATUS_CHANGE":
            return
        change = heard(JobEvent, event.data)
        if change is None:
            return
        job, status = change.id, change.status
        if status == JobStatus.CONCLUDED:
            self._lingering.add(job)
        elif status == JobStatus.NULL:
            self._lingering.discard(job)
        if status in {JobStatus.CONCLUDED, JobStatus.NULL}:
            self._running.discard(job)
        elif not job.startswith(_OURS):
            self._running.add(job)
        self._changed.set()
        self._changed = anyio.Event()

    async def check(self) -> None:
        """Return when the block nodes may be queried; waits some seconds for an image that is being created.

        Raises:
            Busy: When the query would crash this QEMU.
        """
        if not (self._lingering or self._running) or await self._is_harmless():
            return
        await self._until_made()
        if not self._lingering:
            return
        for job in await self._monitor.jobs():
            if job.type == "stream" and job.status is JobStatus.CONCLUDED:
                raise Busy(
                    f"stream job {job.id!r} has concluded but was not "
                    "dismissed: a query of the block nodes would crash this QEMU",
                    node="",
                    job_id=job.id,
                    hint="have its client dismiss it, or dismiss it yourself: "
                    f"{qmp('job-dismiss', id=job.id)}",
                )

    async def _until_made(self) -> None:
        """Wait for the end of every blockdev-create: QEMU sends an event then."""
        until = anyio.current_time() + self._patience
        while self._running:
            changed = self._changed
            making = next((job for job in await self._monitor.jobs() if _makes_an_image(job)), None)
            if making is None:
                return
            with anyio.CancelScope(deadline=until) as scope:
                await changed.wait()
            if scope.cancelled_caught:
                raise Busy(
                    f"job {making.id!r} is creating an image: a query of the block nodes would crash this "
                    "QEMU meanwhile",
                    node="",
                    job_id=making.id,
                    hint="wait until it ends",
                )

    async def _is_harmless(self) -> bool:
        """Whether this QEMU is newer than the fault: it masks protocol names in block-stream."""
        if self._harmless is None:
            reply = await self._session.query("query-qmp-schema")
            schema = read(list[SchemaInfo], reply, "query-qmp-schema")
            self._harmless = has_argument(schema, "block-stream", "backing-mask-protocol")
        return self._harmless


def _makes_an_image(job: Job) -> bool:
    """Whether it is a running blockdev-create; QEMU does not tell of which format."""
    return job.type == "create" and job.status not in ENDED
