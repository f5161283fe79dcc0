"""The one door to the planners: which file plans which intent, and what each has to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.plan.chain import commit, mirror, overlays, snapshot, stream
from qmpsnap.plan.checks.disk import refuse_jobs, refuse_migrated
from qmpsnap.plan.checks.opened import refuse_lost
from qmpsnap.plan.inside import checkpoint as checkpoint_internal
from qmpsnap.plan.inside import snapshot as snapshot_internal
from qmpsnap.plan.intent import Intent
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import state_questions, with_parents
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate import checkpoint, delete, revert, save


@dataclass(frozen=True, slots=True)
class Planner:
    """What plans an intent.

    Attributes:
        plan: The plan, or a refusal.
        machine: What it has to know of the machine beyond its disks: all; with "standing" whether it migrates
            or has migrated; or nothing.
        ask: What it wants to know about the file system, besides the records.
        ask_again: What it wants to know once the records have been read.
        guards: What refuses the intent before it is planned, in order.
    """

    plan: Callable[[Any, Scene], Plan]
    machine: Literal["all", "standing", "nothing"]
    ask: Callable[..., Ask] | None = None
    ask_again: Callable[..., Ask] | None = None
    guards: tuple[Callable[[Scene], None], ...] = ()


def _refuse_jobs(scene: Scene) -> None:
    refuse_jobs(scene.jobs)


def _refuse_lost(scene: Scene) -> None:
    refuse_lost(scene, scene.graph.writable())


_WRITES = (refuse_migrated,)
_MEMORY = (_refuse_lost, _refuse_jobs)

PLANNERS: Mapping[str, Planner] = {
    "snapshot": Planner(snapshot.plan, "standing", overlays.ask, guards=_WRITES),
    "snapshot-internal": Planner(snapshot_internal.plan, "standing", guards=_WRITES),
    "stream": Planner(stream.plan, "standing", guards=_WRITES),
    "commit": Planner(commit.plan, "standing", commit.ask, guards=_WRITES),
    "mirror": Planner(mirror.plan, "standing", mirror.ask, guards=_WRITES),
    "delete": Planner(delete.plan, "all"),
    "checkpoint": Planner(checkpoint.plan, "all", checkpoint.ask, guards=(_refuse_jobs,)),
    "checkpoint-internal": Planner(checkpoint_internal.plan, "all", guards=_WRITES),
    "revert": Planner(revert.plan, "all", ask_again=revert.ask_again),
    "revert-new": Planner(revert.plan_prepare, "nothing", ask_again=revert.ask_again, guards=_MEMORY),
    "revert-incoming": Planner(revert.plan_incoming, "all", ask_again=revert.ask_again, guards=_MEMORY),
    "save": Planner(save.plan_save, "all", save.ask_save, guards=_MEMORY),
    "restore": Planner(save.plan_restore, "all", save.ask_restore, guards=_MEMORY),
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
    places = state_questions(graph, state_dir)
    records = Ask(directories=with_parents(places), records=places)
    more = PLANNERS[intent.kind].ask
    return records | more(intent, graph, state_dir) if more is not None else records


def ask_again(intent: Intent, graph: Graph, files: Files, *, state_dir: str = "") -> Ask | None:
    """What has to be known besides, now that the records have been read; None: nothing."""
    more = PLANNERS[intent.kind].ask_again
    if more is None:
        return None
    return ask(intent, graph, state_dir=state_dir) | more(intent, graph, files)


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
    for guard in planner.guards:
        guard(scene)
    return planner.plan(intent, scene)
