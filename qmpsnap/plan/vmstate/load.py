"""Plans for a QEMU that was started for a checkpoint: load its memory, or save the devices without memory.

Such a QEMU ends when it has done its work, or is a new machine. So no record is written, and after a failure
nothing has to be finished. Its disks are new overlays, which nobody else uses.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping

from qmpsnap.errors import InvalidTarget, MachineDiffers, Unsupported
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Graph
from qmpsnap.model.names import digest, job_id
from qmpsnap.model.option_hints import Hint
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.commands.files import create_memory, seal_memory
from qmpsnap.plan.commands.migration import await_closed, await_migration, migrate
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.intent import Load, SaveDevices
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import GuestScene
from qmpsnap.plan.vmstate.common import (
    Passage,
    file_number,
    need_open_files,
    refuse_foreign,
    refuse_memory_place,
    refuse_other,
    undone,
)
from qmpsnap.plan.vmstate.in_place import load_store, refuse_store
from qmpsnap.plan.vmstate.save import load_steps, refuse_unseen, whole_note

_FRESH = frozenset({"prelaunch", "paused"})
_SAME_FILES = "start this QEMU where it sees the same files as qmpsnap: in no other chroot or container"


def ask(intent: Load, _graph: Graph, _state_dir: str) -> Ask:
    """Return what the planner asks: about the overlays, and the file of VM state."""
    if intent.unfinished:
        return Ask(files=tuple(intent.disks.values()))
    file = intent.state.file
    return Ask(files=(*intent.disks.values(), file), memories=(file,))


def ask_devices(intent: SaveDevices, _graph: Graph, _state_dir: str) -> Ask:
    """Return what the planner asks: about the file, and its directory."""
    return Ask(files=(intent.file,), directories=(posixpath.dirname(intent.file),))


def plan(intent: Load, scene: GuestScene) -> Plan:
    """Plan to load a checkpoint's memory into a QEMU that was started for it; or refuse.

    Raises:
        MachineDiffers: When it is another machine, or a disk does not read its overlay.
        Unsupported: When it does not wait for VM state, has run already, or sees other files than we do.
        InvalidTarget: When the file of VM state is missing, incomplete, or not the checkpoint's.
    """
    machine, state = scene.machine, intent.state
    refuse_other(machine, state.fingerprint, what=repr(intent.name))
    refuse_unseen(scene.files, hint=_SAME_FILES)
    refuse_other_images(scene.graph, intent.disks, same=scene.files.same)
    token = digest("load", intent.name, state.file, avoid=scene.names)
    go_on = (cont(),) if intent.resume else ()
    open_steps: tuple[Step, ...] = ()
    if state.mode == "in-place":
        if machine.status not in _FRESH:
            raise Unsupported(
                f"the machine is in the state {machine.status}, not paused before it has run",
                feature="loading a checkpoint into a machine that has run",
                hint="start a new QEMU with -S",
            )
        refuse_store(state, machine, scene, intent.name)
        load, open_steps = load_store(state, token, scene)
        steps, after = (*load, *go_on), undone(open_steps)
    else:
        inode = 0 if intent.unfinished else _whole(intent, scene)
        steps, after = load_steps(
            machine,
            intent.fifo or state.file,
            file_number(token),
            running=intent.resume,
            inode=0 if intent.fifo else inode,
            mapped=intent.mapped,
            fifo=bool(intent.fifo),
        )
    return Plan(
        op="load",
        intent=intent,
        disks=tuple(intent.disks),
        stages=(
            Stage("open the VM state", open_steps),
            Stage(f"load the memory of {intent.name!r}", steps),
            Stage("restore the settings", after, tidy=True),
        ),
        before=scene.graph,
        run_state=machine.status,
    )


def plan_devices(intent: SaveDevices, scene: GuestScene) -> Plan:
    """Plan to save the devices' state of a paused machine whose memory is mapped from a file; or refuse.

    Raises:
        Unsupported: When the guest is running, or QEMU cannot leave the memory out.
        TargetExists, InvalidTarget: When the file cannot be created.
    """
    machine = scene.machine
    if machine.running or machine.incoming:
        raise Unsupported(
            f"the machine is in the state {machine.status}, not paused with its memory loaded",
            feature="saving the devices' state alone",
        )
    need_open_files(machine)
    refuse_unseen(scene.files, hint=_SAME_FILES)
    token = digest("devices", intent.file, avoid=scene.names)
    id = job_id("save", "keep", token)  # noqa: A001 - a record's word
    partial = f"{intent.file}.partial"
    # A QEMU that has only loaded a state has no migration thread, so there is no end to wait for.
    refuse_memory_place(scene, intent.file, option=Hint(""), mapped=True)
    passage = Passage(machine, partial, file_number(token), mapped=True)
    seal = seal_memory(
        partial,
        intent.file,
        id=id,
        name=intent.name,
        running=True,
        fingerprint=machine.fingerprint,
    )
    return Plan(
        op="save-devices",
        intent=intent,
        disks=tuple(disk.name for disk in scene.graph.disks.values() if disk.layers),
        stages=(
            Stage("create the file", (create_memory(partial), *passage.sets, passage.passed)),
            Stage(
                "save the devices' state",
                (migrate(passage.uri), *passage.released, await_migration("saved"), await_closed(partial)),
            ),
            Stage("complete the file", (seal,)),
            Stage("restore the settings", passage.after, tidy=True),
        ),
        before=scene.graph,
        run_state=machine.status,
    )


def refuse_other_images(graph: Graph, given: Mapping[str, str], *, same: Callable[[str, str], bool]) -> None:
    """Refuse if the root of a disk is not the overlay that the launcher was given for it.

    Args:
        graph: The new QEMU's.
        given: The overlay of each disk, by the disk's name.
        same: Whether two paths lead to one file.

    Raises:
        MachineDiffers: When it is not; the message names each such disk.
    """
    differences = []
    for name, file in given.items():
        disk = graph.disks.get(name)
        actual = disk.active.file if disk is not None and disk.layers else "nothing"
        if not same(file, actual):
            differences.append(f"its disk {name} reads {actual}, not {file}")
    if differences:
        raise MachineDiffers(
            f"the launcher did not use the images that it was given: {'; '.join(differences)}",
            differences=differences,
            hint="a launcher must start each disk from its image in the Start with which it is called",
        )


def _whole(intent: Load, scene: GuestScene) -> int:
    """Return the inode of the stream's file; refuse one that is incomplete, or not the checkpoint's."""
    state = intent.state
    note, fact = whole_note(scene.files, state.file), scene.files.memories[state.file]
    if state.token and not note.id.endswith(state.token):
        raise InvalidTarget(f"{state.file} is not the VM state of {intent.name!r}", file=state.file)
    refuse_foreign(fact, state)
    return fact.inode
