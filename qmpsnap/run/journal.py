"""What is known of one run of a plan: what was done, and what became of the layers by it."""

from __future__ import annotations

from qmpsnap.errors import Changed, CommandFailed, JobFailed, QmpsnapError
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import LOAD_FAILED, command
from qmpsnap.model.step import DropLayers, Later, Step
from qmpsnap.plan.chain.invalidation import fold_of
from qmpsnap.plan.commands.records import record_of
from qmpsnap.plan.plan import Plan
from qmpsnap.run.hmp import failed_early
from qmpsnap.run.outcome import same

_KEEPS_STATE = frozenset({"savevm", "loadvm", "snapshot-save", "snapshot-load"})


class Journal:
    """One run of one plan, as far as it has come. The operation alone writes into it.

    Args:
        plan: The plan.
        graph: The graph when it was read a moment ago, for this very plan.

    Attributes:
        plan: The plan.
        graph: The graph as last read.
        done: What was done, in order.
        tried: What was begun; it may have failed.
        sent: Whether any command of the plan went out.
        forward: Whether a step went out after which there is no rollback.
        moved: Whether a chain, or bytes of a layer, changed.
        stayed: Steps that were to put away a file which is not the layer that was meant, each with the
            reason: the file stays for good.
        loaded: Whether the guest's memory is another by now, or is not to be trusted: a load had begun to
            move something when it failed, or has ended, or the guest was reset.
    """

    def __init__(self, plan: Plan, graph: Graph | None) -> None:
        adopts = any(step.command == "adopt-job" or step.on_state for step in plan.resumes)
        self.plan = plan
        self.graph = graph
        self.done: list[Step] = list(plan.resumes)
        self.tried: list[Step] = []
        self.sent = adopts
        self.forward = self.state_job is not None  # QEMU carries it to its end, whatever is wished
        self.moved = adopts and plan.op != "mirror"
        self.stayed: list[tuple[Step, str]] = []
        self.loaded = False

    def begin(self, step: Step) -> None:
        """Take note of a step that is about to be done."""
        self.sent |= step.on == "qmp"
        self.forward |= step.final
        self.tried.append(step)

    def refuse(self, error: CommandFailed) -> None:
        """Take note that QEMU refused a step: nothing has changed by it, unless the error says so."""
        self.forward = False
        self.moved |= error.changed is Changed.YES

    def end(self, step: Step) -> None:
        """Take note of a step that is done; one that starts a job has only begun that."""
        self.done.append(step)
        self.moved |= step.writes
        self.loaded |= step.loads and not step.unseen

    def look(self, graph: Graph) -> None:
        """Take note of the graph as read just now."""
        self.graph = graph
        self.moved |= not same(self.plan, graph)

    def fail_job(self, error: JobFailed) -> None:
        """Take note of what a job on VM state has left when it failed.

        A load that had begun to move something leaves the guest paused, and nothing is to let it run.
        QEMU takes the others back by itself, and the graph, which is read next, tells.
        """
        job = self.state_job
        if job is None:
            return
        self.loaded = job.loads and not failed_early(error.error)
        self.moved = self.loaded or any(step.writes for step in self.done if step is not job)
        if self.loaded:
            error.hint = f"the guest is paused, and its memory cannot be trusted: {LOAD_FAILED}"

    @property
    def copies(self) -> bool:
        """Whether the job's offset is in bytes that it copied."""
        return (self.plan.start is not None or self.plan.intent is None) and self.state_job is None

    @property
    def state_job(self) -> Step | None:
        """The step that has started a job on VM state: QEMU answers nobody while it works."""
        return next((step for step in self.done if step.on_state), None)

    @property
    def state_bytes(self) -> int:
        """Bytes of the VM state that was kept, or that was gone back to, inside the images."""
        step = next((step for step in self.done if step.way in _KEEPS_STATE), None)
        if step is None or self.graph is None:
            return 0
        name = step.arguments.get("tag") or step.detail.get("name")
        return sum(
            snapshot.vm_state_size
            for disk in self.plan.disks
            if disk in self.graph.disks and self.graph.disks[disk].layers
            for snapshot in self.graph.disks[disk].active.snapshots
            if snapshot.name == name
        )

    def say(self, error: QmpsnapError, *, moved: bool | None = None) -> None:
        """Let the error say what became of the layers.

        Args:
            error: The error.
            moved: Whether a chain, or bytes of a layer, changed; None: as far as is known here.
        """
        moved = self.moved if moved is None else moved
        error.changed = Changed.YES if moved else Changed.NO
        error.invalid = self.plan.invalid_if_stopped if moved else ()
        if error.invalid and not error.hint:
            error.hint = self._mends

    @property
    def _mends(self) -> str:
        """What makes layers good that a commit has written into, or ""."""
        start = self.plan.start
        records = [record for step in (*self.plan.steps, *self.done) if (record := record_of(step))]
        if start is not None and start.command == "block-commit":
            effect = start.effect
            if isinstance(effect, DropLayers):
                files = self.plan.before.disks[effect.disk].files
                disk, base = effect.disk, str(effect.base)
                options = ["--top", files[files.index(effect.above) + 1], "--base", base]
            else:
                assert isinstance(effect, Later)  # noqa: S101 - a commit has one of the two
                disk, options = effect.effect.root.disk, ["--base", effect.effect.root.file]
                options += [] if self.plan.moves else ["--keep-overlay"]
        elif records and (fold := fold_of(records[0])) is not None:
            disk = fold.disk
            options = [] if fold.top == fold.chain[0] else ["--top", fold.top]
            options += ["--base", fold.base]
        else:
            return ""
        again = command("commit", disk, *options)
        return f"the guest's data is unchanged; run the same commit again to make the layers valid: {again}"

    @property
    def later(self) -> str:
        """How what is left of the operation is brought to its end, or ""."""
        named = self.plan.operation_id
        return f"qmpsnap job wait {named} finishes it" if named else ""
