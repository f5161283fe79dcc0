"""Plan of a commit: layers' data goes down into a layer below them.

A commit writes into its base, so whatever else stands on the base, or on a folded layer, would read
wrong data without a word from QEMU: such images are looked for first.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from itertools import pairwise

from qmpsnap.errors import InvalidTarget, NotInChain, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Disk, Graph, Layer
from qmpsnap.model.names import digest, invalid_names, job_id
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.chain.invalidation import Fold, finish, repeated, settled
from qmpsnap.plan.chain.layers import delete_owned, layer_index, recorded_like, refuse_commit_of_shorter
from qmpsnap.plan.chain.needed import refuse_needed
from qmpsnap.plan.checks.busy import refuse_busy, refuse_covered
from qmpsnap.plan.checks.disk import refuse_empty, refuse_loss, refuse_read_only
from qmpsnap.plan.checks.encryption import refuse_clear_data
from qmpsnap.plan.checks.opened import refuse_moved, refuse_reopen, temporary
from qmpsnap.plan.checks.place import refuse_barred
from qmpsnap.plan.commands.block import flush
from qmpsnap.plan.commands.files import Proof, retire_file
from qmpsnap.plan.commands.jobs import (
    await_job,
    block_commit,
    end_copy,
    job_complete,
    job_dismiss,
    job_finalize,
)
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.effect import apply_all
from qmpsnap.plan.intent import Commit
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.record_places import local_chains, state_place, state_questions, with_parents
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.step import DropLayers, Later, MoveRoot, Root, Step

_KEEP = "keep its name with --folded keep, or run as that user"


def ask(intent: Commit, graph: Graph, *, state_dir: str = "") -> Ask:
    """What the planner wants to know: names for the folded files, and who stands on the chain."""
    disk = refuse_empty(find_disk(graph, intent.disk))
    local = [layer.file for layer in disk.layers if layer.file.startswith("/")]
    records = state_questions(graph, state_dir)
    names = [name for file in local for name in invalid_names(file)]
    searched = (*map(posixpath.dirname, local), *intent.look_in)
    # An export's image may lie in a directory that nobody thinks of; QEMU has it open all the same.
    nodes = (
        node.file
        for node in graph.nodes.values()
        if (node.backing or node.driver == "raw") and node.file.startswith("/")
    )
    return Ask(
        files=(*local, *intent.invalidate, *names, *nodes),
        directories=(*searched, *with_parents(records)),
        survey=searched,
        records=records,
    )


def plan(intent: Commit, scene: Scene) -> Plan:
    """Plan one block-commit with its ending and the retirement of the folded files; or refuse.

    Raises:
        NotFound: When the disk is not there.
        NotInChain: When a layer is not in its chain, or `base` is not below `top`.
        Busy: When a job holds the chain.
        StillNeeded: When another image stands on what would change; `.by` names each.
        WouldLose: When internal snapshots or persistent bitmaps would be lost.
        InvalidTarget: When a directory to look in is not there.
        Unsupported: When the chain has only one layer, `keep_overlay` goes without the active layer, the
            disk is read-only, or a folded layer is shorter than the base.
    """
    disk, top, base = _ends(intent, scene)
    folded, receiver = disk.layers[top:base], disk.layers[base]
    _refuse(intent, scene, disk, top=top, base=base)
    given_up, notes = refuse_needed(intent, scene, disk, (*folded, receiver))

    token = digest("commit", disk.name, disk.files, top, base, intent.keep_overlay, avoid=scene.names)
    ending = "keep" if intent.keep_overlay or top else "pivot"
    job = job_id("commit", ending, token)
    # While the base fills, it and whatever reads through it hold no moment; top still reads its own.
    stopped = tuple(layer.file for layer in disk.layers[top + 1 : base + 1])
    proofs = _proofs(scene, disk.layers[top : base + 1])
    retired = {} if intent.keep_overlay else _retired(intent, scene, folded, proofs)
    place = state_place(scene, disk)
    invalid = (*stopped, *given_up)
    record = _record(intent, scene, disk, job, top=top, base=base, retired=retired, invalid=invalid)
    fold = Fold(
        disk=disk.name,
        chain=disk.files,
        folded=tuple(layer.file for layer in folded),
        base=receiver.file,
        given_up=given_up,
    )
    earlier = finish(repeated(scene.files.records, record)) if place else ()
    moments, costs = settled(scene.files.records, fold, keep_overlay=intent.keep_overlay)
    notes += costs
    tidy: list[Step] = []
    if not intent.keep_overlay:
        tidy += delete_owned(folded)
        tidy += [retire_file(file, intent.folded, to, proofs[file]) for file, to in retired.items()]
    tidy += moments or earlier
    if place and not intent.keep_overlay:
        tidy.append(finish_record(place, (record.id,)))
    put_away = "clean up" if intent.keep_overlay else "clean up the committed layers"
    stages = [
        Stage("write the record", (write_record(place, record),) if place else ()),
        Stage(
            f"commit into {receiver.file}", _fold(intent, scene, disk, job, top=top, base=base), verify=True
        ),
        Stage(put_away, tuple(tidy), tidy=True),
    ]
    stages = [stage for stage in stages if stage.steps]
    notes += _keep_names(intent, scene, folded, proofs)
    if not intent.keep_overlay:
        notes += _filters(scene, disk, disk.layers[top + 1 : base + 1])
    kept = tuple(
        layer.file
        for layer in folded
        if (layer.file not in retired or intent.folded == "keep") and not temporary(layer, scene.files)
    )
    gone = tuple(to for to in retired.values() if to)
    return Plan(
        op="commit",
        intent=intent,
        disks=(disk.name,),
        stages=tuple(stages),
        before=scene.graph,
        after=apply_all(scene.graph, [step for stage in stages for step in stage.steps]),
        moves=() if ending == "keep" else (disk.name,),
        folded=() if intent.keep_overlay else tuple(layer.file for layer in folded),
        invalid=invalid if intent.keep_overlay else (*kept, *gone, *given_up),
        invalid_if_stopped=invalid,
        repeats=earlier,
        notes=notes
        if place or not scene.files.shared
        else (*notes, "there is no writable directory for records"),
    )


def _ends(intent: Commit, scene: Scene) -> tuple[Disk, int, int]:
    """The disk, and the indexes of top and base in its chain."""
    disk = refuse_empty(find_disk(scene.graph, intent.disk))
    refuse_moved(scene, disk, disk.layers)  # what a disk in snapshot mode wrote has no other way to stay
    scene.features.need("block-commit", "job-complete", "job-dismiss", "job-cancel", "block-job-cancel")
    if len(disk.layers) == 1:
        raise Unsupported(f"the chain of {disk.name} has only one layer", feature="commit of a base image")
    top = 0 if intent.top is None else layer_index(scene, disk, intent.top)
    base = len(disk.layers) - 1 if intent.base is None else layer_index(scene, disk, intent.base)
    if base <= top:
        raise NotInChain(
            f"base {disk.layers[base].file} is not below top {disk.layers[top].file}",
            hint="base must be the lower layer",
        )
    if top:
        scene.features.need("job-finalize", "human-monitor-command")
    if intent.keep_overlay and top:
        raise Unsupported("only a commit of the active layer can keep the overlay", feature="keep_overlay")
    return disk, top, base


def _refuse(intent: Commit, scene: Scene, disk: Disk, *, top: int, base: int) -> None:
    """Refuse what QEMU cannot commit, and what would be lost."""
    folded, receiver = disk.layers[top:base], disk.layers[base]
    refuse_read_only(disk, "commit")
    refuse_clear_data(folded, receiver.file, plain=intent.plain, encrypted=receiver.encrypted)
    refuse_commit_of_shorter(disk, top=top, base=base)
    refuse_reopen(scene, disk, receiver)
    if top:  # the header of the layer above is written
        refuse_reopen(scene, disk, disk.layers[top - 1])
    refuse_busy(scene, disk)
    refuse_covered(scene, disk)
    refuse_loss(folded[1:] if intent.keep_overlay else folded, allowed=intent.discard_internal)


def _record(
    intent: Commit,
    scene: Scene,
    disk: Disk,
    job: str,
    *,
    top: int,
    base: int,
    retired: Mapping[str, str],
    invalid: tuple[str, ...],
) -> IntentRecord:
    keeps, files = intent.keep_overlay, disk.files
    return IntentRecord(
        id=job,
        op="commit",
        created=scene.now,
        chains=local_chains({disk.name: files}),
        after=local_chains({disk.name: files if keeps else files[:top] + files[base:]}),
        folded=() if keeps else tuple(file for file in files[top:base] if file.startswith("/")),
        policy="" if keeps else intent.folded if scene.files.shared else "keep",
        renames={file: to for file, to in retired.items() if to and intent.folded == "rename"},
        invalid=tuple(file for file in invalid if file.startswith("/")),
        disk=disk.name,
    )


def _fold(intent: Commit, scene: Scene, disk: Disk, job: str, *, top: int, base: int) -> tuple[Step, ...]:
    """The job from its start to its dismissal; it holds its nodes until then."""
    receiver = disk.layers[base]
    effect: DropLayers | Later
    ending: tuple[Step, ...]
    if top == 0:
        backing = None
        pivot = MoveRoot(Root.of(disk, base))
        effect = Later(pivot)
        end = end_copy(job) if intent.keep_overlay else job_complete(job, pivot)
        ending = (await_job(job, "ready"), end, await_job(job, "concluded"))
    else:
        above = disk.layers[top - 1]
        backing = recorded_like(scene, above, disk.layers[base:])
        effect = DropLayers(disk.name, above.file, receiver.file, backing)
        ending = (
            await_job(job, "pending"),
            flush(receiver.node),
            job_finalize(job),
            await_job(job, "concluded"),
            flush(above.node),  # its header names the base now
        )
    start = block_commit(
        job=job,
        root=disk.root,
        top_node=disk.layers[top].node,
        base_node=receiver.node,
        backing=backing,
        on_error=intent.on_error,
        speed=intent.speed,
        effect=effect,
    )
    return (start, *ending, job_dismiss(job))


def _proofs(scene: Scene, layers: tuple[Layer, ...]) -> dict[str, Proof]:
    """What shows that a file is the layer as which QEMU has it: its own header, which says the same.

    Args:
        scene: The machine, and what lies on its disk.
        layers: The layers that are folded, and the base.
    """
    proofs = {}
    for layer, below in pairwise(layers):
        fact = scene.files.files.get(layer.file)
        header = fact.header if fact is not None and fact.kind == "regular" else None
        if fact is None or header is None or header.format != layer.format:
            continue
        backing = below.file if below.local else layer.backing  # what is no file has many spellings
        leads = fact.backing is not None and fact.backing == scene.files.real(below.file)
        if backing is not None and (header.backing == backing or (below.local and leads)):
            proofs[layer.file] = Proof(layer.format, backing, fact.device, fact.inode)
    return proofs


def _retired(
    intent: Commit, scene: Scene, folded: tuple[Layer, ...], proofs: Mapping[str, Proof]
) -> dict[str, str]:
    """New name of each folded file that we see; "" where it is removed or keeps its name."""
    if not scene.files.shared or intent.folded == "keep":
        return {}
    retired = {}
    for layer in folded:
        if not layer.file.startswith("/") or temporary(layer, scene.files) or layer.window:
            continue
        if intent.folded == "remove" and not _is_link(scene, layer.file) and layer.file in proofs:
            refuse_barred(scene, layer.file, "removed", hint=_KEEP)
            retired[layer.file] = ""
            continue
        if _is_link(scene, layer.file):  # its own name is not what others find it by
            continue
        if layer.file not in proofs:
            continue
        refuse_barred(scene, layer.file, "renamed", hint=_KEEP)
        names = invalid_names(layer.file)
        free = [name for name in names if not scene.files.files[name].taken]
        seen = scene.files.files[names[0]]
        if seen.unseen:
            raise InvalidTarget(
                f"{layer.file} cannot be renamed to {names[0]}: {seen.problem}",
                file=names[0],
                hint=f"{seen.hint}; or keep its name with --folded keep".removeprefix("; or "),
            )
        if not free:
            raise InvalidTarget(
                f"{names[0]} and {len(names) - 1} more such files exist",
                file=names[0],
                hint="remove some of them",
            )
        retired[layer.file] = free[0]
    return retired


def _keep_names(
    intent: Commit, scene: Scene, folded: tuple[Layer, ...], proofs: Mapping[str, Proof]
) -> tuple[str, ...]:
    """Notes on folded files that cannot be renamed or removed."""
    if not scene.files.shared:
        return ()
    links = [layer.file for layer in folded if _is_link(scene, layer.file)]
    notes = [f"{file} is a symlink and keeps its name, although its data was committed" for file in links]
    if not intent.keep_overlay and intent.folded != "keep":
        notes += [
            f"{layer.file} keeps its name, although its data was committed: its header is not that of the "
            "layer that QEMU has open"
            for layer in folded
            if layer.file.startswith("/")
            and layer.file not in (*proofs, *links)
            and not temporary(layer, scene.files)
        ]
    return tuple(notes)


def _filters(scene: Scene, disk: Disk, gone: tuple[Layer, ...]) -> tuple[str, ...]:
    """Notes on filters that go with the layers: QEMU lists each under the file of the layer beneath."""
    files = {layer.file for layer in gone}
    below = {
        one.node: scene.graph.nodes[one.node].file for one in disk.filters if one.node in scene.graph.nodes
    }
    return tuple(
        f"the filter {one.node} ({one.driver}) is between the layers, and is dropped from the chain"
        for one in disk.filters
        if below.get(one.node) in files
    )


def _is_link(scene: Scene, file: str) -> bool:
    """Whether the last part of the path is a symlink: the surveyed directory does not hold the file."""
    real = scene.files.real(file)
    where, name = posixpath.split(real)
    return name != posixpath.basename(file) or where not in {*scene.files.looked_in, posixpath.dirname(file)}
