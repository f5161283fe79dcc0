"""The one door to the planners: which file plans which intent."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from qmpsnap.plan.chain import commit, mirror, snapshot, stream
from qmpsnap.plan.checks.busy import refuse_migrated
from qmpsnap.plan.checks.opened import refuse_lost
from qmpsnap.plan.inside import checkpoint as checkpoint_internal
from qmpsnap.plan.inside import delete
from qmpsnap.plan.inside import snapshot as snapshot_internal
from qmpsnap.plan.intent import (
    Checkpoint,
    CheckpointInternal,
    Commit,
    Delete,
    Intent,
    Mirror,
    PrepareRevert,
    Restore,
    Revert,
    RevertIncoming,
    Save,
    Snapshot,
    SnapshotInternal,
    Stream,
)
from qmpsnap.plan.vmstate import checkpoint, revert, revert_new, save

if TYPE_CHECKING:
    from qmpsnap.model.files import Ask, Files
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.plan import Plan
    from qmpsnap.plan.scene import Scene

__all__ = ["ask", "ask_again", "needs_machine", "needs_standing", "plan"]


_ON_DISKS = Snapshot | SnapshotInternal | Stream | Commit | Mirror


def ask(intent: Intent, graph: Graph, *, state_dir: str = "") -> Ask:
    """What has to be known about the file system before `plan` can answer.

    Args:
        intent: What is wanted.
        graph: The graph as read.
        state_dir: Where records go when the caller says so, else "".

    Raises:
        Refused: When a name in the intent means nothing, or two things.
    """
    match intent:
        case Snapshot():
            return snapshot.ask(intent, graph, state_dir=state_dir)
        case SnapshotInternal():
            return snapshot_internal.ask(intent, graph, state_dir=state_dir)
        case Delete():
            return delete.ask(intent, graph, state_dir=state_dir)
        case CheckpointInternal():
            return checkpoint_internal.ask(intent, graph, state_dir=state_dir)
        case Checkpoint():
            return checkpoint.ask(intent, graph, state_dir=state_dir)
        case Revert() | PrepareRevert() | RevertIncoming():
            return revert.ask(intent, graph, state_dir=state_dir)
        case Save():
            return save.ask_save(intent, graph, state_dir=state_dir)
        case Restore():
            return save.ask_restore(intent, graph, state_dir=state_dir)
        case Stream():
            return stream.ask(intent, graph, state_dir=state_dir)
        case Commit():
            return commit.ask(intent, graph, state_dir=state_dir)
        case Mirror():
            return mirror.ask(intent, graph, state_dir=state_dir)
        case _:
            assert_never(intent)


def ask_again(intent: Intent, graph: Graph, files: Files, *, state_dir: str = "") -> Ask | None:
    """What has to be known besides, now that the records have been read; None: nothing."""
    if isinstance(intent, Revert | PrepareRevert | RevertIncoming):
        return revert.ask_again(intent, graph, files, state_dir=state_dir)
    return None


def needs_machine(intent: Intent) -> bool:
    """Whether `plan` has to know what the machine is beyond its disks: how it stands, what fits it."""
    inside = CheckpointInternal | Delete
    return isinstance(intent, inside | Checkpoint | Revert | RevertIncoming | Save | Restore)


def needs_standing(intent: Intent) -> bool:
    """Whether `plan` has to know that the machine is on its way to no other QEMU, and no more of it."""
    return isinstance(intent, _ON_DISKS)


def plan(intent: Intent, scene: Scene) -> Plan:
    """The plan, or a typed refusal; the same input gives the same plan.

    Raises:
        Refused: One of its kinds; nothing was sent.
    """
    if isinstance(intent, _ON_DISKS):
        refuse_migrated(scene)
    refuse_lost(intent, scene)
    match intent:
        case Snapshot():
            return snapshot.plan(intent, scene)
        case SnapshotInternal():
            return snapshot_internal.plan(intent, scene)
        case Delete():
            return delete.plan(intent, scene)
        case CheckpointInternal():
            return checkpoint_internal.plan(intent, scene)
        case Checkpoint():
            return checkpoint.plan(intent, scene)
        case Revert():
            return revert.plan(intent, scene)
        case PrepareRevert():
            return revert_new.plan_prepare(intent, scene)
        case RevertIncoming():
            return revert_new.plan_incoming(intent, scene)
        case Save():
            return save.plan_save(intent, scene)
        case Restore():
            return save.plan_restore(intent, scene)
        case Stream():
            return stream.plan(intent, scene)
        case Commit():
            return commit.plan(intent, scene)
        case Mirror():
            return mirror.plan(intent, scene)
        case _:
            assert_never(intent)
