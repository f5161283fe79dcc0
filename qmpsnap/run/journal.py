"""What is known of one run of a plan: what was done, and what became of the layers by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import Changed
from qmpsnap.model.hints import LOAD_FAILED, command
from qmpsnap.plan.chain.invalidation import fold_of
from qmpsnap.plan.steps import (
    AdoptJob,
    LoadState,
    LoadVm,
    SaveState,
    SaveVm,
    StartCommit,
    StateJobStep,
    WriteRecord,
)
from qmpsnap.plan.undo import changes
from qmpsnap.run.hmp import failed_early

if TYPE_CHECKING:
    from qmpsnap.errors import JobFailed, QmpsnapError
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.plan import Plan
    from qmpsnap.plan.steps import Step

__all__ = ["Journal"]


class Journal:
    """One run of one plan, as far as it has come.

    Args:
        plan: The plan.
        graph: The graph when it was read a moment ago, for this very plan.

    Attributes:
        plan: The plan.
        graph: The graph as last read.
        done: What was done, in order.
        tried: What was begun; it may have failed.
        sent: Whether any command of the plan went out.
        forward: Whether the step that cannot be taken back went out.
        moved: Whether a chain, or bytes of a layer, changed.
        loaded: Whether the guest's memory is another by now, or is not to be trusted: a load had begun to
            move something when it failed, or has ended, or the guest was reset.
    """

    def __init__(self, plan: Plan, graph: Graph | None) -> None:
        adopts = any(isinstance(step, AdoptJob | StateJobStep) for step in plan.resumes)
        self.plan = plan
        self.graph = graph
        self.done: list[Step] = list(plan.resumes)
        self.tried: list[Step] = []
        self.sent = adopts
        self.forward = self.state_job is not None  # QEMU carries it to its end, whatever is wished
        self.moved = adopts and plan.op != "mirror"
        self.loaded = False

    def failed_job(self, error: JobFailed) -> None:
        """Take note of what a job on VM state has left when it failed.

        A load that had begun to move something leaves the guest standing, and nothing is to let it run.
        QEMU takes the others back by itself, and the graph, which is read next, tells.
        """
        job = self.state_job
        if job is None:
            return
        self.loaded = isinstance(job, LoadState) and not failed_early(error.error)
        self.moved = self.loaded or any(changes(step) for step in self.done if step is not job)
        if self.loaded:
            error.hint = f"the guest is paused, and its memory cannot be trusted: {LOAD_FAILED}"

    @property
    def copies(self) -> bool:
        """Whether the job's offset is in bytes that it copied."""
        return (self.plan.start is not None or self.plan.intent is None) and self.state_job is None

    @property
    def state_job(self) -> StateJobStep | None:
        """The step that has started a job on VM state: QEMU answers nobody while it works."""
        return next((step for step in self.done if isinstance(step, StateJobStep)), None)

    @property
    def state_bytes(self) -> int:
        """Bytes of the VM state that was kept, or that was gone back to, inside the images."""
        keeps = (one for one in self.done if isinstance(one, SaveVm | LoadVm | SaveState | LoadState))
        step = next(keeps, None)
        if step is None or self.graph is None:
            return 0
        return sum(
            one.vm_state_size
            for name in self.plan.disks
            if name in self.graph.disks and self.graph.disks[name].layers
            for one in self.graph.disks[name].active.snapshots
            if one.name == step.name
        )

    def say(self, error: QmpsnapError) -> None:
        """Let the error say what became of the layers."""
        error.changed = Changed.YES if self.moved else Changed.NO
        error.invalid = self.plan.invalid_if_stopped if self.moved else ()
        if error.invalid and not error.hint:
            error.hint = self._mends

    @property
    def _mends(self) -> str:
        """What makes layers good that a commit has written into, or ""."""
        start = self.plan.start
        record = self.plan.record or next((one for one in self.done if isinstance(one, WriteRecord)), None)
        if isinstance(start, StartCommit):
            disk, top, base = start.disk, () if start.active else ("--top", start.top_file), start.base_file
        elif record is not None and (found := fold_of(record.record)) is not None:
            top = () if found.top == found.chain[0] else ("--top", found.top)
            disk, base = found.disk, found.base
        else:
            return ""
        keeps = (
            ("--keep-overlay",)
            if isinstance(start, StartCommit) and start.active and not self.plan.moves
            else ()
        )
        again = command("commit", disk, *top, "--base", base, *keeps)
        return f"the guest's data is unchanged; run the same commit again to make the layers valid: {again}"

    @property
    def later(self) -> str:
        """How what is left of the operation is brought to its end, or ""."""
        named = self.plan.operation_id
        return f"qmpsnap job wait {named} finishes it" if named else ""
