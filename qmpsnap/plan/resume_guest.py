"""Plans that finish or roll back an interrupted operation on overlays and VM state.

The operation is finished where that is safe:

- If the disks use the overlays, the moment is recorded.
- A file of VM state is completed only on the QEMU that wrote it; after a restart of QEMU nobody knows whether
  the file is complete. An unfinished file of background-snapshot is discarded, because QEMU writes its last
  part only at the end.
- If a revert has moved some disks, and the guest has not run since (the overlays are empty, and they are the
  active layers), the other disks are moved too, and the memory is loaded.
- If a revert has moved disks, and the guest has run since, the machine stays as it is, because its memory and
  its disks belong together.

If no disk has moved, everything that was created is removed. In every case the guest resumes if it ran
before, and QEMU's settings are restored.
"""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import LOAD_FAILED, RUNS_AGAIN, command
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.memory import MemoryFact
from qmpsnap.model.names import digest, is_owned_node, node_name
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import MoveRoot, Root, Stage, Step
from qmpsnap.plan.commands.block import (
    blockdev_add,
    blockdev_del,
    check_roots,
    open_store_to_read,
    reopen_filter,
    set_drive,
)
from qmpsnap.plan.commands.files import remove_state, seal_memory, seal_store
from qmpsnap.plan.commands.jobs import done_and_dismissed
from qmpsnap.plan.commands.migration import await_closed
from qmpsnap.plan.commands.state import cont, snapshot_load, system_reset
from qmpsnap.plan.ownership import has_checkpoint, has_moment, ran_here, superseded_by
from qmpsnap.plan.plan import OperationEnd, Plan
from qmpsnap.plan.recorded_steps import finish, removed, set_back, tidied
from qmpsnap.plan.resume_ends import end_and_resume, ends_job, migrated_away
from qmpsnap.plan.resume_merge import merges
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.plan.vmstate.common import refuse_foreign

# Operations whose outcome has another wording than "is complete" and "was not complete".
_ENDS = {
    "snapshot": ("snapshot {name!r} was taken", "snapshot {name!r} was not taken; its files are removed"),
    "store": ("the store of {name!r} is complete", "the store of {name!r} was not complete, and is removed"),
    "save": ("{file} is complete", "{file} was not complete; its files are removed"),
    "revert": (
        "the machine is reverted to {name!r}",
        "the revert to {name!r} had not happened; what was created for it is removed",
    ),
    "revert-prepare": ("the overlays for {name!r} are there", "the overlays for {name!r} are removed"),
}
_ELSEWHERE = (
    "the guest stays in postmigrate: another client has saved its state or migrated it away meanwhile; "
    f"{RUNS_AGAIN}"
)
_END = ("{op} {name!r} is complete", "{op} {name!r} was not complete; its files are removed")


def plan(record: IntentRecord, scene: Scene) -> Plan:
    """Plan the rest, or the rollback, of the operation of that record, which has no job on a chain.

    Raises:
        Busy: While another client migrates the machine.
    """
    rest = _rest(record, scene)
    if isinstance(scene, GuestScene) and migrated_away(record, scene):
        return replace(rest, notes=(*rest.notes, _ELSEWHERE))
    return rest


def _rest(record: IntentRecord, scene: Scene) -> Plan:
    disks = tuple(disk for disk in record.chains if disk in scene.graph.disks)
    if has_moment(record, scene.files.records):
        return _only_finish(record, scene, _outcome(record, done=True))
    later = superseded_by(record, scene.files.records)
    if later is not None:
        note = f"a later operation uses the overlays of {record.id}: {later.id}"
        return _only_finish(record, scene, note, ended="unknown")
    overlays = record.overlays
    moved = tuple(disk for disk in disks if overlays.get(disk) in scene.graph.disks[disk].files)
    if isinstance(scene, GuestScene) and record.loads and moved:
        return _reverted(record, scene, tuple(disk for disk in disks if disk in overlays), moved)
    if isinstance(scene, GuestScene) and record.state is not None and not record.loads:
        return _saved(record, record.state, scene, moved)
    done = _branch_kept(record, scene) if record.prepared else bool(moved)
    return _complete(record, scene, moved) if done else _roll_back(record, scene)


