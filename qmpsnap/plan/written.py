"""Snapshots to whose layers somebody else has written: what is said of them, and what is refused.

Such a snapshot need not be lost: whoever touches a file, or repairs an image, writes to it, too. So it is
reported, and disks are reverted to it all the same. But its memory is not loaded: a guest whose memory does
not match its disks destroys its file systems.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection
from datetime import UTC, datetime

from msgspec import structs

from qmpsnap.errors import MachineDiffers
from qmpsnap.model.hints import command
from qmpsnap.model.layer_stamps import WrittenLayer, with_renewals, written_layers
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.records import record_of, write_record
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene


def written_note(layer: WrittenLayer) -> str:
    """What is said of a layer of a snapshot that was written to since."""
    return (
        f"{layer.file}, from which {layer.moment!r} of {layer.disk} is read, was written to at "
        f"{in_utc(layer.at)}, after the snapshot ({in_utc(layer.taken)}), and not by qmpsnap: it may hold "
        "other data by now"
    )


def accepted(layer: WrittenLayer) -> tuple[str, ...]:
    """The command that says that the layer still holds the moment: its file gets its former time back."""
    return ("touch", "-d", f"@{layer.was // 10**9}.{layer.was % 10**9:09}", layer.file)


def refuse_written(name: str, written: Collection[WrittenLayer]) -> None:
    """Refuse to load the memory of a moment when somebody else has written to layers of its disks.

    Raises:
        MachineDiffers: Naming each of these layers.
    """
    if written:
        differences = [written_note(layer) for layer in written]
        same = "; ".join(shlex.join(accepted(layer)) for layer in written)
        raise MachineDiffers(
            f"the disks may no longer be those of {name!r}: {'; '.join(differences)}",
            differences=differences,
            hint="running a guest's memory with other disks would destroy its file systems; boot the guest "
            f"instead: {command('revert', name, '--prepare')} creates overlays to start from. If the guest "
            f"reads what it read (the file was only touched, or repaired), say so: {same}",
        )


def written_since(record: MomentRecord, disks: Collection[str], scene: Scene) -> tuple[WrittenLayer, ...]:
    """Layers of these disks of a moment to which somebody else has written since."""
    return tuple(layer for layer in written_layers(record, scene.files) if layer.disk in disks)


def noted(plan: Plan, scene: Scene) -> Plan:
    """The plan, with notes on the layers of its moment that somebody else has written to."""
    if not isinstance(plan.intent, Revert):
        return plan
    record = scene.moment(plan.intent.name).record
    if record is None:
        return plan
    notes = map(written_note, written_since(record, plan.disks, scene))
    return dataclasses.replace(plan, notes=(*plan.notes, *notes))


def renewing(plan: Plan, scene: Scene) -> Plan:
    """The plan, whose record names the moments that get new stamps, as its job writes to their layers."""
    moments = [one for one in scene.files.records if isinstance(one, MomentRecord) and one.stamps]
    if not moments:
        return plan

    def updated(step: Step) -> Step:
        record = record_of(step)
        if record is None:
            return step
        return write_record(step.arguments["directory"], with_renewals(record, moments))

    stages = (structs.replace(stage, steps=tuple(map(updated, stage.steps))) for stage in plan.stages)
    then = (renewing(part, scene) for part in plan.then)
    return dataclasses.replace(plan, stages=tuple(stages), then=tuple(then))


def in_utc(iso: str) -> str:
    """A time in ISO 8601 as people read it."""
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
