"""Plans of a revert to an external moment in a new QEMU.

First overlays are created, from which it is started; then it loads the memory from a stream or a store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qmpsnap.errors import MachineDiffers, NotInChain, Unsupported
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.hints import command
from qmpsnap.model.machine import Machine
from qmpsnap.model.memory import MemoryNote
from qmpsnap.model.names import digest, job_id
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.checks.encryption import opened_again, opening_notes
from qmpsnap.plan.checks.opened import refuse_window
from qmpsnap.plan.commands.records import keep_branch
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.recording import finished, recorded
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.plan.vmstate.branch import Branch, branch_token, branches, record_of
from qmpsnap.plan.vmstate.common import file_number, refuse_changed, refuse_other, undone
from qmpsnap.plan.vmstate.in_place import load_store, refuse_broken, refuse_store
from qmpsnap.plan.vmstate.revert import disks_of, left_out, new_overlays
from qmpsnap.plan.vmstate.save import load_steps, own_note
from qmpsnap.plan.written import refuse_written, written_since


def plan_prepare(intent: Revert, scene: Scene) -> Plan:
    """Plan overlays on a moment's layers, for a new QEMU to start from; the machine keeps running. Or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it.
        NotFound: When the machine lacks a disk of it.
        Unsupported: When it is inside the images.
        NotInChain: When a layer does not hold it any more.
        Busy: When a job is running, which may be writing into a layer.
        TargetExists, InvalidTarget: When an overlay cannot be created, or the memory file is incomplete or
            belongs to another moment.
    """
    for disk in scene.graph.writable():
        refuse_window(disk, disk.layers)
    moment = scene.moment(intent.name)
    record = record_of(moment)
    memory, notes = _memory_of(record, scene)
    token = branch_token(record, scene.graph)
    left = left_out(intent, scene.graph, scene.files)
    new = branches(moment, disks_of(record, scene, left), token, scene, in_place=False)
    overlays = new_overlays(new)
    nodes = _nodes(new, scene)
    operation_id = job_id("revert", "keep", token)
    plan = Plan(
        op="revert-prepare",
        intent=intent,
        disks=tuple(overlays),
        stages=(
            Stage(
                "create the overlays",
                tuple(branch.make for branch in new),
            ),
            Stage(
                "record them",
                (
                    keep_branch(record.directory, record.id, overlays),
                    *finished(operation_id, record.directory),
                ),
                tidy=True,
            ),
        ),
        before=scene.graph,
        prepared=overlays,
        nodes=nodes,
        memory=memory,
        notes=(*notes, *opening_notes(nodes)),
    )
    return recorded(plan, record.directory, id=operation_id, created=scene.now, name=intent.name)


def plan_incoming(intent: Revert, scene: GuestScene) -> Plan:
    """Plan to load a checkpoint's memory into a QEMU that was started on prepared overlays; or refuse.

    It waits for VM state if that is a stream, and is paused before it has run if that is in a store.

    Raises:
        NotFound, AmbiguousName: When no moment of these disks has the name, or two have it.
        Unsupported: When the machine does not wait for VM state, or the moment has none for it.
        NotInChain: When a disk is not backed by the checkpoint's layer.
        MachineDiffers: When the machine is another, an overlay has data already, or a layer that holds the
            moment has been written to since.
        Busy: When a job is running.
        InvalidTarget: When the memory file is missing, incomplete, or belongs to another moment.
    """
    moment = scene.moment(intent.name)
    record = record_of(moment)
    state = record.state
    if state is None:
        raise Unsupported(
            f"{intent.name!r} has no memory that a new QEMU could load",
            feature="VM state for a new QEMU",
            hint=f"{command('revert', intent.name)} reverts in place",
        )
    machine = scene.machine
    token = digest("incoming", intent.name, record.id, avoid=scene.names)
    open_steps: tuple[Step, ...] = ()
    if state.mode == "in-place":
        _refuse_begun(machine, intent.name)
        refuse_store(state, machine, scene, intent.name)
        load, open_steps = load_store(state, token, scene)
        load, after = (*load, *((cont(),) if state.running else ())), undone(open_steps)
        _refuse_not_prepared(record, scene)
        size = scene.files.files[state.file].size
    else:
        note = own_note(record, state, scene)
        inode = scene.files.memories[state.file].inode
        load, after = load_steps(machine, state.file, file_number(token), running=state.running, inode=inode)
        refuse_other(machine, note.fingerprint, what=repr(intent.name))
        _refuse_not_prepared(record, scene)
        _refuse_written(record, note, scene)
        size = note.stream_bytes
    disks = tuple(name for name in record.covered if name in scene.graph.disks)
    refuse_written(record.name, written_since(record, disks, scene))
    return Plan(
        op="revert",
        intent=intent,
        disks=disks,
        stages=(
            Stage("open the store", open_steps),
            Stage(f"load the memory of {intent.name!r}", load, verify=True),
            Stage("restore the settings", after, tidy=True),
        ),
        before=scene.graph,
        run_state=machine.status,
        state_bytes=size,
    )


def _nodes(new: Iterable[Branch], scene: Scene) -> Frozen[str, Mapping[str, object]]:
    """The options that open each overlay that has an encrypted layer, by disk."""
    nodes = {
        branch.disk.name: opened_again(branch.root, branch.disk.layers[branch.inside :], scene.files)
        for branch in new
        if branch.inside is not None
    }
    return Frozen({disk: node for disk, node in nodes.items() if node})


def _memory_of(record: MomentRecord, scene: Scene) -> tuple[str, tuple[str, ...]]:
    """Return the stream that the new QEMU has to load, or ""; and a note if the memory is in a store."""
    state = record.state
    if state is None:
        return "", ()
    if state.mode != "in-place":
        own_note(record, state, scene)
        return state.file, ()
    refuse_broken(state, scene, record.name)
    load = command("revert", record.name, "--into-incoming")
    note = (
        f"its memory is in the store {state.file}: start the same machine with -S, without -incoming; {load}"
    )
    return "", (f"{note} then loads it",)


def _refuse_begun(machine: Machine, name: str) -> None:
    """Refuse a machine whose guest has run, or that waits for a stream: QEMU loads no store there."""
    if machine.status != "prelaunch":
        raise Unsupported(
            f"the machine is in the state {machine.status}, and the memory of {name!r} is in a store",
            feature=f"loading a store in run state {machine.status!r}",
            hint="start a new QEMU with -S, without -incoming",
        )


def _refuse_not_prepared(record: MomentRecord, scene: Scene) -> None:
    for name, covered in record.covered.items():
        if name in record.lost:
            raise NotInChain(f"{covered} no longer holds {record.name!r}: a commit has written into it")
        disk = scene.graph.disks.get(name)
        if disk is None or len(disk.files) < 2 or disk.files[1] != covered:
            reads = f"reads {' on '.join(disk.files)}" if disk is not None else "is not there"
            raise NotInChain(
                f"{name} {reads}, and not an overlay on {covered}, which holds {record.name!r}",
                hint=f"{command('revert', record.name, '--prepare')} creates the overlays to start from",
            )
        if disk.active.file not in scene.files.fresh:
            raise MachineDiffers(
                f"{disk.active.file} already has data, which the memory of {record.name!r} does not match",
                differences=[f"{disk.active.file} is not empty"],
                hint=f"{command('revert', record.name, '--prepare')} creates a new one",
            )


def _refuse_written(record: MomentRecord, note: MemoryNote, scene: Scene) -> None:
    """Refuse when a file of the layers that hold the moment has been written to since.

    A `stream` into a layer writes to its file, too, but the moment stays: only the layers below are removed.
    So files are compared only if the layers are still the same.
    """
    differences: list[str] = []
    for name in record.covered:
        disk = scene.graph.disks[name]
        then = [layer for layer in note.layers if layer.disk == name]
        now = [file for layer in disk.layers[1:] for file in layer.parts if file.startswith("/")]
        if [layer.file for layer in then] != now:
            continue
        for layer in then:
            fact = scene.files.files.get(layer.file)
            state = (layer.size, layer.modified)
            if fact is not None and fact.taken and (fact.size, fact.modified_ns) != state:
                differences.append(f"{layer.file} of {name} has been written to since")
    refuse_changed(differences, f"the layers have changed since {record.name!r}")
