"""Plan of what is left of a revert, or of its preparation, whose client went away.

No disk has moved: all is taken back. One has: there is but the way on, for memory and disks no longer
belong together; what was done is done once more, which changes nothing as long as the guest has not run.
That it has not is told by the overlays: nothing is written in them, and they are the active layers. Else the
guest is left as it stands, for its memory and its disks belong together.
"""

from __future__ import annotations

from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import LOAD_FAILED
from qmpsnap.model.names import digest, is_owned_node, node_name
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import Root, Stage, Step
from qmpsnap.plan.chain.layers import unused_nodes
from qmpsnap.plan.commands.block import (
    blockdev_add,
    blockdev_del,
    check_roots,
    open_store,
    reopen_filter,
    set_drive,
)
from qmpsnap.plan.commands.files import remove_orphan
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.records import finish_record, keep_branch
from qmpsnap.plan.commands.state import cont, snapshot_load, system_reset
from qmpsnap.plan.ownership import may_remove, ran_here
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.resume_checkpoint import ends_job, goes_on
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate.common import machine_of, refuse_foreign


def plan(record: IntentRecord, scene: Scene) -> Plan:
    """Plan what is left of the revert of that record."""
    disks = tuple(disk for disk in record.overlays if disk in scene.graph.disks)
    moved = tuple(disk for disk in disks if record.overlays[disk] in scene.graph.disks[disk].files)
    if record.was is None:
        return _prepared(record, scene, disks)
    if not moved:
        return _not_begun(record, scene, disks)
    return _on(record, scene, disks, moved)


def _prepared(record: IntentRecord, scene: Scene, disks: tuple[str, ...]) -> Plan:
    """Overlays for another QEMU: kept when the moment knows them, else removed."""
    moment = _moment(record, scene)
    known = moment is not None and record.overlays in moment.branches
    remove = () if known else _orphans(record, scene)
    note = f"the overlays for {record.name!r} are {'there' if known else 'removed'}"
    return Plan(
        op="revert-prepare",
        intent=None,
        disks=disks,
        stages=(Stage(note, (*remove, _finish(record)), tidy=True),),
        before=scene.graph,
        after=scene.graph,
        notes=(note,),
    )


def _not_begun(record: IntentRecord, scene: Scene, disks: tuple[str, ...]) -> Plan:
    """No disk has moved: the guest runs on, and what was made goes."""
    steps: tuple[Step, ...] = (
        *ends_job(record, scene),
        *goes_on(record, scene),
        *(blockdev_del(name) for name in _unused(record, scene)),
    )
    note = f"the revert to {record.name!r} had not happened; what was created for it is removed"
    return Plan(
        op="revert",
        intent=None,
        disks=disks,
        stages=(
            Stage("roll back", steps, verify=True),
            Stage("clean up", (*_orphans(record, scene, freed=True), _finish(record)), tidy=True),
        ),
        before=scene.graph,
        after=scene.graph,
        notes=(note,),
    )


def _on(record: IntentRecord, scene: Scene, disks: tuple[str, ...], moved: tuple[str, ...]) -> Plan:
    """A disk has moved: all do, and the memory comes with them, unless the guest has run since."""
    steps: list[Step] = list(ends_job(record, scene))
    stands = _stands(record, scene, moved)
    goes = stands and ran_here(record, machine_of(scene).process)
    if goes:
        rest = [scene.graph.disks[disk] for disk in disks if disk not in moved]
        roots: list[tuple[str, str, str]] = []
        for disk in rest:
            steps += _move(disk, record, scene)
            if disk.root == disk.active.node:
                roots.append((disk.name, disk.qdev, _node_of(record.overlays[disk.name], scene)))
        if roots:
            steps.append(check_roots(tuple(roots)))
        steps += _load(record, scene)
        if record.was is not None and record.was.running:
            steps.append(cont())
    moment = _moment(record, scene)
    keep = (keep_branch(moment.directory, moment.id, record.overlays),) if moment is not None else ()
    tidy: tuple[Step, ...] = (
        *(blockdev_del(name) for name in _left_behind(record, scene, all_move=goes)),
        *keep,
        _finish(record),
    )
    notes = [f"the machine is reverted to {record.name!r}"]
    if not goes:
        notes.append("the guest has run since, or may have: it is left as it is, and no memory is loaded")
    whole = goes or (moved == disks and all(_is_active(disk, record, scene) for disk in disks))
    if set(moved) < set(disks) and not goes:
        others = ", ".join(disk for disk in disks if disk not in moved)
        notes[0] = f"the revert to {record.name!r} is incomplete: {others} was not reverted"
    return Plan(
        op="revert",
        intent=None,
        disks=disks,
        stages=(
            Stage(f"revert to {record.name!r}", tuple(steps), verify=True),
            Stage("clean up", tidy, tidy=True),
        ),
        before=scene.graph,
        after=None if whole else scene.graph,
        expect={disk: files for disk, files in record.after.items() if disk in disks} if whole else {},
        moves=disks if whole else (),
        notes=tuple(notes),
        vanished=_half_way(record, scene) if stands and not goes else "",
    )


