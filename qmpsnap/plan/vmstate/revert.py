"""Plans of a revert to an external moment.

    in place, disks alone       new roots, then the guest is reset: its memory belongs to other disks
    in place, with memory       new roots, then the VM state is loaded from its store
    into a new QEMU             overlays for it to start from; it is then loaded with the memory

What was written since is kept in the layers that are left aside.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection

from qmpsnap.errors import InvalidTarget, MachineDiffers, NotFound, NotInChain, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.hints import command, frees, quoted
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Machine
from qmpsnap.model.memory import MemoryNote
from qmpsnap.model.moments import find_moments, related_records
from qmpsnap.model.names import digest, job_id
from qmpsnap.model.record import MomentRecord, Origin
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.checks.disk import refuse_busy, refuse_jobs, refuse_migrated
from qmpsnap.plan.checks.opened import refuse_lost, refuse_window
from qmpsnap.plan.commands.block import check_active, check_roots
from qmpsnap.plan.commands.files import Proof, retire_file
from qmpsnap.plan.commands.records import keep_branch
from qmpsnap.plan.commands.state import cont, system_reset
from qmpsnap.plan.inside import checkpoint as checkpoint_internal
from qmpsnap.plan.inside.loadable import ask_left, ask_loadable
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.recording import finished, recorded
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.plan.vmstate import discard
from qmpsnap.plan.vmstate.branch import (
    NOT_TOLD,
    Branch,
    branch_files,
    branch_token,
    branches,
    new_files,
    record_of,
)
from qmpsnap.plan.vmstate.common import (
    file_number,
    refuse_changed,
    refuse_foreign,
    refuse_no_load,
    refuse_other,
    refuse_state,
    undone,
)
from qmpsnap.plan.vmstate.in_place import load_store, pause, refuse_store, stale_notes
from qmpsnap.plan.vmstate.save import load_steps, whole_note


def ask_again(intent: Revert, graph: Graph, files: Files) -> Ask:
    """What the planner wants to know once it knows the moments: about the files of the one that is named."""
    own = related_records(graph, files.records)
    moments = find_moments(graph, files.records, own=own).named(intent.name)
    record = next((moment.record for moment in moments if moment.record is not None), None)
    if record is None:
        return ask_loadable(graph, intent.name) | ask_left(graph, files, own)
    token = branch_token(record, graph)
    left = _left(intent, graph, files)
    disks = [graph.disks[name] for name in record.covered if name in graph.disks and name not in left]
    made = tuple(new_files(disks, intent.name, token).values())
    fresh = tuple((disk.active.file, record.covered[disk.name]) for disk in disks if disk.layers)
    states = (record.state.file,) if record.state is not None else ()
    parts = [file for disk in disks for layer in disk.layers for file in layer.parts if file.startswith("/")]
    question = Ask(
        files=(*branch_files(record, graph), *parts, *made, *states),
        directories=tuple(map(posixpath.dirname, made)),
        memories=states,
        fresh=fresh,
    )
    return question | discard.ask(disks, graph) if intent.discard else question


def plan(intent: Revert, scene: GuestScene) -> Plan:
    """Plan a revert in the same QEMU; or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it.
        Unsupported: When its memory needs a new QEMU, or a disk's device or filter was not tried.
        NotInChain: When a writable disk is not in the moment, or a layer does not hold it any more.
        MachineDiffers: When the machine is not the one that it was.
        Busy: When a job or a migration is running.
        TargetExists, InvalidTarget: When an overlay or the VM state is not as it has to be.
        WouldLose: When a layer that is to be discarded holds internal snapshots.
    """
    left = _left(intent, scene.graph, scene.files)
    writable = [disk for disk in scene.graph.writable() if disk.name not in left]
    refuse_lost(scene, writable)
    for disk in writable:
        refuse_window(disk, disk.layers)
    moment = scene.moment(intent.name)
    if moment.kind == "internal":
        return checkpoint_internal.plan_revert(intent, moment, scene)
    record, machine = record_of(moment), scene.machine
    state = record.state
    _refuse(intent, state, machine, scene)
    disks = _covered_disks(record, scene, left)
    if state is not None:
        refuse_store(state, machine, scene, intent.name)
    token = branch_token(record, scene.graph)
    new = branches(moment, disks, token, scene)
    if intent.discard:
        discard.refuse_discard(disks, scene)
    load, store = load_store(state, token, scene)
    operation_id = job_id("revert", "keep", token)
    removed = (branch for branch in new if intent.discard and branch.closes)
    names = tuple(branch.disk.name for branch in new)
    plan = Plan(
        op="revert",
        intent=intent,
        disks=names,
        stages=(
            Stage(
                "create the overlays",
                (
                    *(branch.make for branch in new),
                    *(step for branch in new for step in branch.opens(machine)),
                    *store,
                ),
            ),
            Stage(
                f"revert to {intent.name!r}",
                (
                    pause(state, machine, token, scene),
                    *((check_active(disks),) if intent.discard else ()),
                    *(step for branch in new for step in branch.connects(machine)),
                    *(branch.move(machine, prepare=state is None) for branch in new),
                    *_check(new),
                    *(load or (system_reset(),)),
                    *((cont(),) if machine.unpaused else ()),
                ),
                verify=True,
            ),
            Stage(
                "clean up",
                (
                    *undone(store),
                    *(step for branch in new for step in branch.frees),
                    keep_branch(record.directory, record.id, _overlays(new)),
                    *(
                        retire_file(branch.was.file, "remove", "", _proof(branch, scene))
                        for branch in removed
                    ),
                    *finished(operation_id, record.directory),
                ),
                tidy=True,
            ),
        ),
        before=scene.graph,
        run_state=machine.status,
        state_bytes=scene.files.files[state.file].size if state is not None else 0,
        moves=names,
        notes=_notes(intent, state, machine, new),
    )
    return recorded(
        plan,
        record.directory,
        id=operation_id,
        created=scene.now,
        name=intent.name,
        state=state,
        origin=Origin(machine.unpaused, machine.process),
    )


def _refuse(intent: Revert, state: KeptState | None, machine: Machine, scene: GuestScene) -> None:
    """Refuse where the moment, or the machine as it is now, allows no revert in place."""
    if intent.via is not None:
        raise Unsupported(
            f"{intent.name!r} is not an internal checkpoint, so --via does not apply",
            feature=f"revert to an external snapshot by {intent.via}",
            hint="omit --via",
        )
    if state is not None and state.mode != "in-place":
        raise Unsupported(
            f"the memory of {intent.name!r} was saved with --mode {state.mode}: only a new QEMU can load it",
            feature=f"revert to a checkpoint of mode {state.mode} in place",
            hint=f"{command('revert', intent.name, '--prepare')}, start a QEMU from these files, then "
            "--into-incoming",
        )
    refuse_jobs(scene.jobs)
    refuse_state(machine, loads=True)
    refuse_migrated(scene.machine.guest)
    if state is not None:
        refuse_no_load(machine)


def _covered_disks(record: MomentRecord, scene: Scene, left: Collection[str]) -> list[Disk]:
    """The disks of the moment that are reverted; every other writable one has to be named in `left`."""
    for disk in scene.graph.disks.values():
        if disk.writable and disk.name not in record.disks and disk.name not in left:
            raise NotInChain(
                f"{disk.name} is writable but not part of {record.name!r}",
                hint=f"it can be left out: --leave {quoted(disk.name)}",
            )
    disks = _disks_of(record, scene, left)
    for disk in disks:
        refuse_busy(scene, disk)
    return disks


def _left(intent: Revert, graph: Graph, files: Files) -> set[str]:
    """Names of the disks to leave out; one that was unplugged goes by the name that the moment has for it."""
    records = (record for record in files.records if isinstance(record, MomentRecord))
    gone = {name for record in records if record.name == intent.name for name in record.covered}
    gone -= graph.disks.keys()
    return {name if name in gone else find_disk(graph, name).name for name in intent.leave}


def _disks_of(record: MomentRecord, scene: Scene, left: Collection[str] = ()) -> list[Disk]:
    """The disks of the moment, without those in `left`."""
    names = [name for name in record.disks if name not in left]
    for name in names:
        if name not in scene.graph.disks:
            raise NotFound(
                f"the machine has no disk {name!r}, which is part of {record.name!r}",
                hint=f"plug it in, or leave it out: --leave {quoted(name)}",
            )
    if not names:
        raise NotFound("there is no disk to revert")
    return [scene.graph.disks[name] for name in names]


def _check(new: tuple[Branch, ...]) -> tuple[Step, ...]:
    """The check that devices took their new roots; a disk under a filter keeps its root."""
    roots = tuple(
        (branch.disk.name, branch.disk.qdev, branch.root.node)
        for branch in new
        if branch.disk.root == branch.disk.active.node
    )
    return (check_roots(roots),) if roots else ()


def _overlays(new: tuple[Branch, ...]) -> dict[str, str]:
    return {branch.disk.name: branch.root.file for branch in new}


def _proof(branch: Branch, scene: Scene) -> Proof:
    """What shows that the layer to be removed is the one that QEMU had."""
    fact = scene.files.files[branch.was.file]
    below = branch.disk.layers[1]
    backing = below.file if below.local else branch.was.backing or ""
    return Proof(branch.was.format, backing, fact.device, fact.inode)


def _notes(
    intent: Revert, state: KeptState | None, machine: Machine, new: tuple[Branch, ...]
) -> tuple[str, ...]:
    reset = "the guest is reset, because its memory does not match the reverted disks"
    stay = (
        f"{branch.was.file} stays: QEMU has it open as node {branch.was.node!r}, which is not ours "
        f"({frees(branch.was.node)}, then remove it)"
        for branch in new
        if intent.discard and not branch.closes
    )
    left = (f"not reverted: {', '.join(intent.leave)}",) if intent.leave else ()
    return (*((reset,) if state is None else stale_notes(machine, intent.name)), *stay, NOT_TOLD, *left)


def plan_prepare(intent: Revert, scene: Scene) -> Plan:
    """Plan overlays on a moment's layers, for a new QEMU to start from; the machine keeps running. Or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it.
        NotFound: When the machine lacks a disk of it.
        Unsupported: When it is inside the images, or is reverted in place.
        NotInChain: When a layer does not hold it any more.
        Busy: When a job is running, which may be writing into a layer.
        TargetExists, InvalidTarget: When an overlay cannot be created, or the memory file is incomplete or
            belongs to another moment.
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
    token = branch_token(record, scene.graph)
    left = _left(intent, scene.graph, scene.files)
    new = branches(moment, _disks_of(record, scene, left), token, scene, in_place=False)
    made = _overlays(new)
    operation_id = job_id("revert", "keep", token)
    plan = Plan(
        op="revert-prepare",
        intent=intent,
        disks=tuple(made),
        stages=(
            Stage(
                "create the overlays",
                tuple(branch.make for branch in new),
            ),
            Stage(
                "record them",
                (
                    keep_branch(record.directory, record.id, made),
                    *finished(operation_id, record.directory),
                ),
                tidy=True,
            ),
        ),
        before=scene.graph,
        prepared=made,
        memory=record.state.file if record.state is not None else "",
    )
    return recorded(plan, record.directory, id=operation_id, created=scene.now, name=intent.name)


def plan_incoming(intent: Revert, scene: GuestScene) -> Plan:
    """Plan to load a checkpoint's memory into a QEMU that was started on prepared overlays; or refuse.

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
    if state is None or state.mode == "in-place":
        raise Unsupported(
            f"{intent.name!r} has no memory that a new QEMU could load",
            feature="VM state for a new QEMU",
            hint=f"{command('revert', intent.name)} reverts in place",
        )
    note = _own_note(record, state, scene)
    machine = scene.machine
    token = digest("incoming", intent.name, note.id, avoid=scene.names)
    inode = scene.files.memories[state.file].inode
    load, after = load_steps(machine, state.file, file_number(token), running=state.running, inode=inode)
    refuse_other(machine, note.fingerprint, what=repr(intent.name))
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
    """The note of the moment's memory file, which has to be complete and this moment's."""
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

    A stream into one of them writes it, too, but takes nothing from the moment, only the layers below. So
    files are compared where the layers are still the same.
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
