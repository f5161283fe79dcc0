"""The one door to the planners: which file plans which intent, and what each has to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.plan.chain import commit, mirror, overlays, snapshot, stream
from qmpsnap.plan.checks.busy import refuse_migrated
from qmpsnap.plan.inside import checkpoint as checkpoint_internal
from qmpsnap.plan.inside import delete
from qmpsnap.plan.inside import snapshot as snapshot_internal
from qmpsnap.plan.intent import Intent
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate import checkpoint, revert, revert_new, save


@dataclass(frozen=True, slots=True)
class Planner:
    """What plans an intent.

    Attributes:
        ask: What it wants to know about the file system.
        plan: The plan, or a refusal.
        machine: What it has to know of the machine beyond its disks: all; with "standing" whether it migrates
            or has migrated, which refuses the intent; or nothing.
        ask_again: What it wants to know besides, once the records have been read.
    """

    ask: Callable[..., Ask]
    plan: Callable[[Any, Scene], Plan]
    machine: Literal["all", "standing", "nothing"]
    ask_again: Callable[..., Ask] | None = None


PLANNERS: Mapping[str, Planner] = {
    "snapshot": Planner(overlays.ask, snapshot.plan, "standing"),
    "snapshot-internal": Planner(snapshot_internal.ask, snapshot_internal.plan, "standing"),
    "stream": Planner(stream.ask, stream.plan, "standing"),
    "commit": Planner(commit.ask, commit.plan, "standing"),
    "mirror": Planner(mirror.ask, mirror.plan, "standing"),
    "delete": Planner(delete.ask, delete.plan, "all"),
    "checkpoint": Planner(checkpoint.ask, checkpoint.plan, "all"),
    "checkpoint-internal": Planner(checkpoint_internal.ask, checkpoint_internal.plan, "all"),
    "revert": Planner(revert.ask, revert.plan, "all", revert.ask_again),
    "revert-new": Planner(revert.ask, revert_new.plan_prepare, "nothing", revert.ask_again),
    "revert-incoming": Planner(revert.ask, revert_new.plan_incoming, "all", revert.ask_again),
    "save": Planner(save.ask_save, save.plan_save, "all"),
    "restore": Planner(save.ask_restore, save.plan_restore, "all"),
}
"""What plans each intent, by its kind: a new operation is a line here."""


def ask(intent: Intent, graph: Graph, *, state_dir: str = "") -> Ask:
    """What has to be known about the file system before `plan` can answer.

    Args:
        intent: What is wanted.
        graph: The graph as read.
        state_dir: Where records go when the caller says so, else "".

    Raises:
        Refused: When a name in the intent means nothing, or two things.
    """
    return PLANNERS[intent.kind].ask(intent, graph, state_dir=state_dir)


def ask_again(intent: Intent, graph: Graph, files: Files, *, state_dir: str = "") -> Ask | None:
    """What has to be known besides, now that the records have been read; None: nothing."""
    again = PLANNERS[intent.kind].ask_again
    return again(intent, graph, files, state_dir=state_dir) if again is not None else None


def needs_machine(intent: Intent) -> bool:
    """Whether `plan` has to know what the machine is beyond its disks: how it stands, what fits it."""
    return PLANNERS[intent.kind].machine == "all"


def needs_standing(intent: Intent) -> bool:
    """Whether `plan` has to know that the machine is on its way to no other QEMU, and no more of it."""
    return PLANNERS[intent.kind].machine == "standing"


def plan(intent: Intent, scene: Scene) -> Plan:
    """The plan, or a typed refusal; the same input gives the same plan.

    Raises:
        Refused: One of its kinds; nothing was sent.
    """
    planner = PLANNERS[intent.kind]
    if planner.machine == "standing":
        refuse_migrated(scene)
    return planner.plan(intent, scene)
