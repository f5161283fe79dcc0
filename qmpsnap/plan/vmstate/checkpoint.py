"""Plan of an external checkpoint: VM state in a file of its own, overlays on all disks, one instant.

stop         the guest is paused, its memory is written to a file, overlays are put on, and it is resumed
background   overlays are put on while it is paused for a moment; memory is written while it runs
in-place     as stop, but the memory is saved in a qcow2 store, and a revert needs no new QEMU
"""

from __future__ import annotations

import posixpath

from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Graph
from qmpsnap.model.interrupted import FORK
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.names import digest, node_name
from qmpsnap.model.option_hints import Hint, Named
from qmpsnap.model.record import Origin
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.chain import overlays
from qmpsnap.plan.chain.overlays import Overlays
from qmpsnap.plan.checks.encryption import refuse_clear_memory
from qmpsnap.plan.commands.block import blockdev_del, flush, open_store, snapshot_sync
from qmpsnap.plan.commands.files import create_memory, create_store, seal_memory, seal_store
from qmpsnap.plan.commands.jobs import done_and_dismissed
from qmpsnap.plan.commands.migration import await_closed, await_migration, migrate
from qmpsnap.plan.commands.records import keep_moment
from qmpsnap.plan.commands.state import cont, snapshot_save, stop
from qmpsnap.plan.inside.snapshot import refuse_taken
from qmpsnap.plan.intent import Checkpoint, Mode, Snapshot
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.recording import recorded
from qmpsnap.plan.scene import GuestScene
from qmpsnap.plan.vmstate.common import (
    Passage,
    file_number,
    refuse_memory_place,
    refuse_unsavable,
    state_file,
)
from qmpsnap.plan.vmstate.in_place import revert_notes

_POSTMIGRATE = (
    "the machine stays paused, in the state postmigrate: until it has run again, its memory cannot be "
    "written "
    "to another file (--mode in-place has no such limit)"
)

STORE_NEXT = "then a helper QEMU writes its memory into a store, from which this QEMU can revert"

# What can be taken of a machine whose monitor takes no open files, by whether QEMU's files are visible.
_INSTEAD = {
    True: ", or use --mode in-place",
    False: ", or use --mode internal; if QEMU's files are visible here after all, --shared-fs yes allows "
    "--mode in-place",
}


def ask(intent: Checkpoint, graph: Graph, state_dir: str) -> Ask:
    """What the planner wants to know: about the overlays, and the files that may take the VM state."""
    question = overlays.ask(_disks(intent), graph, state_dir, can_name=False)
    files = tuple(_file(intent, mode, graph) for mode in ("stop", "in-place"))
    return question | Ask(files=files, directories=tuple(map(posixpath.dirname, files)))


def plan(intent: Checkpoint, scene: GuestScene) -> Plan:
    """Plan a checkpoint; or refuse.

    Raises:
        BadName: When the name is outside the grammar.
        TargetExists: When a moment of the machine has the name, or a file that is to be made is there.
        InvalidTarget: When a file cannot be made, or there may be no room for the memory.
        Busy: When a job or a migration is running.
        Unsupported: When a disk, a device, the machine's state or this QEMU does not allow it.
    """
    refuse_taken(intent.name, scene)
    refuse_clear_memory(scene.graph, plain=intent.plain)
    op = FORK if intent.fork else "checkpoint"
    new = overlays.prepare(op, _disks(intent), scene, can_name=False, encrypts=True)
    machine = scene.machine
    # QEMU 7.2 lets a paused guest run when it is to write the memory of one that runs.
    assert intent.mode != "internal"  # noqa: S101 - plan/inside/checkpoint.py plans that
    mode = intent.mode
    if mode == "background" and not machine.running:
        mode = "in-place" if intent.store else "stop"
    refuse_unsavable(scene, migrates=mode != "in-place", instead=_INSTEAD[scene.files.shared])
    if not scene.files.shared:
        raise Unsupported(
            "QEMU's files are not visible from here, so no VM state file can be created for it",
            feature="VM state in files that are not visible",
            hint="run where they are visible, or save it inside the images: --mode internal",
        )
    if not new.place:
        raise InvalidTarget(
            "there is no writable directory for records, and a checkpoint without a record cannot be found",
            file=new.disks[0].base.file,
            hint="name one: --state-dir DIR",
        )
    file = _file(intent, mode, scene.graph)
    state = KeptState(mode, file, "", machine.running, machine.fingerprint, new.token)
    passage = Passage(machine, state.partial, file_number(new.token), background=mode == "background")
    refuse_memory_place(scene, file, need_bytes=passage.need_bytes)
    if {file, state.partial} & {overlay.file for overlay in new.overlays}:
        raise InvalidTarget(
            f"{file} is the overlay of a disk", file=file, hint=Hint("choose another file: ", Named("memory"))
        )
    if mode == "in-place":
        state = replace(state, tag=f"qmpsnap-{new.token}")
        stages = _in_place(intent.name, new, state, scene)
    else:
        # A fork names a file in a directory of its own, which is removed soon.
        temporary = intent.fork and bool(intent.memory)
        stages = _stream(intent.name, new, state, passage, scene, temporary=temporary)
    notes = list(new.notes)
    if mode == "in-place":
        notes += revert_notes(intent.name, new.disks, machine)
    if mode != intent.mode:
        notes.append(f"the guest is paused, so its memory is saved as with --mode {mode}")
    if mode == "background" and intent.store:
        notes.append(STORE_NEXT)
    if mode == "stop" and not machine.running:
        notes.append(_POSTMIGRATE)
    checkpoint = Plan(
        op="checkpoint",
        intent=intent,
        disks=new.names,
        stages=stages,
        before=scene.graph,
        moves=new.names,
        run_state=machine.status,
        notes=tuple(notes),
    )
    origin = Origin(machine.running, machine.process)
    return recorded(
        checkpoint,
        new.place,
        id=new.id,
        created=scene.now,
        name=intent.name,
        state=state,
        origin=origin,
        member=intent.member,
    )


