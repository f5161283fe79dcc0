"""`qmpsnap list`: the moments that the disks hold."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from qmpsnap.cli.app import verb
from qmpsnap.cli.output import emit, shown, size, spell, table, tell
from qmpsnap.cli.runner import current_app, run

if TYPE_CHECKING:
    from qmpsnap.cli.signals import Signals
    from qmpsnap.model.moments import Held, Moment, Moments
    from qmpsnap.vm import VM

__all__ = ["list_"]

_HEADER = ("NAME", "KIND", "TAKEN", "OVERLAYS", "VM STATE", "DISKS", "")
_RIGHT = ("OVERLAYS", "VM STATE")


@verb(
    "list", example="qmpsnap -s /run/vm1/qmp.sock list", short_help="List snapshots, external and internal."
)
def list_() -> None:
    """List the moments that the disks hold, the oldest first: external and internal snapshots.

    Times are local; with --json they are UTC. OVERLAYS is what the overlays that began at a moment take on
    the host by now, VM STATE what an image keeps of the guest's memory.
    """

    async def work(vm: VM, signals: Signals) -> Moments:
        del signals
        return await vm.moments()

    found = run(work)
    if not found.records_seen:
        tell("warning: QEMU's files are not visible from here, so external snapshots are not known")
    if current_app().json:
        emit(
            spell(
                moments=[_json(one) for one in found.moments],
                current=dict(found.current),
                records_seen=found.records_seen,
            )
        )
        return
    lines = table(_HEADER, map(_row, found.moments), right=_RIGHT, indent="") if found.moments else []
    lines += [f"{shown(disk)}: since {shown(name)}" for disk, name in found.current.items() if name]
    emit(*lines or ["no snapshots"])


def _row(moment: Moment) -> tuple[str, ...]:
    return (
        moment.name,
        moment.kind,
        f"{datetime.fromisoformat(moment.created).astimezone():%Y-%m-%d %H:%M:%S}",
        size(moment.allocated) if moment.kind == "external" else "",
        size(moment.vm_state_size) if moment.vm_state_size else "",
        ", ".join(moment.disks),
        "; ".join(_remarks(moment)),
    )


def _remarks(moment: Moment) -> list[str]:
    remarks = ["current"] if moment.current else []
    for part in moment.held:
        if part.invalid:
            remarks.append(f"INVALID on {part.disk}: a commit wrote into {part.file}")
        elif not part.in_chain and part.overlay:
            remarks.append(f"on {part.disk} not in the chain any more: {part.file}")
        elif not part.in_chain:
            remarks.append(f"below the active layer of {part.disk}: {part.file}")
    return remarks


def _json(moment: Moment) -> dict[str, object]:
    return {
        "name": moment.name,
        "kind": moment.kind,
        "created": moment.created,
        "current": moment.current,
        "allocated": moment.allocated,
        "vm_state_size": moment.vm_state_size,
        "held": [_part(part) for part in moment.held],
    }


def _part(part: Held) -> dict[str, object]:
    return {
        "disk": part.disk,
        "file": part.file,
        "overlay": part.overlay,
        "allocated": part.allocated,
        "id": part.id,
        "vm_state_size": part.vm_state_size,
        "in_chain": part.in_chain,
        "invalid": part.invalid,
    }