def _outcome(record: IntentRecord, *, done: bool) -> str:
    text = _ENDS.get(record.op, _END)[0 if done else 1]
    file = record.state.file if record.state is not None else ""
    return text.format(op=record.op, name=record.name, file=file)


def _only_finish(record: IntentRecord, scene: Scene, note: str, *, ended: OperationEnd = "finished") -> Plan:
    """Remove only the record: its files and overlays belong to a moment, or to another operation."""
    return _plan(record, scene, (), finish(record, scene), (note,), ended=ended)


def _complete(record: IntentRecord, scene: Scene, moved: tuple[str, ...]) -> Plan:
    """The operation has succeeded; do its cleanup."""
    notes = (_outcome(record, done=True), *record.notes)
    plan = _plan(record, scene, end_and_resume(record, scene), tidied(record, scene), notes, moves=moved)
    return replace(plan, prepared=record.prepared, memory=record.memory)


def _roll_back(record: IntentRecord, scene: Scene) -> Plan:
    """No disk has moved: resume the guest, and remove what was created."""
    tidy = (*set_back(record, scene), *removed(record, scene), *finish(record, scene))
    note = _outcome(record, done=False)
    return _plan(record, scene, end_and_resume(record, scene), tidy, (note,), ended="rolled-back")


def _plan(
    record: IntentRecord,
    scene: Scene,
    steps: tuple[Step, ...],
    tidy: tuple[Step, ...],
    notes: tuple[str, ...],
    *,
    moves: tuple[str, ...] = (),
    whole: bool = False,
    ended: OperationEnd = "finished",
    vanished: str = "",
) -> Plan:
    """The plan.

    Args:
        record: The operation.
        scene: The machine and its files.
        steps: Steps that end the operation.
        tidy: Steps of the cleanup.
        notes: Sentences about the outcome.
        moves: Disks whose root has moved.
        whole: Whether the steps change the chains to those with which the operation was to end.
        ended: How the operation ends by it.
        vanished: Why the operation has not succeeded, or "".
    """
    disks = tuple(disk for disk in record.chains if disk in scene.graph.disks)
    return Plan(
        op=record.op,
        intent=None,
        disks=disks,
        stages=(
            Stage(f"end {record.op}", steps, verify=True),
            Stage("clean up", tidy, tidy=True),
        ),
        before=scene.graph,
        after=None if whole else scene.graph,
        expect={disk: record.after[disk] for disk in disks if disk in record.after} if whole else {},
        moves=moves,
        notes=tuple(dict.fromkeys(notes)),
        ended=ended,
        vanished=vanished,
    )


# -- saving VM state -------------------------------------------------------------------------------


def _saved(
    record: IntentRecord,
    state: KeptState,
    scene: GuestScene,
    taken: tuple[str, ...],
) -> Plan:
    """Keep or complete the file of VM state; else discard it, and merge back overlays that disks use."""
    whole = _is_whole(record, state, scene)
    keeps = _can_be_kept(record, scene) if whole else bool(taken) and _can_be_sealed(record, state, scene)
    lets_run = not keeps or any(step.command == "cont" for step in record.steps)
    steps = end_and_resume(record, scene, resumes=lets_run)
    if keeps:
        seal = () if whole else _seal(record, state)
        note = _outcome(record, done=True)
        old = (remove_state(state.partial, record.id),) if whole and _has_both_names(state, scene) else ()
        tidy = (*old, *tidied(record, scene))
        return _plan(record, scene, (*steps, *seal), tidy, (note,), moves=_all(record, taken))
    notes = [_outcome(record, done=False)]
    if taken and state.mode != "background" and not ran_here(record, scene.machine.process):
        notes[0] = (
            f"{record.op} {record.name!r} was not completed by the QEMU that wrote its memory, so the memory "
            "is discarded"
        )
    end = finish(record, scene)
    back: tuple[Plan, ...] = ()
    why = ""
    if taken:
        resumes = any(step.command == "cont" for step in steps)
        back, why = merges(record, scene, end, resumes=resumes)
    if back:
        notes += [f"the overlay {record.overlays[disk]} of {disk} is merged back" for disk in taken]
    elif taken:
        notes += [
            f"the overlay {file} of {disk} stays, because the guest writes to it: {why}; to commit it: "
            f"{command('commit', disk, '--top', file, '--base', record.chains[disk][0])}"
            for disk, file in ((disk, record.overlays[disk]) for disk in taken)
        ]
    tidy = (
        *set_back(record, scene),
        *removed(record, scene, keep_overlays=bool(taken)),
        *((remove_state(state.file, record.id, state.tag),) if whole else ()),
        *(() if back else end),
    )
    ended: OperationEnd = "partial" if taken and not back else "rolled-back"
    moves = () if back else taken
    return replace(_plan(record, scene, steps, tidy, tuple(notes), moves=moves, ended=ended), then=back)


