"""What a revert in place depends on: the devices of the disks, and the VM state in its store."""

from __future__ import annotations

from collections.abc import Iterable

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import quoted
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import FOR_A_LOAD, Machine
from qmpsnap.model.names import digest, job_id, node_name
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.block import open_store_to_read
from qmpsnap.plan.commands.jobs import done_and_dismissed
from qmpsnap.plan.commands.state import snapshot_load, stop, stop_for_load
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate.common import refuse_foreign, refuse_other


def refuse_store(state: KeptState, machine: Machine, scene: Scene, name: str) -> None:
    """Refuse when the VM state cannot be loaded into this machine."""
    refuse_other(machine, state.fingerprint, what=repr(name), hint="make the machine what it was then")
    refuse_broken(state, scene, name)


def refuse_broken(state: KeptState, scene: Scene, name: str) -> None:
    """Refuse when the store is missing or broken, or is not that of the checkpoint."""
    fact = scene.files.files[state.file]
    if fact.kind != "regular" or fact.header is None or fact.header.format != "qcow2":
        raise InvalidTarget(
            f"the VM state of {name!r} is gone or broken: {state.file} {fact.problem}".rstrip(),
            file=state.file,
        )
    if not fact.header.snapshot_count or fact.header.backing or fact.header.data_file is not None:
        raise InvalidTarget(f"{state.file} is not a VM state store of qmpsnap", file=state.file)
    kept = scene.files.memories[state.file]
    refuse_foreign(kept, state)
    if state.tag not in kept.tags:
        raise InvalidTarget(
            f"{state.file} has no VM state {state.tag!r}{': ' + kept.problem if not kept.tags else ''}",
            file=state.file,
        )


def load_store(
    state: KeptState | None, token: str, scene: Scene
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """The steps that load the VM state, and the one that opens its store; none where there is none."""
    if state is None:
        return (), ()
    node = node_name(digest(token, "store", avoid=scene.names), owned=True)
    job = job_id("revert", "keep", token)
    load = snapshot_load(job, state.tag, (("", node),), node)
    return done_and_dismissed(load), (open_store_to_read(node, state.file),)


def pause(state: KeptState | None, machine: Machine, token: str, scene: Scene) -> Step:
    """What pauses the guest: as for a load, if memory is loaded and QEMU translates the guest's code."""
    if state is None or not machine.emulated or not machine.running:
        return stop(ran=machine.unpaused)
    layers = (layer for disk in scene.graph.disks.values() for layer in disk.layers)
    names = {snapshot.name for layer in layers for snapshot in layer.snapshots}
    return stop_for_load(f"qmpsnap/none/{digest('stop', token, avoid=names)}")


def load_notes(machine: Machine, name: str) -> tuple[str, ...]:
    """What to know before a load: that it resumes the guest after a failed load, or may leave stale code.

    Stale code is what QEMU has translated: a load into a paused guest does not discard it.
    """
    if machine.status == FOR_A_LOAD:
        return ("the guest is resumed: it was running until a load of VM state failed",)
    if not machine.emulated or machine.running:
        return ()
    note = (
        "QEMU emulates the CPUs (TCG) and the guest is paused: if it was rebooted here since "
        f"{name!r}, it may run stale code after the revert, and panic or hang; resume it (qmpsnap cont) "
        "before the revert, or use checkpoints of --mode stop"
    )
    return (note,)


# QOM types of devices whose root was changed under a real guest, which then read the new data.
_TRIED = frozenset({"virtio-blk-device", "scsi-hd", "ide-hd"})


def revert_notes(name: str, disks: Iterable[Disk], machine: Machine) -> tuple[str, ...]:
    """What will prevent a revert in place to a checkpoint that is being taken, by disk."""
    hindrances = ((disk, hindrance(disk, machine)) for disk in disks)
    return tuple(
        f"{reason[0]}: a revert has to leave it out (revert {name} --leave {quoted(disk.name)}); checkpoints "
        "of --mode stop and background revert in a new QEMU, with all disks"
        for disk, reason in hindrances
        if reason is not None
    )


def hindrance(disk: Disk, machine: Machine) -> tuple[str, str] | None:
    """Why a disk cannot get another root while the guest runs, and where that is; or None."""
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
    """Whether the device is inside another one: a USB stick's disk keeps its chain whatever it answers."""
    depth = path.count("/")
    return depth != (4 if kind == "virtio-blk-device" else 3)
