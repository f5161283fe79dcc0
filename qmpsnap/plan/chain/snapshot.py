"""Plan of an external snapshot: overlays on one or more disks, at one instant."""

from __future__ import annotations

from qmpsnap.errors import Unsupported
from qmpsnap.model.record import Origin
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.chain import overlays
from qmpsnap.plan.commands.block import snapshot_sync
from qmpsnap.plan.commands.records import keep_moment
from qmpsnap.plan.commands.state import cont, stop
from qmpsnap.plan.intent import Snapshot
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.recording import recorded
from qmpsnap.plan.scene import GuestScene, Scene


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
    return _plan(intent, new, (snapshot_sync(new.overlays),), scene)


def plan_paused(intent: Snapshot, scene: GuestScene) -> Plan:
    """Plan a snapshot for which a running guest is paused, as part of a group's; or refuse, as `plan` does.

    Raises:
        Unsupported: When there is no writable directory for records, without which no group is known.
    """
    new = overlays.prepare("snapshot", intent, scene)
    if not new.place:
        raise Unsupported(
            "there is no writable directory for records, by which the moments of a group are found",
            feature="a moment of a group without a record",
            hint="name one: state_dir=DIR",
        )
    running = scene.machine.running
    steps = (stop(ran=running), snapshot_sync(new.overlays), *((cont(),) if running else ()))
    return _plan(intent, new, steps, scene, Origin(running, scene.machine.process))


def _plan(
    intent: Snapshot,
    new: overlays.Overlays,
    take: tuple[Step, ...],
    scene: Scene,
    origin: Origin | None = None,
) -> Plan:
    stages = [
        Stage("create the overlays", new.make),
        Stage("take the snapshot", take, verify=True),
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
        run_state=scene.machine.status if isinstance(scene, GuestScene) else "",
        notes=new.notes,
    )
    return recorded(
        plan,
        new.place,
        id=new.id,
        created=scene.now,
        name=intent.name,
        origin=origin,
        member=intent.member,
    )
