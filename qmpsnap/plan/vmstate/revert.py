"""Plan of going back to an external moment in place; `revert_new` has those for a new QEMU.

    disks alone     new roots, then the guest is reset: its memory belongs to other disks
    in-place        new roots, then the VM state is loaded from its store

What was written since is kept in the layers that are left aside.
"""

from __future__ import annotations

import posixpath

from qmpsnap.errors import NotFound, NotInChain, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.hints import command, frees, quoted
from qmpsnap.model.moments import Moment, find_moments
from qmpsnap.plan.checks.busy import refuse_busy, refuse_jobs, refuse_migrated
from qmpsnap.plan.checks.opened import refuse_lost, refuse_window
from qmpsnap.plan.commands.block import check_roots
from qmpsnap.plan.commands.files import Proof, retire_file
from qmpsnap.plan.commands.records import finish_record, keep_branch, write_record
from qmpsnap.plan.commands.state import cont, system_reset
from qmpsnap.plan.inside import checkpoint as checkpoint_internal
from qmpsnap.plan.inside.loadable import ask_loadable
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.step import Step
from qmpsnap.plan.vmstate import discard
from qmpsnap.plan.vmstate.branch import (
    NOT_TOLD,
    Branch,
    branch_files,
    branch_record,
    branch_token,
    branches,
    new_files,
    record_of,
)
from qmpsnap.plan.vmstate.common import machine_of, refuse_no_load, refuse_state, undone
from qmpsnap.plan.vmstate.store import load_store, pause, refuse_store, stale_notes


def ask_again(intent: Revert, graph: Graph, files: Files) -> Ask:
    """What the planner wants to know once it knows the moments: about the files of the one that is named."""
    moments = find_moments(graph, files.records).named(intent.name)
    record = next((moment.record for moment in moments if moment.record is not None), None)
    if record is None:
        return ask_loadable(graph, intent.name)
    token = branch_token(record, graph)
    left = {find_disk(graph, spelling).name for spelling in intent.leave}
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


