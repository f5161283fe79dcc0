"""The one door to the planners: which file plans which intent, and what each has to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.plan.chain import commit, mirror, overlays, prune, snapshot, stream
from qmpsnap.plan.checks.backups import ask_backups, refuse_backed_up
from qmpsnap.plan.checks.disk import refuse_jobs, refuse_migrated
from qmpsnap.plan.checks.keepers import without_abandoned
from qmpsnap.plan.checks.opened import refuse_lost
from qmpsnap.plan.inside import checkpoint as checkpoint_internal
from qmpsnap.plan.inside import snapshot as snapshot_internal
from qmpsnap.plan.intent import Intent
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import refuse_unchangeable, state_questions, with_parents
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.plan.vmstate import checkpoint, delete, load, revert, revert_new, revert_off, save, store
from qmpsnap.plan.written import noted, renewing


@dataclass(frozen=True, slots=True)
class Planner:
    """What plans an intent.

    Attributes:
        plan: The plan, or a refusal; a planner that works on the guest gets a `GuestScene`.
        works_on: "disks", refused while their images are migrated; the "guest"; or "files" that are not open.
        ask: What it wants to know about the file system, besides the records.
        ask_again: What it wants to know once the records have been read.
        guards: What refuses the intent before it is planned, in order.
    """

    plan: Callable[[Any, Any], Plan]
    works_on: Literal["disks", "guest", "files"]
    ask: Callable[..., Ask] | None = None
    ask_again: Callable[..., Ask] | None = None
    guards: tuple[Callable[[Any], None], ...] = ()


def _refuse_jobs(scene: Scene) -> None:
    refuse_jobs(scene.jobs)


def _refuse_lost(scene: Scene) -> None:
    refuse_lost(scene, scene.graph.writable())


def _refuse_migrated(scene: GuestScene) -> None:
    refuse_migrated(scene.machine.guest)


_MEMORY = (_refuse_lost, _refuse_jobs)

PLANNERS: Mapping[str, Planner] = {
    "snapshot": Planner(snapshot.plan, "disks", overlays.ask),
    "snapshot-paused": Planner(snapshot.plan_paused, "guest", overlays.ask, guards=(_refuse_migrated,)),
    "snapshot-internal": Planner(snapshot_internal.plan, "disks"),
    "stream": Planner(stream.plan, "disks", stream.ask),
    "commit": Planner(commit.plan, "disks", commit.ask),
    "mirror": Planner(mirror.plan, "disks", mirror.ask),
    "delete": Planner(delete.plan, "guest", ask_again=delete.ask_again),
    "prune": Planner(prune.plan, "disks", ask_again=prune.ask_again),
    "checkpoint": Planner(checkpoint.plan, "guest", checkpoint.ask, guards=(_refuse_jobs,)),
    "checkpoint-internal": Planner(checkpoint_internal.plan, "guest", guards=(_refuse_migrated,)),
    "makestore": Planner(store.plan, "guest", ask_again=store.ask_again),
    "revert": Planner(revert.plan, "guest", ask_again=revert.ask_again),
    "revert-new": Planner(revert_new.plan_prepare, "files", ask_again=revert.ask_again, guards=_MEMORY),
    "revert-incoming": Planner(revert_new.plan_incoming, "guest", ask_again=revert.ask_again, guards=_MEMORY),
    "save": Planner(save.plan_save, "guest", save.ask_save, guards=_MEMORY),
    "load": Planner(load.plan, "guest", load.ask, guards=(_refuse_jobs,)),
    "savedevices": Planner(load.plan_devices, "guest", load.ask_devices, guards=(_refuse_jobs,)),
    "restore": Planner(save.plan_restore, "guest", save.ask_restore, guards=_MEMORY),
}
"""What plans each intent, by its kind: a new operation is a line here."""

OFF: Mapping[str, Planner] = {
    "delete": Planner(delete.plan_off, "disks", ask_again=delete.ask_again),
    "revert": Planner(revert_off.plan, "disks", ask_again=revert_off.ask_again, guards=_MEMORY),
}
"""What plans an intent in another way when the machine is off; the others are planned alike."""

_CHANGE_LAYERS = frozenset({"stream", "commit", "delete", "prune"})


def _planner(intent: Intent, *, off: bool) -> Planner:
    kind = intent.kind
    return OFF[kind] if off and kind in OFF else PLANNERS[kind]


def ask(intent: Intent, graph: Graph, *, state_dir: str = "", off: bool = False) -> Ask:
    """What has to be known about the file system before `plan` can answer.

    Args:
        intent: What is wanted.
        graph: The graph as read.
        state_dir: Where records go when the caller says so, else "".
        off: Whether the machine is off.

    Raises:
        Refused: When a name in the intent means nothing, or two things.
    """
    places = state_questions(graph, state_dir)
    records = Ask(directories=with_parents(places), records=places) | ask_backups(graph)
    more = _planner(intent, off=off).ask
    return records | more(intent, graph, state_dir) if more is not None else records


def ask_again(
    intent: Intent, graph: Graph, files: Files, *, state_dir: str = "", off: bool = False
) -> Ask | None:
    """What has to be known besides, now that the records have been read; None: nothing."""
    more = _planner(intent, off=off).ask_again
    if more is None:
        return None
    return ask(intent, graph, state_dir=state_dir, off=off) | more(intent, graph, files)


def works_on(intent: Intent, *, off: bool = False) -> Literal["disks", "guest", "files"]:
    """What the intent's plan works on; see `Planner`."""
    return _planner(intent, off=off).works_on


def plan(intent: Intent, scene: Scene, *, off: bool = False) -> Plan:
    """The plan, or a typed refusal; the same input gives the same plan.

    Args:
        intent: What is wanted.
        scene: What is.
        off: Whether the machine is off.

    Raises:
        Refused: One of its kinds; nothing was sent.
    """
    planner = _planner(intent, off=off)
    for guard in planner.guards:
        guard(scene)
    planned = renewing(noted(planner.plan(intent, scene), scene), scene)
    refuse_backed_up(planned, scene)
    refuse_unchangeable(planned.steps, scene.files)
    return without_abandoned(planned, scene.files) if intent.kind in _CHANGE_LAYERS else planned
