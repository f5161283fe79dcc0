"""Plan of an external snapshot: overlays on one or more disks, at one instant."""

from __future__ import annotations

from qmpsnap.model.step import Stage
from qmpsnap.plan.chain import overlays
from qmpsnap.plan.commands.block import snapshot_sync
from qmpsnap.plan.commands.records import keep_moment
from qmpsnap.plan.intent import Snapshot
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.recording import recorded
from qmpsnap.plan.scene import Scene


def plan(intent: Snapshot, scene: Scene) -> Plan:
    """Plan the overlays, their transaction, and the moment's record; or refuse.

    Raises:
        BadName: When the name is outside the grammar.
        NotFound: When there is no such disk.
        AmbiguousName: When a disk's spelling fits two.
        Busy: When a job holds one of the chains.
        TargetExists: When an overlay's file exists, or the moment's name is in use.
        InvalidTarget: When an overlay cannot be created there, or one that exists does not fit.
        Unsupported: When a disk is read-only or empty, or this QEMU lacks a command.
    """
    new = overlays.prepare("snapshot", intent, scene)
    stages = [
        Stage("create the overlays", new.make),
        Stage("take the snapshot", (snapshot_sync(new.overlays),), verify=True),
    ]
    if new.place:
        keep = keep_moment(new.place, new.id, intent.name)
        stages.append(Stage("record the snapshot", (*new.over, keep), tidy=True))
    plan = Plan(
        op="snapshot",
        intent=intent,
        disks=new.names,
        stages=tuple(stages),
        before=scene.graph,
        moves=new.names,
        notes=new.notes,
    )
    return recorded(plan, new.place, id=new.id, created=scene.now, name=intent.name)