def _half_way(record: IntentRecord, scene: Scene) -> str:
    """What is wrong where it is not known whether this is the QEMU that was to go back."""
    now, was = machine_of(scene).process, record.was.process if record.was is not None else ""
    if now and was:
        return ""  # another one, which was started on these disks
    return (
        f"the disks are reverted to {record.name!r}; it is not known whether its memory was loaded, for QEMU "
        f"may have been restarted: {LOAD_FAILED}"
    )


def _stands(record: IntentRecord, scene: Scene, moved: tuple[str, ...]) -> bool:
    """Whether the guest stands on the overlays and has written nothing since: as the operation left it."""
    return (
        not machine_of(scene).running
        and all(_is_active(disk, record, scene) for disk in moved)
        and all(record.overlays[disk] in scene.files.fresh for disk in moved)
    )


def _is_active(disk: str, record: IntentRecord, scene: Scene) -> bool:
    return scene.graph.disks[disk].files[:1] == (record.overlays[disk],)


def _move(disk: Disk, record: IntentRecord, scene: Scene) -> list[Step]:
    """What gives one more disk its new root."""
    file = record.overlays[disk.name]
    node = _node_of(file, scene)
    steps: list[Step] = (
        [] if node in scene.graph.nodes else [blockdev_add(node, file, io=disk.active.io, unmap=True)]
    )
    new = Root(disk.name, node, file, "qcow2", None, _below(record, disk))
    old = Root.of(disk)
    if disk.root != disk.active.node:
        above = disk.filters[0]
        return [*steps, reopen_filter(new, disk.root, above.group, old, closes=False, io=above.io)]
    return [*steps, set_drive(new, machine_of(scene).devices[disk.name].path, old, closes=False)]


def _below(record: IntentRecord, disk: Disk) -> tuple[tuple[str, str], ...]:
    known = {layer.file: layer.format for layer in disk.layers}
    return tuple((file, known.get(file, "qcow2")) for file in record.after.get(disk.name, ())[1:])


def _load(record: IntentRecord, scene: Scene) -> list[Step]:
    """What gives the guest the memory that belongs to its disks, or a new beginning."""
    state = record.state
    if state is None:
        return [system_reset()]
    open_now = [
        node.name for node in scene.graph.nodes.values() if node.file == state.file and node.driver == "qcow2"
    ]
    node = open_now[0] if open_now else node_name(digest(record.id, "store", avoid=scene.names), owned=True)
    if not open_now:
        refuse_foreign(scene.files.memories[state.file], state)
    add: list[Step] = [] if open_now else [open_store(node, state.file)]
    load = snapshot_load(record.id, state.tag, (("", node),), node)
    free = [] if open_now else [blockdev_del(node)]  # one that is open already goes with what is put away
    return [*add, load, await_job(record.id, "concluded"), job_dismiss(record.id), *free]


def _node_of(file: str, scene: Scene) -> str:
    """node-name of the overlay where it is open, else the one that it gets."""
    for node in scene.graph.nodes.values():
        if node.file == file and is_owned_node(node.name):
            return node.name
    return node_name(digest(file, avoid=scene.names), owned=True)


def _unused(record: IntentRecord, scene: Scene) -> tuple[str, ...]:
    """Nodes that the operation opened and no disk uses."""
    state = (record.state.file,) if record.state is not None else ()
    return unused_nodes((*record.overlays.values(), *state), scene)


def _left_behind(record: IntentRecord, scene: Scene, *, all_move: bool) -> tuple[str, ...]:
    """Nodes of ours that no disk uses once all have moved, or as it is: old roots, and the store."""
    used = set() if all_move else {one.node for disk in scene.graph.disks.values() for one in disk.layers}
    kept = {file for files in record.after.values() for file in files}
    store = record.state.file if record.state is not None else ""
    old = {file for files in record.chains.values() for file in files if file not in kept}
    return tuple(
        node.name
        for node in scene.graph.nodes.values()
        if is_owned_node(node.name)
        and node.name not in used
        and node.file in {*old, store}
        and node.driver != "file"
    )


def _orphans(record: IntentRecord, scene: Scene, *, freed: bool = False) -> tuple[Step, ...]:
    held = {node.file for node in scene.graph.nodes.values()}
    if freed:
        held -= {scene.graph.nodes[name].file for name in _unused(record, scene)}
    return tuple(
        remove_orphan(file, record.after[disk][1])
        for disk, file in record.overlays.items()
        if file not in held and len(record.after.get(disk, ())) > 1 and may_remove(file, record, scene)
    )


def _moment(record: IntentRecord, scene: Scene) -> MomentRecord | None:
    for one in scene.files.records:
        if not isinstance(one, MomentRecord) or one.name != record.name:
            continue
        if all(one.covered.get(disk) == files[1] for disk, files in record.after.items() if len(files) > 1):
            return one
    return None


def _finish(record: IntentRecord) -> Step:
    return finish_record(record.directory, (record.id,))
