"""Plans of going back to an external moment in a new QEMU: overlays for it to start from, then its memory.

What was written since is kept in the layers that are left aside.
"""

from __future__ import annotations

from qmpsnap.errors import InvalidTarget, MachineDiffers, NotFound, NotInChain, Unsupported
from qmpsnap.model.hints import command
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.memory import MemoryNote
from qmpsnap.model.names import digest
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.checks.opened import refuse_window
from qmpsnap.plan.commands.records import finish_record, keep_branch, write_record
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate.branch import branch_record, branch_token, branches, record_of
from qmpsnap.plan.vmstate.common import file_number, machine_of, refuse_foreign
from qmpsnap.plan.vmstate.save import load_steps, refuse_other, whole_note


def plan_prepare(intent: Revert, scene: Scene) -> Plan:
    """Plan overlays on a moment's layers, for a new QEMU to start from; the machine goes on. Or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it.
        NotFound: When the machine lacks a disk of it.
        Unsupported: When it is inside the images, or goes back in place.
        NotInChain: When a layer does not hold it any more.
        Busy: When a job is running, which may be writing into one.
        TargetExists, InvalidTarget: When an overlay cannot be made, or the memory file is not whole, or
            another one.
    """
    for disk in scene.graph.writable():
        refuse_window(disk, disk.layers)
    moment = scene.moment(intent.name)
    record = record_of(moment)
    if record.state is not None and record.state.mode == "in-place":
        raise Unsupported(
            f"{intent.name!r} is reverted in place, also in another QEMU",
            feature="overlays for a QEMU that loads VM state in place",
            hint=f"start QEMU as it is now, with -S, then: {command('revert', intent.name)}",
        )
    if record.state is not None:
        _own_note(record, record.state, scene)
    missing = [name for name in record.covered if name not in scene.graph.disks]
    if missing:
        raise NotFound(f"the machine has no disk {missing[0]!r}, which is part of {intent.name!r}")
    disks = [scene.graph.disks[name] for name in record.covered]
    token = branch_token(record, scene.graph)
    new = branches(moment, disks, token, scene, in_place=False)
    made = {one.disk.name: one.root.file for one in new}
    intent_record = branch_record(intent.name, new, None, None, token, scene)
    return Plan(
        op="revert-prepare",
        intent=intent,
        disks=tuple(one.disk.name for one in new),
        stages=(
            Stage(
                "create the overlays",
                (write_record(record.directory, intent_record), *(one.make for one in new)),
            ),
            Stage(
                "record them",
                (
                    keep_branch(record.directory, record.id, made),
                    finish_record(record.directory, (intent_record.id,)),
                ),
                tidy=True,
            ),
        ),
        before=scene.graph,
        prepared=made,
        memory=record.state.file if record.state is not None else "",
    )


def plan_incoming(intent: Revert, scene: Scene) -> Plan:
    """Plan to load a checkpoint's memory into a QEMU that was started on prepared overlays; or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment of these disks has the name, or two have it.
        Unsupported: When the machine does not wait for VM state, or the moment has none for it.
        NotInChain: When a disk does not stand on the checkpoint's layer.
        MachineDiffers: When the machine is another, an overlay has data already, or a layer that holds the
            moment has been written to since.
        Busy: When a job is running.
        InvalidTarget: When the memory file is missing, cut, or another one.
    """
    moment = scene.moment(intent.name)
    record = record_of(moment)
    state = record.state
    if state is None or state.mode == "in-place":
        raise Unsupported(
            f"{intent.name!r} has no memory that a new QEMU could load",
            feature="VM state for a new QEMU",
            hint=f"{command('revert', intent.name)} reverts in place",
        )
    note = _own_note(record, state, scene)
    machine = machine_of(scene)
    token = digest("incoming", intent.name, note.id, avoid=scene.names)
    inode = scene.files.memories[state.file].inode
    load, after = load_steps(machine, state.file, file_number(token), running=state.running, inode=inode)
    refuse_other(machine, note, what=f"{intent.name!r}")
    _refuse_not_prepared(record, scene)
    _refuse_written(record, note, scene)
    disks = tuple(name for name in record.covered if name in scene.graph.disks)
    return Plan(
        op="revert",
        intent=intent,
        disks=disks,
        stages=(
            Stage(f"load the memory of {intent.name!r}", load, verify=True),
            Stage("restore the settings", after, tidy=True),
        ),
        before=scene.graph,
        run_state=machine.status,
        state_bytes=note.stream_bytes,
    )


def _own_note(record: MomentRecord, state: KeptState, scene: Scene) -> MemoryNote:
    """The note of the moment's memory file, which has to be whole and this moment's."""
    note = whole_note(scene.files, state.file)
    if note.id != record.id:
        raise InvalidTarget(
            f"{state.file} is the memory of {note.name or 'a saved machine'!r}, not of {record.name!r}",
            file=state.file,
        )
    refuse_foreign(scene.files.memories[state.file], state)
    return note


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

    A stream into one of them writes it, too, and takes nothing from the moment: it takes away what the layer
    stood on. So files are compared where the layers still are those of then.
    """
    differences: list[str] = []
    for name in record.covered:
        disk = scene.graph.disks[name]
        then = [one for one in note.layers if one.disk == name]
        now = [file for layer in disk.layers[1:] for file in layer.parts if file.startswith("/")]
        if [one.file for one in then] != now:
            continue
        for one in then:
            fact = scene.files.files.get(one.file)
            if fact is not None and fact.taken and (fact.size, fact.modified_ns) != (one.size, one.modified):
                differences.append(f"{one.file} of {name} has been written to since")
    if differences:
        raise MachineDiffers(
            f"the layers have changed since {record.name!r}: {'; '.join(differences)}",
            differences=differences,
            hint="running a guest's memory with other disks would destroy its file systems; boot the guest "
            "instead",
        )
