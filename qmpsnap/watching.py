"""What a machine is doing, followed as it changes; for a display that stays open."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
from msgspec import Struct
from msgspec.structs import replace

from qmpsnap.errors import Busy, Changed, LinkLost
from qmpsnap.jobs import Jobs
from qmpsnap.model.arguments import number
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import ENDED, Job, JobStatus
from qmpsnap.model.job_place import JobPlace
from qmpsnap.model.machine import Status
from qmpsnap.model.pause import Pause
from qmpsnap.pauses import pause_in
from qmpsnap.run.planning import Planning
from qmpsnap.run.progress import Meter
from qmpsnap.run.session import Event
from qmpsnap.run.target import Progress, Target

_KEPT = 50  # events
_REST = 5.0  # seconds between two looks while nothing happens
_SOONEST = 0.2  # seconds between two looks, however many events come
_SILENT = 2.0  # seconds without an answer
_TICK = 1.0  # seconds between two updates of how long QEMU has been silent
_SHARE = 0.01  # of QEMU's time that reading the graph may take; it holds QEMU's main loop
_SHARE_ON_EVENTS = 0.05  # the same while events say that the graph has changed
_NOWHERE: Mapping[str, JobPlace] = {}

# Events after which a chain may be another one. A snapshot sends no event: the next look finds it.
_CHANGING = frozenset(
    {"BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "DEVICE_DELETED", "DEVICE_TRAY_MOVED", "RESET", "RESUME"}
)
_JOB_ENDED = frozenset({JobStatus.CONCLUDED.value, JobStatus.NULL.value})
# Run states in which VM state is being moved. QAPI: RunState (run-state.json).
_MOVING = frozenset({"colo", "finish-migrate", "restore-vm", "save-vm"})


class JobNow(Struct, frozen=True):
    """A job of any client.

    Attributes:
        progress: How far it is, and how fast.
        place: Its disk, and the file that it writes.
    """

    progress: Progress
    place: JobPlace = JobPlace()

    @property
    def job(self) -> Job:
        """The job as QEMU reported it."""
        return self.progress.job

    def to_json(self) -> dict[str, object]:
        """The job as `top --json` prints it."""
        progress = self.progress
        return {
            **self.job.to_json(),
            **self.place.to_json(),
            "rate": progress.rate,
            "remaining_s": progress.remaining,
        }


class Overview(Struct, frozen=True):
    """What a machine is doing at one moment.

    Attributes:
        status: The guest's run state; None without a guest.
        pause: Why the guest is not running; None while it is running, and until the graph could be read.
        graph: The disks with their chains; empty until it could be read.
        jobs: The jobs of all clients.
        events: The last events, at most 50, the oldest first.
        heard: How many events there have been.
        unread: Why the graph may be out of date; "" if it is not.
        silent_s: Seconds for which QEMU has not answered; 0 while it answers.
    """

    status: Status | None = None
    pause: Pause | None = None
    graph: Graph = Graph({})
    jobs: tuple[JobNow, ...] = ()
    events: tuple[Event, ...] = ()
    heard: int = 0
    unread: str = ""
    silent_s: int = 0

    def events_since(self, heard: int) -> tuple[Event, ...]:
        """The events after the first `heard` ones, as far as they are kept; the oldest first."""
        new = min(self.heard - heard, len(self.events))
        return self.events[len(self.events) - new :]

    def to_json(self, *, heard: int = 0) -> dict[str, object]:
        """The overview as `top --json` prints it.

        Args:
            heard: How many of the events are left out, because they were printed before.
        """
        return {
            "status": None if self.status is None else self.status.to_json(),
            "pause": None if self.pause is None else self.pause.to_json(),
            **self.graph.to_json(),
            "jobs": [job.to_json() for job in self.jobs],
            "events": [event.to_json() for event in self.events_since(heard)],
            "unread": self.unread,
            "silent_s": self.silent_s,
        }


@asynccontextmanager
async def watching(
    target: Target, planning: Planning, jobs: Jobs, *, interval: float
) -> AsyncIterator[AsyncIterator[Overview]]:
    """Follow a machine inside the block; see `VM.watch`."""
    watcher = _Watcher(target, planning, jobs, number("interval", interval))
    overviews = watcher.overviews()
    with target.events(watcher.note):
        tasks = [asyncio.create_task(work) for work in (watcher.look_again_and_again(), watcher.wait_lost())]
        for task in tasks:
            task.add_done_callback(watcher.note_end)
        try:
            yield overviews
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await overviews.aclose()


class _Watcher:
    def __init__(self, target: Target, planning: Planning, jobs: Jobs, interval: float) -> None:
        self._target = target
        self._planning = planning
        self._jobs = jobs
        self._interval = interval
        self._seen: Overview | None = None
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._heard = 0
        self._meters: dict[str, Meter] = {}
        self._places = _NOWHERE
        self._pause: tuple[Status, Graph, Pause] | None = None  # the last one, and what it was read for
        self._graph: Graph | None = None
        self._graph_stale = True
        self._graph_read = 0.0  # when, and how long it took
        self._graph_took = 0.0
        self._postponed = False  # it is stale, and was read a moment ago
        self._stopped: float | None = None  # when the guest was paused, if it has not been resumed since
        self._asking: float | None = None  # since when QEMU is being asked
        self._woken = anyio.Event()
        self._fresh = anyio.Event()
        self._ended: BaseException | None = None

    def note(self, event: Event) -> None:
        """Take an event: it is shown, and it is time to look again."""
        self._events.append(event)
        self._heard += 1
        if event.name == "STOP":
            self._stopped = anyio.current_time()
        elif event.name == "RESUME":
            self._stopped = None
        self._graph_stale |= event.name in _CHANGING or (
            event.name == "JOB_STATUS_CHANGE" and event.data.get("status") in _JOB_ENDED
        )
        self._woken.set()

    async def wait_lost(self) -> None:
        """Wait until the connection is lost, and let the overviews end."""
        reason = await self._target.wait_lost()
        self._ended = LinkLost(
            f"lost {self._target.name}: {reason}",
            step="watch",
            changed=Changed.NO,
            hint="connect again when QEMU is back",
        )
        self._fresh.set()

    def note_end(self, task: asyncio.Task[None]) -> None:
        """Let the overviews end with the error that has ended a task."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, LinkLost):  # `wait_lost` has the reason
            self._ended = error
            self._fresh.set()

    async def look_again_and_again(self) -> None:
        """Ask QEMU after events, while jobs run every `interval` seconds, and else now and then."""
        while True:
            self._woken = anyio.Event()
            busy = await self._look()
            self._fresh.set()
            await anyio.sleep(_SOONEST)
            # QEMU has no event for the progress of a job, and none for a new overlay.
            pause = self._interval if busy else _REST
            if self._postponed:
                pause = min(pause, self._graph_due - anyio.current_time())
            with anyio.move_on_after(max(pause - _SOONEST, 0)):
                await self._woken.wait()

    async def _look(self) -> bool:
        """Ask QEMU; return whether something moves on without an event."""
        self._asking = anyio.current_time()
        status = await self._target.guest.status() if self._target.guest is not None else None
        jobs = await self._target.jobs(after_graph=True)
        new = {job.id for job in jobs} - self._places.keys()
        self._graph_stale |= bool(new)
        unread = await self._look_at_graph(status, jobs)
        if new and self._graph is not None:
            self._places = {job.id: JobPlace() for job in jobs} | {**await self._jobs.places(self._graph)}
        self._meters = {job.id: self._meters.get(job.id) or Meter() for job in jobs}
        self._seen = Overview(
            status=status,
            pause=await self._why_paused(status),
            graph=self._graph or Graph({}),
            jobs=tuple(
                JobNow(self._meters[job.id].look(job), self._places.get(job.id, JobPlace())) for job in jobs
            ),
            unread=unread,
        )
        self._asking = None
        return any(job.status not in ENDED for job in jobs) or (status is not None and status.migrating)

    async def _why_paused(self, status: Status | None) -> Pause | None:
        """Find out why the guest is not running: once for each state, and again when the graph was read."""
        if status is None or status.running or self._graph is None:
            return None
        if self._pause is None or self._pause[0] != status or self._pause[1] is not self._graph:
            pause = await pause_in(status, self._target, self._jobs, self._graph)
            self._pause = (status, self._graph, pause)
        return self._pause[2]

    async def _look_at_graph(self, status: Status | None, jobs: tuple[Job, ...]) -> str:
        """Read the graph if it is time to, and if nobody is hindered; return why it may be out of date."""
        self._postponed = False
        if status is not None and status.state in _MOVING:
            return f"the run state is {status.state}"
        for job in jobs:
            if job.type.startswith("snapshot-") and job.status not in ENDED:
                return f"job {job.id} is moving VM state"
        began = anyio.current_time()
        # A short pause is somebody's snapshot or revert, which the guest should not have to wait longer for.
        paused = self._stopped is not None and began - self._stopped < _REST
        if self._graph is not None and (paused or began < self._graph_due):
            self._postponed = self._graph_stale and not paused
            return ""
        self._graph_stale = False
        try:
            self._graph = await self._planning.graph()
        except Busy as error:
            return error.message
        self._graph_read = anyio.current_time()
        self._graph_took = self._graph_read - began
        return ""

    @property
    def _graph_due(self) -> float:
        """When to read the graph again."""
        if self._graph_stale:
            return self._graph_read + self._graph_took / _SHARE_ON_EVENTS
        return self._graph_read + max(_REST, self._graph_took / _SHARE)

    async def overviews(self) -> AsyncGenerator[Overview]:
        """Yield the overview whenever it has changed.

        Raises:
            LinkLost: When the connection is lost.
        """
        shown: Overview | None = None
        while True:
            with anyio.move_on_after(_TICK):
                await self._fresh.wait()
            self._fresh = anyio.Event()
            overview = self._now()
            if overview is not None and overview != shown:
                shown = overview
                yield overview
            if self._ended is not None:
                raise self._ended

    def _now(self) -> Overview | None:
        if self._seen is None:
            return None
        asking = 0.0 if self._asking is None else anyio.current_time() - self._asking
        return replace(
            self._seen,
            events=tuple(self._events),
            heard=self._heard,
            silent_s=math.ceil(asking) if asking >= _SILENT else 0,
        )
