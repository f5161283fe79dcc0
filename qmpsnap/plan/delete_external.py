"""Plan of the deletion of an external checkpoint: its VM state and its name go, the layers stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import Unsupported
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.scene import refuse_any_job
from qmpsnap.plan.steps import FinishRecord, RemoveState

if TYPE_CHECKING:
    from qmpsnap.model.moments import Moment
    from qmpsnap.plan.intent import Delete
    from qmpsnap.plan.scene import Scene

__all__ = ["plan"]


def plan(intent: Delete, moment: Moment, scene: Scene) -> Plan:
    """Plan to delete an external moment that has VM state; or refuse.

    Raises:
        Unsupported: When it is of disks alone.
        NodeBusy: When a job is under way, which may be loading that state.
    """
    record = moment.record
    if record is None or record.state is None:
        part = moment.held[0]
        raise Unsupported(
            f"{intent.name!r} is an external snapshot (its overlay is {part.overlay}); those cannot be "
            "deleted yet",
            feature="deletion of an external snapshot",
            hint="fold its overlay by commit: "
            f"qmpsnap commit {part.disk} --top {part.overlay} --base {part.file}",
        )
    refuse_any_job(scene)
    steps = (RemoveState(record.state.file), FinishRecord(record.directory, (), (record.id,)))
    folds = [
        f"qmpsnap commit {part.disk} --top {part.overlay} --base {part.file}"
        for part in moment.held
        if part.in_chain
    ]
    present = {file for disk in scene.graph.disks.values() for file in disk.files}
    aside = [file for part in moment.held for file in record.began(part.disk) if file not in present]
    notes = [f"the layers stay; to fold its overlay: {'; '.join(folds)}"] if folds else ["the layers stay"]
    if aside:
        notes.append(f"in no chain of this machine by now: {', '.join(aside)}")
    return Plan(
        op="delete",
        intent=intent,
        disks=tuple(part.disk for part in moment.held),
        stages=(Stage(f"delete the VM state of {intent.name!r}, and its name", steps),),
        before=scene.graph,
        after=scene.graph,
        notes=tuple(notes),
    )