def _all(record: IntentRecord, taken: tuple[str, ...]) -> tuple[str, ...]:
    """The disks that have overlays: a transaction adds all of them or none."""
    return tuple(record.overlays) if taken else ()


def _is_whole(record: IntentRecord, state: KeptState, scene: Scene) -> bool:
    """Whether the file is complete: it has its final name, and was written by this operation."""
    fact = scene.files.memories.get(state.file)
    if fact is None:
        return False
    if _has_both_names(state, scene):
        fact = structs.replace(fact, links=1)
    if _may_be_foreign(fact):
        return False
    return state.tag in fact.tags if state.tag else fact.note is not None and fact.note.id == record.id


def _has_both_names(state: KeptState, scene: Scene) -> bool:
    """Whether the client was killed while the file was renamed: by a second link, without replacing any."""
    file, partial = (scene.files.memories.get(name) for name in (state.file, state.partial))
    return file is not None and partial is not None and file.links == 2 and file.inode == partial.inode


def _can_be_kept(record: IntentRecord, scene: Scene) -> bool:
    """Whether the layers, or the checkpoint, to which the memory belongs still exist."""
    layers = (scene.files.files[record.chains[disk][0]] for disk in record.overlays)
    return has_checkpoint(record, scene.files.records) and all(layer.taken for layer in layers)


def _can_be_sealed(record: IntentRecord, state: KeptState, scene: GuestScene) -> bool:
    """Whether an unfinished file is certainly complete, and its final name is free."""
    files = scene.files.files
    return (
        state.mode != "background"
        and ran_here(record, scene.machine.process)
        and files[state.partial].taken
        and not files[state.file].taken
        and not _may_be_foreign(scene.files.memories[state.partial])
    )


def _may_be_foreign(fact: MemoryFact) -> bool:
    """Whether another user may have created the file; its owner is not recorded until it is complete."""
    return bool(fact.foreign(user=None if fact.exposed else fact.user))


def _seal(record: IntentRecord, state: KeptState) -> tuple[Step, ...]:
    if state.mode == "in-place":
        return (seal_store(state.partial, state.file),)
    sealed = seal_memory(
        state.partial,
        state.file,
        id=record.id,
        name=record.name,
        running=state.running,
        fingerprint=state.fingerprint,
    )
    return (await_closed(state.partial), sealed)


# -- reverts that have moved a disk ----------------------------------------------------------------


def _reverted(
    record: IntentRecord, scene: GuestScene, disks: tuple[str, ...], moved: tuple[str, ...]
) -> Plan:
    """A disk has moved: move the others and load the memory, unless the guest has run since."""
    not_run_since = (
        not scene.machine.running
        and all(_is_active(disk, record, scene) for disk in moved)
        and all(record.overlays[disk] in scene.files.fresh for disk in moved)
    )
    empty = all(record.overlays[disk] in scene.files.fresh for disk in disks)  # else one is not ours
    can_finish = not_run_since and empty and ran_here(record, scene.machine.process)
    steps = list(ends_job(record, scene))
    if can_finish:
        steps += _moves(record, scene, [disk for disk in disks if disk not in moved])
        steps += _load(record, scene)
        failed_before = record.state is not None and scene.machine.status == FOR_A_LOAD
        if failed_before or (record.origin is not None and record.origin.running):
            steps.append(cont())
    used = (
        set() if can_finish else {layer.node for disk in scene.graph.disks.values() for layer in disk.layers}
    )
    notes = [_outcome(record, done=True)]
    if not can_finish:
        notes.append("the guest has run since, or may have run: it stays as it is, and no memory is loaded")
    whole = can_finish or (moved == disks and all(_is_active(disk, record, scene) for disk in disks))
    partial = set(moved) < set(disks) and not can_finish
    if partial:
        others = ", ".join(disk for disk in disks if disk not in moved)
        notes[0] = f"the revert to {record.name!r} is incomplete: {others} was not reverted"
    return _plan(
        record,
        scene,
        tuple(steps),
        tidied(record, scene, used=used),
        tuple(notes),
        moves=disks if whole else (),
        whole=whole,
        ended="partial" if partial else "finished",
        vanished=_half_way(record, scene) if not_run_since and not can_finish else "",
    )


