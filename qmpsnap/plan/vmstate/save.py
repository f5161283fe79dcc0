"""Plans of VM state that is saved to a file, and restored from it into a new QEMU on the same layers."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from qmpsnap.errors import InvalidTarget, NotFound, Unsupported
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.hints import command
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Machine
from qmpsnap.model.memory import MemoryNote
from qmpsnap.model.names import digest, job_id
from qmpsnap.model.option_hints import Hint
from qmpsnap.model.record import MomentRecord, Origin
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.checks.encryption import refuse_clear_memory
from qmpsnap.plan.commands.files import create_memory, seal_memory
from qmpsnap.plan.commands.migration import await_closed, await_migration, migrate, migrate_incoming
from qmpsnap.plan.commands.state import cont, stop
from qmpsnap.plan.intent import Restore, Save
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import state_place
from qmpsnap.plan.recording import finished, recorded
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.plan.vmstate.common import (
    Passage,
    file_number,
    need_open_files,
    refuse_changed,
    refuse_foreign,
    refuse_memory_place,
    refuse_other,
    refuse_unsavable,
    undone,
)


def ask_save(intent: Save, graph: Graph, _state_dir: str) -> Ask:
    """What the planner wants to know: the layers, and the file's directory."""
    return Ask(files=(*_layers(graph), intent.file), directories=(posixpath.dirname(intent.file),))


def ask_restore(intent: Restore, graph: Graph, _state_dir: str) -> Ask:
    """What the planner wants to know: the layers, and the file."""
    return Ask(files=_layers(graph), memories=(intent.file,))


def plan_save(intent: Save, scene: GuestScene) -> Plan:
    """Plan to save VM state to a file; the guest stays paused. Or refuse.

    Raises:
        TargetExists: When the file exists.
        InvalidTarget: When it cannot be created there, or there may be no room.
        Busy: When a job or a migration is running.
        Unsupported: When the machine's state, one of its devices or the monitor does not allow it, or a layer
            is no file.
        NotFound: When there is no disk.
    """
    refuse_clear_memory(scene.graph, plain=intent.plain)
    machine = scene.machine
    refuse_unsavable(scene, migrates=True)
    refuse_unseen(scene.files)
    disks = [disk for disk in scene.graph.disks.values() if disk.layers]
    if not disks:
        raise NotFound("there is no disk with a medium", hint="VM state without disks cannot be saved")
    layers = _regular_files(disks, scene)
    token = digest("save", intent.file, [disk.files for disk in disks], avoid=scene.names)
    state = KeptState("stop", intent.file, "", machine.running, machine.fingerprint, token)
    passage = Passage(machine, state.partial, file_number(token))
    refuse_memory_place(scene, state.file, need_bytes=passage.need_bytes, option=Hint("save FILE"))
    operation_id, place = job_id("save", "keep", token), state_place(scene, disks[0])
    seal = seal_memory(
        state.partial,
        state.file,
        id=operation_id,
        name="",
        running=machine.running,
        fingerprint=machine.fingerprint,
        layers=layers,
    )
    steps: tuple[Step, ...] = (
        stop(ran=machine.running),
        migrate(passage.uri),
        *passage.released,
        await_migration("saved"),
        await_closed(state.partial),
    )
    restore = command("restore", intent.file)
    plan = Plan(
        op="save",
        intent=intent,
        disks=tuple(disk.name for disk in disks),
        stages=(
            Stage("create the file", (create_memory(state.partial), *passage.before)),
            Stage("save the VM state", steps, verify=True),
            Stage("complete the file", (seal,)),
            Stage("restore the settings", (*passage.after, *finished(operation_id, place)), tidy=True),
        ),
        before=scene.graph,
        run_state=machine.status,
        notes=(f"the guest stays paused; start a new QEMU with -S -incoming defer, then: {restore}",),
    )
    origin = Origin(machine.running, machine.process)
    return recorded(plan, place, id=operation_id, created=scene.now, state=state, origin=origin)


def _regular_files(disks: Iterable[Disk], scene: Scene) -> tuple[tuple[str, str], ...]:
    """Disk and path of each file that the disks' data lie in; refuse what is not a regular file."""
    files = tuple((disk.name, file) for disk in disks for file in _parts(disk))
    for name, file in files:
        if not file.startswith("/") or scene.files.files[file].kind != "regular":
            raise Unsupported(
                f"the layer {file} of {name} is not a regular file, so changes to it cannot be detected",
                feature="VM state on disks that are no files",
                hint="take a checkpoint, which includes the disks",
            )
    return files


