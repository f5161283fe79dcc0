"""What is known of one run of a plan: what was done, and what became of the layers by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import Changed
from qmpsnap.plan.steps import AdoptJob

if TYPE_CHECKING:
    from qmpsnap.errors import QmpsnapError
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.plan import Plan
    from qmpsnap.plan.steps import Step

__all__ = ["Course"]


class Course:
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
        adopts = any(isinstance(step, AdoptJob) for step in plan.resumes)
        self.plan = plan
        self.graph = graph
        self.done: list[Step] = list(plan.resumes)
        self.tried: list[Step] = []
        self.sent = adopts
        self.forward = False
        self.moved = adopts and plan.op != "mirror"
        self.loaded = False

    def say(self, error: QmpsnapError) -> None:
        """Let the error say what became of the layers."""
        error.changed = Changed.YES if self.moved else Changed.NO
        error.invalid = self.plan.invalid_if_stopped if self.moved else ()

    @property
    def later(self) -> str:
        """How what is left of the operation is brought to its end, or ""."""
        named = self.plan.job_id or (self.plan.record.record.id if self.plan.record else "")
        return f"qmpsnap job wait {named} brings it to its end" if named else ""