def _half_way(record: IntentRecord, scene: GuestScene) -> str:
    """What to report if it is not known whether this is the QEMU process that was to be reverted; else ""."""
    now, was = scene.machine.process, record.origin.process if record.origin is not None else ""
    if now and was:
        return ""  # another QEMU, which was started on these disks
    return (
        f"the disks are reverted to {record.name!r}; it is not known whether its memory was loaded, for QEMU "
        f"may have been restarted: {LOAD_FAILED}"
    )


def _is_active(disk: str, record: IntentRecord, scene: Scene) -> bool:
    return scene.graph.disks[disk].files[:1] == (record.overlays[disk],)


def _moves(record: IntentRecord, scene: GuestScene, disks: list[str]) -> list[Step]:
    """The steps that give these disks their new roots, too."""
    roots = {
        step.effect.root.disk: step.effect.root for step in record.steps if isinstance(step.effect, MoveRoot)
    }
    steps: list[Step] = []
    to_check: list[tuple[str, str, str]] = []
    for disk in (scene.graph.disks[name] for name in disks):
        root = roots[disk.name]
        node = _node_of(root, scene)
        if node not in scene.graph.nodes:
            steps.append(blockdev_add(node, root.file, io=disk.active.io, unmap=True))
        new = Root(disk.name, node, root.file, root.format, None, root.chain)
        steps.append(_move(new, disk, scene))
        if disk.root == disk.active.node:
            to_check.append((disk.name, disk.qdev, node))
    return [*steps, check_roots(tuple(to_check))] if to_check else steps


def _move(new: Root, disk: Disk, scene: GuestScene) -> Step:
    old = Root.of(disk)
    if disk.root != disk.active.node:
        above = disk.filters[0]
        return reopen_filter(new, disk.root, above.group, old, closes=False, io=above.io)
    return set_drive(new, scene.machine.devices[disk.name].path, old, closes=False)


def _node_of(root: Root, scene: Scene) -> str:
    """node-name of the overlay if it is open, else the name that it will get."""
    for node in scene.graph.nodes.values():
        if node.file == root.file and is_owned_node(node.name):
            return node.name
    return node_name(digest(root.file, avoid=scene.names), owned=True)


def _load(record: IntentRecord, scene: GuestScene) -> tuple[Step, ...]:
    """The steps that load the memory that belongs to the disks, or reset the guest where there is none."""
    state = record.state
    if state is None:
        return (system_reset(),)
    nodes = scene.graph.nodes.values()
    open_now = next((node.name for node in nodes if node.file == state.file and node.driver == "qcow2"), "")
    node = open_now or node_name(digest(record.id, "store", avoid=scene.names), owned=True)
    load = done_and_dismissed(snapshot_load(record.id, state.tag, (("", node),), node))
    if open_now:  # the cleanup closes it
        return load
    refuse_foreign(scene.files.memories[state.file], state)
    return (open_store_to_read(node, state.file), *load, blockdev_del(node))


def _branch_kept(record: IntentRecord, scene: Scene) -> bool:
    """Whether the moment knows the overlays that were prepared."""
    return any(
        isinstance(other, MomentRecord) and other.name == record.name and record.prepared in other.branches
        for other in scene.files.records
    )
