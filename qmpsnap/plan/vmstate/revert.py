"""Plans of a revert to an external moment in the same QEMU; in a new one: `revert_new`.

    in place, disks alone       new roots, then the guest is reset: its memory belongs to other disks
    in place, with memory       new roots, then the VM state is loaded from its store

What was written since is kept in the layers that are left aside.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection

from qmpsnap.errors import NotFound, NotInChain, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.hints import command, frees, quoted
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Machine
from qmpsnap.model.moments import find_moments, related_records
from qmpsnap.model.names import job_id
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
    refuse_no_load,
    refuse_state,
    undone,
)
from qmpsnap.plan.vmstate.in_place import load_notes, load_store, pause, refuse_store
from qmpsnap.plan.written import refuse_written, written_since


def ask_again(intent: Revert, graph: Graph, files: Files) -> Ask:
    """What the planner wants to know once it knows the moments: about the files of the one that is named."""
    own = related_records(graph, files.records)
    moments = find_moments(graph, files.records, own=own).named(intent.name)
    record = next((moment.record for moment in moments if moment.record is not None), None)
    if record is None:
        return ask_loadable(graph, intent.name) | ask_left(graph, files, own)
    token = branch_token(record, graph)
    left = left_out(intent, graph, files)
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
        MachineDiffers: When the machine is not the one that it was, or somebody else has written to a layer
            of a moment whose memory is loaded.
        Busy: When a job or a migration is running.
        TargetExists, InvalidTarget: When an overlay or the VM state is not as it has to be.
        WouldLose: When a layer that is to be discarded holds internal snapshots.
    """
    left = left_out(intent, scene.graph, scene.files)
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
        refuse_written(record.name, written_since(record, [disk.name for disk in disks], scene))
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
                    *((cont(),) if _runs_after(state, machine) else ()),
                ),
                verify=True,
            ),
            Stage(
                "clean up",
                (
                    *undone(store),
                    *(step for branch in new for step in branch.frees),
                    keep_branch(record.directory, record.id, new_overlays(new)),
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


def _runs_after(state: KeptState | None, machine: Machine) -> bool:
    return machine.unpaused if state is None else machine.runs_after_load


def _refuse(intent: Revert, state: KeptState | None, machine: Machine, scene: GuestScene) -> None:
    """Refuse where the moment, or the machine as it is now, allows no revert in place."""
    if intent.via is not None:
        raise Unsupported(
            f"{intent.name!r} is not an internal checkpoint, so --via does not apply",
            feature=f"revert to an external snapshot by {intent.via}",
            hint="omit --via",
        )
    if state is not None and state.mode != "in-place":
        convert = command("checkpoint", "--convert", intent.name, "--launcher", "COMMAND")
        prepare = f"{command('revert', intent.name, '--prepare')}, start a QEMU from these files, then"
        incoming = f"this one waits for VM state: {command('revert', intent.name, '--into-incoming')}"
        raise Unsupported(
            f"the memory of {intent.name!r} was saved with --mode {state.mode}: only a new QEMU can load it",
            feature=f"revert to a checkpoint of mode {state.mode} in place",
            hint=incoming
            if scene.machine.guest.incoming
            else f"{prepare} --into-incoming; or {convert}, then revert",
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
    disks = disks_of(record, scene, left)
    for disk in disks:
        refuse_busy(scene, disk)
    return disks


def left_out(intent: Revert, graph: Graph, files: Files) -> set[str]:
    """Names of the disks to leave out; one that was unplugged goes by the name that the moment has for it."""
    records = (record for record in files.records if isinstance(record, MomentRecord))
    gone = {name for record in records if record.name == intent.name for name in record.covered}
    gone -= graph.disks.keys()
    return {name if name in gone else find_disk(graph, name).name for name in intent.leave}


def disks_of(record: MomentRecord, scene: Scene, left: Collection[str] = ()) -> list[Disk]:
    """The disks of the moment, without those in `left`."""
    names = [name for name in record.disks if name not in left]
    for name in names:
        if name not in scene.graph.disks:
            raise NotFound(
                f"the machine has no disk {name!r}, which is part of {record.name!r}",
                hint=f"plug it in (with the machine off: -i {name}=IMAGE), "
                f"or leave it out: --leave {quoted(name)}",
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


def new_overlays(new: tuple[Branch, ...]) -> dict[str, str]:
    """The overlay of each disk, by the disk's name."""
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
    kept = (
        f"what was written to {branch.disk.name} until now stays in {branch.was.file}"
        for branch in new
        if not intent.discard
    )
    left = (f"not reverted: {', '.join(intent.leave)}",) if intent.leave else ()
    first = (reset,) if state is None else load_notes(machine, intent.name)
    return (*first, *kept, *stay, NOT_TOLD, *left)
