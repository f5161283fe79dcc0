"""VM state in a store: whether it can be loaded, and the steps that stop the guest for it and load it."""

from __future__ import annotations

from qmpsnap.errors import InvalidTarget, MachineDiffers
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import FOR_A_LOAD, Machine
from qmpsnap.model.names import digest, job_id, node_name
from qmpsnap.plan.commands.block import open_store
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.state import snapshot_load, stop, stop_for_load
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.step import Step
from qmpsnap.plan.vmstate.common import refuse_foreign


def refuse_store(state: KeptState, machine: Machine, scene: Scene, name: str) -> None:
    """Refuse when the VM state cannot be loaded into this machine."""
    differences = state.fingerprint.differences(machine.fingerprint)
    if differences:
        raise MachineDiffers(
            f"{name!r} belongs to another machine: {'; '.join(differences)}",
            differences=differences,
            hint="make the machine what it was then",
        )
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
    return (load, await_job(job, "concluded"), job_dismiss(job)), (open_store(node, state.file),)


def pause(state: KeptState | None, machine: Machine, token: str, scene: Scene) -> Step:
    """What lets the guest stand still: as for a load, where memory comes and QEMU translates its code."""
    if state is None or not machine.emulated or not machine.running:
        return stop(ran=machine.unpaused)
    names = {
        one.name for disk in scene.graph.disks.values() for layer in disk.layers for one in layer.snapshots
    }
    return stop_for_load(f"qmpsnap/none/{digest('stop', token, avoid=names)}")


def stale_notes(machine: Machine, name: str) -> tuple[str, ...]:
    """What a load may leave stale where the guest stands: QEMU forgets translated code when one stops it."""
    if not machine.emulated or machine.running or machine.status == FOR_A_LOAD:
        return ()
    note = (
        "QEMU emulates the CPUs (TCG) and the guest is paused: if it was rebooted here since "
        f"{name!r}, it may run stale code after the revert, and panic or hang; resume it (qmpsnap cont) "
        "before the revert, or use checkpoints of --mode stop"
    )
    return (note,)