def _disks(intent: Checkpoint) -> Snapshot:
    """The disks' part of it."""
    return Snapshot(intent.name, plain=intent.plain, member=intent.member)


def _file(intent: Checkpoint, mode: Mode | str, graph: Graph) -> str:
    """Where the VM state goes."""
    if intent.memory:
        return intent.memory
    first = next((disk for disk in graph.disks.values() if disk.writable), None)
    if first is None:
        return ""  # refused for want of a disk
    return state_file(first, intent.label, "vmstate.qcow2" if mode == "in-place" else "memory")


def _stream(
    name: str, new: Overlays, state: KeptState, passage: Passage, scene: GuestScene, *, temporary: bool
) -> tuple[Stage, ...]:
    """A stream, for a new QEMU."""
    machine, background = scene.machine, passage.background
    save = migrate(passage.uri, ending=passage.ending)
    take = snapshot_sync(new.overlays)
    pause, go_on = _around(new, scene)
    steps: tuple[Step, ...]
    kept: tuple[Step, ...] = ()
    if background:
        writing = await_migration("writing", may_stop=passage.may_stop)
        steps = (*pause, *passage.reserved, take, save, writing, *go_on, *passage.released)
        kept = (await_migration("kept", may_stop=passage.may_stop),)
    else:
        steps = (*pause, save, *passage.released, await_migration("saved"), take, *go_on)
    layers = tuple(
        (disk.name, file)
        for disk in new.disks
        for layer in disk.layers
        for file in layer.parts
        if file.startswith("/")
    )
    seal = seal_memory(
        state.partial,
        state.file,
        id=new.id,
        name=name,
        running=machine.running,
        fingerprint=machine.fingerprint,
        layers=layers,
        trims=not temporary,
    )
    return (
        Stage(
            "create the files",
            (
                *new.make,
                create_memory(state.partial),
                *passage.reserved,
                *passage.before,
            ),
        ),
        Stage("take the checkpoint", steps, verify=True),
        Stage("store the memory", (*kept, await_closed(state.partial), seal)),
        Stage(
            "restore the settings, and record the checkpoint",
            (*passage.after, *new.over, keep_moment(new.place, new.id, name)),
            tidy=True,
        ),
    )


def _in_place(name: str, new: Overlays, state: KeptState, scene: GuestScene) -> tuple[Stage, ...]:
    """A store, for any QEMU; memory first, so that a failure of it leaves the disks as they are."""
    node = node_name(digest(new.token, "store", avoid=scene.names), owned=True)
    pause, go_on = _around(new, scene)
    return (
        Stage(
            "create the files",
            (
                *new.make,
                create_store(state.partial, new.disks[0].active.file),
                open_store(node, state.partial),
            ),
        ),
        Stage(
            "take the checkpoint",
            (
                *pause,
                *done_and_dismissed(snapshot_save(new.id, state.tag, (("", node),))),
                snapshot_sync(new.overlays),
                *go_on,
            ),
            verify=True,
        ),
        Stage("store the memory", (blockdev_del(node), seal_store(state.partial, state.file))),
        Stage(
            "record the snapshot",
            (*new.over, keep_moment(new.place, new.id, name)),
            tidy=True,
        ),
    )


def _around(new: Overlays, scene: GuestScene) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """What pauses a guest that runs, and resumes it.

    `stop` flushes the disks, and the guest stands still meanwhile: so most of that is done before, where
    there is a way.
    """
    if not scene.machine.running:
        return (stop(ran=False),), ()
    flushed = (flush(disk.active.node) for disk in new.disks) if scene.features.human_monitor else ()
    return (*flushed, stop()), (cont(),)