def plan_restore(intent: Restore, scene: GuestScene) -> Plan:
    """Plan to read VM state from a file of `save` into a QEMU that waits for it; or refuse.

    Raises:
        Busy: When a job is running.
        Unsupported: When the machine does not wait for VM state.
        InvalidTarget: When the file is missing, cut, or none of ours.
        MachineDiffers: When the machine is another, or a layer has changed since.
    """
    refuse_unseen(scene.files)
    note = whole_note(scene.files, intent.file)
    if note.name:
        raise InvalidTarget(
            f"{intent.file} belongs to checkpoint {note.name!r}, which has other disks",
            file=intent.file,
            hint=f"revert to that: {command('revert', note.name, '--prepare')}",
        )
    machine = scene.machine
    fact = scene.files.memories[intent.file]
    refuse_foreign(fact)
    refuse_other(machine, note.fingerprint, what=intent.file)
    _refuse_changed(note, scene, intent.file)
    token = digest("restore", intent.file, note.id, avoid=scene.names)
    steps, after = load_steps(
        machine, intent.file, file_number(token), running=note.running, inode=fact.inode
    )
    disks = tuple(disk.name for disk in scene.graph.disks.values() if disk.layers)
    return Plan(
        op="restore",
        intent=intent,
        disks=disks,
        stages=(
            Stage("restore the VM state", steps, verify=True),
            Stage("restore the settings", after, tidy=True),
        ),
        before=scene.graph,
        run_state=machine.status,
        state_bytes=note.stream_bytes,
    )


def load_steps(
    machine: Machine,
    file: str,
    number: int,
    *,
    running: bool,
    inode: int = 0,
    mapped: bool = False,
    fifo: bool = False,
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """The steps that load a memory file, or what comes through a FIFO, and the cleanup; or refuse.

    QEMU has to wait for VM state.
    """
    if not machine.incoming:
        raise Unsupported(
            f"the machine is in the state {machine.status}, not waiting for VM state",
            feature="loading VM state into a machine that has run",
            hint="start a new QEMU with -S -incoming defer",
        )
    need_open_files(machine)
    passage = Passage(machine, file, number, mapped=mapped, write=False, inode=inode, fifo=fifo)
    go_on = (cont(),) if running else ()
    steps = (
        *passage.capabilities,
        passage.passed,
        migrate_incoming(passage.uri),
        await_migration("loaded", may_stop=False),
        *go_on,
    )
    return steps, (*passage.released, *undone(passage.capabilities))


def whole_note(files: Files, file: str) -> MemoryNote:
    """The note of a memory file; refuse one that is missing, cut, or not ours."""
    refuse_unseen(files)
    fact = files.memories[file]
    if not fact.exists:
        raise InvalidTarget(f"{file} does not exist", file=file, hint="name the file that save has written")
    if fact.note is None:
        raise InvalidTarget(
            f"{file} is not a complete memory file of qmpsnap: {fact.problem}",
            file=file,
        )
    return fact.note


def own_note(record: MomentRecord, state: KeptState, scene: Scene) -> MemoryNote:
    """The note of the moment's memory file, which has to be complete and this moment's."""
    note = whole_note(scene.files, state.file)
    if note.id != record.id:
        raise InvalidTarget(
            f"{state.file} is the memory of {note.name or 'a saved machine'!r}, not of {record.name!r}",
            file=state.file,
        )
    refuse_foreign(scene.files.memories[state.file], state)
    return note


def _refuse_changed(note: MemoryNote, scene: Scene, file: str) -> None:
    differences: list[str] = []
    then: dict[str, list[str]] = {}
    for layer in note.layers:
        then.setdefault(layer.disk, []).append(layer.file)
        fact = scene.files.files.get(layer.file)
        state = (layer.inode, layer.size, layer.modified)
        if fact is None or not fact.taken:
            differences.append(f"layer {layer.file} of {layer.disk} is gone, or not in use")
        elif (fact.inode, fact.size, fact.modified_ns) != state:
            differences.append(f"layer {layer.file} of {layer.disk} has been written to since")
    for name, files in then.items():
        disk = scene.graph.disks.get(name)
        if disk is not None and _parts(disk) != files:
            differences.append(f"{name} reads {disk.active.file}, not {files[0]}")
    refuse_changed(differences, f"the disks are no longer those of {file}")


def refuse_unseen(files: Files, *, hint: str = "run where they are visible, or use --shared-fs yes") -> None:
    """Refuse if QEMU's files are not visible from here."""
    if not files.shared:
        raise Unsupported(
            "QEMU's files are not visible from here",
            feature="VM state in files that are not visible",
            hint=hint,
        )


def _layers(graph: Graph) -> tuple[str, ...]:
    return tuple(file for disk in graph.disks.values() for file in _parts(disk) if file.startswith("/"))


def _parts(disk: Disk) -> list[str]:
    """Every file that the disk's data lie in, of the active layer first."""
    return [file for layer in disk.layers for file in layer.parts]
