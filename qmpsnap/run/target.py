"""What a plan is run on: images that some process has open, with a guest or without one.

Live and offline differ here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from qmpsnap.errors import Unsupported
from qmpsnap.model.features import Features
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.job_place import BlockGraph
from qmpsnap.model.machine import Machine, Status
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Step
from qmpsnap.run.session import Event


class Progress(Protocol):
    """How far a job is."""

    @property
    def job(self) -> Job:
        """The job as of now."""

    @property
    def rate(self) -> float | None:
        """Bytes per second since the last look; None at the first."""

    @property
    def remaining(self) -> float | None:
        """Seconds left at that rate; None when it cannot be told."""

    def to_json(self) -> dict[str, object]:
        """The sample as `--progress --json` prints it."""


class Watch(Protocol):
    """One job, listened to since before its command was sent."""

    @property
    def times(self) -> Mapping[JobStatus, float]:
        """QEMU's own time, in seconds, of the last change to each status."""

    async def until_ready(self) -> Job:
        """Return once the job is READY; raise JobFailed, JobPaused or LinkLost."""

    async def until_pending(self) -> Job:
        """Return once the job waits to be finalized; raise JobFailed, JobPaused or LinkLost."""

    async def until_concluded(self) -> Job:
        """Return once the job concluded without an error; raise JobFailed, JobPaused or LinkLost."""

    async def until_still(self, moment: float) -> Job | None:
        """Return it once it stands in one of STAYS for so many seconds, None once it ended; or LinkLost."""


class Standstill(Protocol):
    """How long the guest stood still, listened to since before the first step."""

    @property
    def seconds(self) -> float | None:
        """Seconds from STOP to RESUME by QEMU's clock; None: it did not, or stands still yet."""


class Guest(Protocol):
    """What only a machine with a guest has: CPUs that run or are paused, and memory."""

    async def machine(self, graph: Graph, *, occupied: bool = False) -> Machine:
        """What the machine is beyond its disks, now; with `occupied` also how much memory is in use."""

    async def status(self) -> Status:
        """Whether the guest runs, and whether it migrates, now."""

    async def run_state(self) -> str:
        """QEMU's run state, now."""

    def stops(self) -> AbstractContextManager[Standstill]:
        """Listen to how long the guest is paused."""

    @property
    def state_bytes(self) -> int:
        """Bytes of the file of VM state that was written last."""

    def memory_progress(self, interval: float) -> AsyncIterator[Progress]:
        """Ask how much of the VM state has moved again and again, until it has."""


class Target(Protocol):
    """Images that a process has open, and what it does with them, as the executor sees it."""

    @property
    def name(self) -> str:
        """How the machine is called in logs and errors."""

    @property
    def about(self) -> str:
        """What is known of it without a question, as in a `repr`."""

    @property
    def pid(self) -> int | None:
        """The process that has the images open, where it is known."""

    @property
    def process(self) -> str:
        """Which process that is: no other has the same; "" when it is not known."""

    @property
    def guest(self) -> Guest | None:
        """The guest whose disks they are; None where the machine is off."""

    @property
    def outlives_us(self) -> bool:
        """Whether it goes on when our process ends, and with it a job that is left running."""

    async def graph(self) -> Graph:
        """Read the block graph, now."""

    async def graph_with_jobs(self) -> tuple[Graph, tuple[Job, ...]]:
        """Read the block graph and every job, of any client, as of one instant."""

    async def look(self, ask: Ask, graph: Graph) -> Files:
        """Answer what a planner asked about the file system."""

    async def look_each(self, asks: Sequence[Ask], graph: Graph) -> list[Files]:
        """As `look`, for several in one go."""

    async def features(self) -> Features:
        """What the process can do; asked once."""

    async def jobs(self, *, after_graph: bool = False) -> tuple[Job, ...]:
        """Every job, of any client, now; `after_graph`: as of the graph, which has just been read."""

    async def block_graph(self) -> BlockGraph:
        """Who uses which node, jobs among them, now; empty where this cannot be asked."""

    async def refuse_migrated(self) -> None:
        """Raise Busy or Unsupported while the images belong to another process, or are about to."""

    async def perform(self, step: Step) -> float:
        """Do one step, a wait for a job excepted; return the seconds that it took."""

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Send one command that is no step of a plan; return the answer. Only a query is given up early."""

    async def claim_records(self, records: Collection[IntentRecord]) -> None:
        """Lock the records of an interrupted operation that is about to be finished; or raise Busy."""

    def release_records(self, ids: Collection[str]) -> None:
        """Our client works on these operations no more: what is left of them anybody may end."""

    def watch(self, job_id: str) -> AbstractContextManager[Watch]:
        """Listen to a job; to be entered before the command that starts it."""

    def progress(self, job_id: str, interval: float) -> AsyncIterator[Progress]:
        """Ask for a job's progress again and again, until it ends."""

    def events(self, sink: Callable[[Event], None]) -> AbstractContextManager[None]:
        """Call `sink` with each event while the block lasts."""

    async def wait_lost(self) -> str:
        """Return once the link is lost, with the reason."""

    async def abandon(self, owner: object) -> None:
        """Wait no longer for what is in flight for this owner: it raises LinkLost, its outcome unknown."""

    async def relink(self) -> bool:
        """After the link was lost: connect again, once for all who lost it; whether that succeeded."""


def guest_of(target: Target) -> Guest:
    """The target's guest.

    Raises:
        Unsupported: When it has none.
    """
    if target.guest is None:
        raise Unsupported(
            f"{target.name} has no guest: its images are open, but no machine runs on them",
            feature="a guest",
            hint="start the machine, and connect to its QEMU",
        )
    return target.guest
