"""Which disks can be given another root while the guest runs, as a revert in place does."""

from __future__ import annotations

from collections.abc import Iterable

from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import quoted
from qmpsnap.model.machine import Machine

# QOM types of devices whose root was changed under a real guest, which then read the new data.
_TRIED = frozenset({"virtio-blk-device", "scsi-hd", "ide-hd"})


def way_back_notes(name: str, disks: Iterable[Disk], machine: Machine) -> tuple[str, ...]:
    """What is in the way back in place to a checkpoint that is about to be taken, by disk."""
    found = ((disk, hindrance(disk, machine)) for disk in disks)
    return tuple(
        f"{what[0]}: a revert has to leave it out (revert {name} --leave {quoted(disk.name)}); checkpoints "
        "of --mode stop and background revert in a new QEMU, with all disks"
        for disk, what in found
        if what is not None
    )


def hindrance(disk: Disk, machine: Machine) -> tuple[str, str] | None:
    """What keeps a disk from getting another root while the guest runs, and where that is; or None."""
    if disk.root != disk.active.node:
        (above, *more) = disk.filters
        if more or above.driver != "throttle" or not above.group:
            return f"{disk.name} is under the filter {above.node!r} ({above.driver})", f"under {above.driver}"
        return None
    device, plugged = machine.devices.get(disk.name), machine.plugged(disk.name)
    if device is None or plugged is None:
        return (
            f"{disk.name} has no device whose root node could be replaced ({disk.qdev!r})",
            "without a device",
        )
    if device.kind in _TRIED and not _nested(device.path, device.kind):
        return None
    what = f"{disk.name} is {plugged.kind} ({plugged.path}), which is not known to accept another root node"
    return what, f"on {plugged.kind}"


def _nested(path: str, kind: str) -> bool:
    """Whether the device lies inside another one: a stick's disk keeps its chain whatever it answers."""
    depth = path.count("/")
    return depth != (4 if kind == "virtio-blk-device" else 3)
