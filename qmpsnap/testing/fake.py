"""A machine that exists in memory only: what an executor runs plans on in tests.

    fake = FakeTarget(graph(vda="base <- s1*"))
    fake.fail("transaction", refused("no such node"))
    await Executor(fake).run(plan)
    assert fake.performed == list(plan.steps)

It simulates with `plan.effect.apply`, the same truth that planners predict with; so it can show
that an executor does the right thing with a result, never that QEMU gives that result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import anyio
from msgspec.structs import replace

from qmpsnap.errors import LinkLost, QmpsnapError, StillNeeded
from qmpsnap.model.features import Features
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import ENDED, Job, JobStatus
from qmpsnap.model.job_place import BlockGraph
from qmpsnap.model.machine import Machine
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import AddNode, DropNode, Later, Step
from qmpsnap.plan import effect
from qmpsnap.plan.checks.disk import refuse_migrated
from qmpsnap.run.progress import Progress
from qmpsnap.run.session import Event
from qmpsnap.testing.fake_faults import Fault, Faults, failed, refused
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS, FakeMachine, a_machine
from qmpsnap.testing.fake_watch import FakeWatch

__all__ = ["COMMANDS", "FakeTarget", "refused"]


_AT_ONCE = frozenset(
    {
        "take", "blockdev-snapshot-delete-internal-sync", "savevm", "loadvm", "delvm", "blockdev-add",
        "qom-set", "blockdev-reopen",
    }
)  # fmt: skip
_STARTS = frozenset({"block-stream", "block-commit", "drive-mirror", "blockdev-mirror"})
_CANCELLED = "Operation canceled"  # QEMU's own text


class FakeTarget:
    """A drawn machine.

    Args:
        graph: Its block graph at the beginning.
        files: Its files; None: those of the graph, visible.
        commands: The commands that it has.
        change: What a step does to the graph; a function other than `apply` makes a QEMU that lies.
        machine: Its state at the beginning; None: its guest is running.

    Attributes:
        state: The graph as of now; set it to change the graph without anybody noticing.
        files: The files as of now.
        performed: Every step so far, including waits and failed steps.
        sent: Commands that are not steps.
        before: Called with each step just before it is performed.
        hold: Whether jobs keep running until `let_go`.
        job_error: The error with which jobs end; "" for success.
        relinks: Whether a lost connection can be restored.
        watched: How many watches are open.
        guest: Its machine state.
    """

    name, about = "fake", "'fake'"
    pid: int | None = None

    def __init__(
        self,
        graph: Graph,
        *,
        files: FakeFiles | None = None,
        commands: frozenset[str] = COMMANDS,
        change: Callable[[Graph, Step], Graph] = effect.apply,
        machine: Machine | None = None,
    ) -> None:
        self.state = graph
        self.files = files or FakeFiles(graph)
        self.performed: list[Step] = []
        self.sent: list[tuple[str, dict[str, object]]] = []
        self.before: Callable[[Step], None] | None = None
        self.hold = False
        self.job_error = ""
        self.relinks = False
        self.watched = 0
        self.guest = FakeMachine(machine or a_machine(graph))
        self._commands, self._change = commands, change
        self._faults = Faults()
        self._jobs: dict[str, Job] = {}
        self._starts: dict[str, Step] = {}
        self._lost = False
        self._changed = anyio.Event()

    # -- for tests ---------------------------------------------------------------------------------

    def fail(self, at: Step | str, error: QmpsnapError, *, happened: bool = False) -> None:
        """Make that step, or the next one of that command, fail once.

        Args:
            at: A step, or a command; "graph" for the next reading of the graph.
            error: What is raised; LinkLost also loses the connection.
            happened: Whether the step is performed nevertheless.
        """
        self._faults.add(Fault(at, error, happened))

    def start_job(self, job: Job, start: Step) -> None:
        """Add a job that is already there, whoever started it."""
        self._jobs[job.id], self._starts[job.id] = job, start

    def let_go(self) -> None:
        """Let held jobs continue: to READY, or to their end."""
        self.hold = False
        for job_id, job in self._jobs.items():
            if job.status is JobStatus.RUNNING:
                self._advance(job_id)

    # -- Target ------------------------------------------------------------------------------------

    @property
    def process(self) -> str:
        """Which QEMU it is."""
        return self.guest.now.process

    @property
    def outlives_us(self) -> bool:
        """Its jobs go on without a client."""
        return True

    async def graph(self) -> Graph:
        """The graph as of now."""
        await self._checkpoint()
        self._raise("graph")
        return self.state

    async def graph_with_jobs(self) -> tuple[Graph, tuple[Job, ...]]:
        """The graph and the jobs as of now."""
        return await self.graph(), await self.jobs()

    async def look(self, ask: Ask, graph: Graph) -> Files:  # noqa: ARG002 - of the Protocol
        """Answer the planner from the fake's files."""
        return self.files.look(ask)

    async def look_each(self, asks: Sequence[Ask], graph: Graph) -> list[Files]:
        """The same, for several."""
        return [await self.look(ask, graph) for ask in asks]

    async def features(self) -> Features:
        """The commands that the fake was given."""
        return Features(self._commands)

    async def jobs(self, *, after_graph: bool = False) -> tuple[Job, ...]:  # noqa: ARG002 - as the protocol
        """Every job that is not dismissed."""
        await self._checkpoint()
        return tuple(job for job in self._jobs.values() if job.status is not JobStatus.NULL)

    async def block_graph(self) -> BlockGraph:
        """Empty: nothing here plans by it."""
        return BlockGraph()

    async def refuse_migrated(self) -> None:
        """Refuse while the guest is migrated."""
        refuse_migrated(await self.guest.status())

    async def claim_records(self, records: Collection[IntentRecord]) -> None:
        """Do nothing: the fake's records are not locked."""

    def release_records(self, ids: Collection[str]) -> None:
        """Do nothing: the fake's records are not locked."""

    async def perform(self, step: Step) -> float:
        """Perform one step; it takes 0.125 s."""
        await self._begin(step)
        self._raise(step)
        self._do(step)
        return 0.125

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Record a command that is not a step; the answer is empty."""
        await self._checkpoint()
        self.sent.append((command, dict(arguments or {})))
        self._raise(command)
        return {}

    @contextmanager
    def watch(self, job_id: str) -> Iterator[FakeWatch]:
        """Listen to a job."""
        self.watched += 1
        try:
            changed = lambda: self._changed.wait()  # noqa: E731, PLW0108 - it is another one each time
            yield FakeWatch(self.wait, job_id, self.jobs, changed)
        finally:
            self.watched -= 1

    async def progress(self, job_id: str, interval: float) -> AsyncIterator[Progress]:
        """Yield a job's progress until it ends."""
        while True:
            job = next((job for job in await self.jobs() if job.id == job_id), None)
            if job is None or job.status in ENDED:
                return
            yield Progress(job, None, None)
            await anyio.sleep(interval)

    def events(self, sink: Callable[[Event], None]) -> AbstractContextManager[None]:  # noqa: ARG002
        """Never call the sink: nothing here sends events."""
        return nullcontext()

    async def wait_lost(self) -> str:
        """Return once the link is lost."""
        while not self._lost:
            await self._changed.wait()
        return "the link is lost"

    async def abandon(self, owner: object) -> None:
        """Do nothing: no command here is ever in flight for longer than a turn of the loop."""

    async def relink(self) -> bool:
        """Connect again if that is allowed."""
        self._lost = self._lost and not self.relinks
        return self.relinks

    # -- jobs --------------------------------------------------------------------------------------

    async def wait(self, step: Step) -> Job:
        """Wait for a job (for the watch)."""
        await self._begin(step)
        self._raise(step)
        until = step.arguments["until"]
        while True:
            changed = self._changed
            await self._checkpoint()
            job = self._jobs.get(step.job_id)
            if job is None:
                raise failed(step.job_id, "vanished")
            if job.status in ENDED and (job.error or until != "concluded"):
                raise failed(job.id, job.error or "it ended before it was completed")
            if job.status in ENDED or (until == "ready" and job.ready):
                return job
            if until == job.status == JobStatus.PENDING:
                return job
            await changed.wait()

    def _start(self, start: Step) -> None:
        kind = start.command.rpartition("-")[2]  # as QEMU calls it
        self.start_job(Job(start.job_id, kind, JobStatus.RUNNING, length=8), start)
        if isinstance(start.effect, Later):
            root = start.effect.effect.root
            if start.command == "drive-mirror":
                self.state = effect.after_effect(self.state, AddNode(root.node, root.format, root.file))
            elif start.command != "blockdev-mirror":  # whose target was opened before
                self.files.touch(root.file)
        elif start.command == "block-commit":
            self.files.touch(self.state.nodes[start.arguments["base-node"]].file)
        if not self.hold:
            self._advance(start.job_id)

    def _advance(self, job_id: str) -> None:
        start = self._starts[job_id]
        if self.job_error:
            self._end(job_id, start, self.job_error)
        elif isinstance(start.effect, Later):
            self._set(job_id, JobStatus.READY)
        elif start.command in _STARTS:
            self._set(job_id, JobStatus.PENDING)
        else:
            self._end(job_id, start)

    def _end(self, job_id: str, step: Step, error: str = "") -> None:
        if not error and step.command != "job-cancel":
            self.state = self._change(self.state, step)
            self.files.follow(self.state)
        own = self._starts[job_id].command == "block-stream"  # it dismisses itself
        self._set(job_id, JobStatus.NULL if own else JobStatus.CONCLUDED, error)

    def _set(self, job_id: str, status: JobStatus, error: str = "") -> None:
        ready, done = status is JobStatus.READY, 0 if error else 8
        self._jobs[job_id] = replace(
            self._jobs[job_id], status=status, offset=done, ready=ready, error=error or None
        )
        self._wake()

    def _need(self, step: Step, job_id: str, *states: JobStatus) -> None:
        job = self._jobs.get(job_id)
        if job is None or job.status is JobStatus.NULL:
            raise refused("Job not found", command=step.command, qmp_class="DeviceNotActive")
        if job.status not in states:
            raise refused(f"Job '{job_id}' in state '{job.status}' cannot accept it", command=step.command)

    # -- steps -------------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        if step.on == "host":
            self.files.perform(step)
            if step.command in {"seal-memory", "seal-store"}:
                self.guest.state_bytes = self.files.facts[step.arguments["file"]].size
        else:
            self._command(step)

    def _command(self, step: Step) -> None:
        job = step.job_id
        match step.way:
            case way if way in _AT_ONCE:
                if way in {"savevm", "loadvm"}:
                    self.guest.blink()
                self.state = self._change(self.state, step)
                self.files.follow(self.state)
            case way if way in _STARTS:
                self._start(step)
            case "snapshot-save" | "snapshot-load" | "snapshot-delete":
                if step.pauses:
                    self.guest.blink()
                self.start_job(Job(job, step.command, JobStatus.RUNNING, length=1), step)
                self._end(job, step, self.job_error)
            case "job-complete":
                self._need(step, job, JobStatus.READY)
                start = self._starts[job].effect
                assert isinstance(start, Later)  # noqa: S101 - no other is ever READY
                self._end(job, replace(step, effect=start.effect), self.job_error)
            case "block-job-cancel":
                self._need(step, job, JobStatus.READY)
                self._end(job, step, self.job_error)
            case "job-finalize":
                self._need(step, job, JobStatus.PENDING)
                self._end(job, self._starts[job], self.job_error)
            case "job-cancel":
                self._need(step, job, JobStatus.RUNNING, JobStatus.READY, JobStatus.PENDING)
                self._end(job, step, _CANCELLED)
            case "job-dismiss":
                self._need(step, job, JobStatus.CONCLUDED)
                self._dismiss(job)
            case "blockdev-del":
                node = step.arguments["node-name"]
                if node not in self.state.nodes:
                    raise refused(f"Failed to find node with node-name='{node}'", command=step.command)
                self.state = self._change(self.state, step)
            case "check-roots" | "check-active":
                self._check(step)
            case "probe" | "flush" | "await-job" | "adopt-job":
                pass
            case _:
                self.guest.perform(step)

    def _check(self, step: Step) -> None:
        for name, wanted in step.arguments.items():
            disk = self.state.disks[name]
            if step.command == "check-roots" and disk.root != wanted:
                raise refused(f"the device of {name} kept its root", command=step.command)
            if step.command == "check-active" and {disk.root, disk.active.node} != {*wanted}:
                raise StillNeeded(f"{name} writes to another node by now", by=[disk.active.node])

    def _dismiss(self, job_id: str) -> None:
        self._set(job_id, JobStatus.NULL)
        start = self._starts[job_id]
        used = {layer.node for disk in self.state.disks.values() for layer in disk.layers}
        if start.command == "drive-mirror" and start.arguments["node-name"] not in used:
            self.state = effect.after_effect(self.state, DropNode(start.arguments["node-name"]))

    # -- faults ------------------------------------------------------------------------------------

    async def _begin(self, step: Step) -> None:
        await self._checkpoint()
        self.performed.append(step)
        if self.before is not None:
            self.before(step)
        for _ in range(3):  # a step takes longer than a wish to stop takes to arrive
            await anyio.lowlevel.checkpoint()

    def _raise(self, at: Step | str) -> None:
        fault = self._faults.take(at)
        if fault is None:
            return
        if fault.happened and not isinstance(at, str):
            self._do(at)
        self._lost = isinstance(fault.error, LinkLost)
        self._wake()
        raise fault.error

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _checkpoint(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._lost:
            raise LinkLost("the link is lost", step="fake")