def plan(intent: Revert, scene: Scene) -> Plan:
    """Plan to go back to an external moment in the same QEMU; or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it.
        Unsupported: When its memory needs a new QEMU, or a disk's device or filter was not tried.
        NotInChain: When a writable disk is not in the moment, or a layer does not hold it any more.
        MachineDiffers: When the machine is not the one that it was.
        Busy: When a job or a migration is running.
        TargetExists, InvalidTarget: When an overlay or the VM state is not as it has to be.
        WouldLose: When a layer that is to be discarded holds internal snapshots.
    """
    left = {find_disk(scene.graph, spelling).name for spelling in intent.leave}
    disks = [disk for disk in scene.graph.writable() if disk.name not in left]
    refuse_lost(scene, disks)
    for disk in disks:
        refuse_window(disk, disk.layers)
    moment = scene.moment(intent.name)
    if moment.kind == "internal":
        return _internal(intent, moment, scene)
    if intent.via is not None:
        raise Unsupported(
            f"{intent.name!r} is not an internal checkpoint, so --via does not apply",
            feature=f"revert to an external snapshot by {intent.via}",
            hint="omit --via",
        )
    record = record_of(moment)
    machine = machine_of(scene)
    state = record.state
    if state is not None and state.mode != "in-place":
        raise Unsupported(
            f"the memory of {intent.name!r} was saved with --mode {state.mode}: only a new QEMU can load it",
            feature=f"revert to a checkpoint of mode {state.mode} in place",
            hint=f"{command('revert', intent.name, '--prepare')}, start a QEMU from these files, then "
            "--into-incoming",
        )
    refuse_jobs(scene.jobs)
    refuse_state(machine, loads=True)
    refuse_migrated(scene)
    if state is not None:
        refuse_no_load(machine)
    disks = _disks(moment, left, scene)
    if state is not None:
        refuse_store(state, machine, scene, intent.name)
    token = branch_token(record, scene.graph)
    new = branches(moment, disks, token, scene)
    if intent.discard:
        discard.refuse_discard(disks, scene)
    load, store = load_store(state, token, scene)
    moves = tuple(one.move(machine, prepare=state is None) for one in new)
    go_on = (cont(),) if machine.unpaused else ()
    intent_record = branch_record(intent.name, new, state, machine, token, scene)
    steps: tuple[Step, ...] = (
        pause(state, machine, token, scene),
        *moves,
        *_check(new),
        *(load or (system_reset(),)),
        *go_on,
    )
    tidy: tuple[Step, ...] = (
        *undone(store),
        *(free for one in new for free in one.frees),
        keep_branch(record.directory, record.id, {one.disk.name: one.root.file for one in new}),
        *(
            retire_file(one.was.file, "remove", "", _proof(one, scene))
            for one in new
            if intent.discard and one.closes
        ),
        finish_record(record.directory, (intent_record.id,)),
    )
    notes = ["the guest is reset, because its memory does not match the reverted disks"]
    if state is not None:
        notes = list(stale_notes(machine, intent.name))
    notes += [
        f"{one.was.file} stays: QEMU has it open as node {one.was.node!r}, which is not ours "
        f"({frees(one.was.node)}, then remove it)"
        for one in new
        if intent.discard and not one.closes
    ]
    notes.append(NOT_TOLD)
    if intent.leave:
        notes.append(f"not reverted: {', '.join(intent.leave)}")
    return Plan(
        op="revert",
        intent=intent,
        disks=tuple(one.disk.name for one in new),
        stages=(
            Stage(
                "create the overlays",
                (
                    write_record(record.directory, intent_record),
                    *(one.make for one in new),
                    *(one.add for one in new),
                    *store,
                ),
            ),
            Stage(f"revert to {intent.name!r}", steps, verify=True),
            Stage("clean up", tidy, tidy=True),
        ),
        before=scene.graph,
        run_state=machine.status,
        state_bytes=scene.files.files[state.file].size if state is not None else 0,
        moves=tuple(one.disk.name for one in new),
        notes=tuple(notes),
    )


def _proof(branch: Branch, scene: Scene) -> Proof:
    """What shows that the layer that is given up is the one that QEMU had."""
    fact = scene.files.files[branch.was.file]
    below = branch.disk.layers[1]
    backing = below.file if below.local else branch.was.backing or ""
    return Proof(branch.was.format, backing, fact.device, fact.inode)


def _internal(intent: Revert, moment: Moment, scene: Scene) -> Plan:
    """The way back to a moment inside the images, where nothing that was written since is kept."""
    if intent.discard:
        raise Unsupported(
            f"{intent.name!r} is inside the images: what was written since is always lost",
            feature="discarding layers in a revert to an internal checkpoint",
            hint="omit --discard",
        )
    return checkpoint_internal.plan_revert(intent, moment, scene)


def _disks(moment: Moment, leave: set[str], scene: Scene) -> list[Disk]:
    """The disks that go back; every other writable one has to be named."""
    record = record_of(moment)
    for disk in scene.graph.disks.values():
        if disk.writable and disk.name not in record.covered and disk.name not in leave:
            raise NotInChain(
                f"{disk.name} is writable but not part of {moment.name!r}",
                hint=f"it can be left out: --leave {quoted(disk.name)}",
            )
    missing = [name for name in record.covered if name not in scene.graph.disks and name not in leave]
    if missing:
        raise NotFound(f"the machine has no disk {missing[0]!r}, which is part of {moment.name!r}")
    disks = [scene.graph.disks[name] for name in record.covered if name not in leave]
    if not disks:
        raise NotFound("there is no disk to revert")
    for disk in disks:
        refuse_busy(scene, disk)
    return disks


def _check(new: tuple[Branch, ...]) -> tuple[Step, ...]:
    """Under a filter the device keeps its root."""
    roots = tuple(
        (branch.disk.name, branch.disk.qdev, branch.root.node)
        for branch in new
        if branch.disk.root == branch.disk.active.node
    )
    return (check_roots(roots),) if roots else ()
