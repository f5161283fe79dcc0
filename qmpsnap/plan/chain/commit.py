"""Plan of a commit: layers' data is copied down into a layer below them.

A commit writes into its base, so whatever else is backed by the base, or by a folded layer, would read wrong
data, and neither QEMU nor its locks prevent it: such disks and images are searched for first.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from itertools import pairwise

from qmpsnap.errors import InvalidTarget, NotInChain, StillNeeded, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import NOT_ALLOWED, Ask, Files
from qmpsnap.model.graph import Disk, Graph, Layer
from qmpsnap.model.hints import command
from qmpsnap.model.names import digest, invalid_names, job_id
from qmpsnap.model.step import DropLayers, Later, MoveRoot, Root, Stage, Step
from qmpsnap.plan.chain.invalidation import Fold, finish, repeated, settled
from qmpsnap.plan.chain.layers import (
    delete_owned,
    flush_layer,
    layer_index,
    recorded_like,
    refuse_commit_of_shorter,
)
from qmpsnap.plan.checks import keepers
from qmpsnap.plan.checks.disk import (
    ask_viewed,
    refuse_empty,
    refuse_in_use,
    refuse_loss,
    refuse_read_only,
    refuse_viewed,
)
from qmpsnap.plan.checks.encryption import refuse_clear_data
from qmpsnap.plan.checks.opened import refuse_inner, refuse_moved, refuse_reopen, temporary
from qmpsnap.plan.checks.place import images_on, other_disks, refuse_barred, refuse_unsearched
from qmpsnap.plan.commands.files import Proof, retire_file
from qmpsnap.plan.commands.jobs import block_commit, copied_and_ended, copied_and_finalized, job_dismiss
from qmpsnap.plan.intent import Commit
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import refuse_unrecorded, state_place
from qmpsnap.plan.recording import finished, local, recorded
from qmpsnap.plan.scene import Scene

_KEEP = "keep its name with --folded keep, or run as that user"


def ask(intent: Commit, graph: Graph, _state_dir: str) -> Ask:
    """What the planner wants to know: new names for the folded files, and which images the chain backs."""
    disk = refuse_empty(find_disk(graph, intent.disk))
    local = [layer.file for layer in disk.layers if layer.file.startswith("/")]
    names = [name for file in local for name in invalid_names(file)]
    searched = (*map(posixpath.dirname, local), *intent.look_in)
    # An export's image may lie in a directory that nobody thinks of; QEMU has it open all the same.
    nodes = (
        node.file
        for node in graph.nodes.values()
        if (node.backing or node.driver == "raw") and node.file.startswith("/")
    )
    return ask_viewed(disk.layers) | Ask(
        files=(*local, *intent.invalidate, *names, *nodes),
        directories=searched,
        survey=searched,
    )


def plan(intent: Commit, scene: Scene) -> Plan:
    """Plan one block-commit with its ending and the retirement of the folded files; or refuse.

    Raises:
        NotFound: When there is no such disk.
        NotInChain: When a layer is not in its chain, or `base` is not below `top`.
        Busy: When a job holds the chain, or a client of ours reads a moment from the base.
        StillNeeded: When another image is backed by what would change; `.by` names each.
        WouldLose: When internal snapshots or persistent bitmaps would be lost.
        InvalidTarget: When a directory to look in does not exist, or no record can be written before a layer
            changes that a snapshot is read from.
        Unsupported: When the chain has only one layer, `keep_overlay` goes without the active layer, the
            disk is read-only, or a folded layer is shorter than the base.
    """
    disk, top, base = _top_and_base(intent, scene)
    folded, receiver = disk.layers[top:base], disk.layers[base]
    given_up, searched = refuse_needed(intent, scene, disk, (*folded, receiver))
    retire, kept = _retire(intent, scene, disk.layers[top : base + 1])

    keeps = intent.keep_overlay
    token = digest("commit", disk.name, disk.files, top, base, keeps, avoid=scene.names)
    job = job_id("commit", "keep" if keeps or top else "pivot", token)
    # While the base fills, it and whatever reads through it hold no moment; top still reads its own.
    stopped = (*(layer.file for layer in disk.layers[top + 1 : base + 1]), *given_up)
    renames = {step.arguments["file"]: step.arguments["to"] for step in retire if step.arguments["to"]}
    place = state_place(scene, disk)
    refuse_unrecorded(scene, disk, stopped)
    files = tuple(layer.file for layer in folded)
    repeats = repeated(scene.files.records, job, disk.name, top=files[0], invalid=local(stopped))
    earlier = finish(repeats) if place else ()
    fold = Fold(disk=disk.name, chain=disk.files, folded=files, base=receiver.file, given_up=given_up)
    moments, costs = settled(scene.files.records, fold, keep_overlay=keeps)
    filters = () if keeps else _filters(scene, disk, disk.layers[top + 1 : base + 1])
    unrecorded = () if place or not scene.files.shared else ("there is no writable directory for records",)
    retired = {step.arguments["file"] for step in retire}
    named = (
        layer.file for layer in folded if layer.file not in retired and not temporary(layer, scene.files)
    )
    tidy = Stage("clean up", earlier, tidy=True)
    if not keeps:
        steps = (*delete_owned(folded), *retire, *(moments or earlier), *finished(job, place))
        tidy = Stage("clean up the committed layers", steps, tidy=True)
    plan = Plan(
        op="commit",
        intent=intent,
        disks=(disk.name,),
        stages=(
            Stage(
                f"commit into {receiver.file}",
                _commit(intent, scene, disk, job, top=top, base=base),
                verify=True,
            ),
            tidy,
        ),
        before=scene.graph,
        moves=() if keeps or top else (disk.name,),
        folded=() if keeps else files,
        invalid=stopped if keeps else (*named, *renames.values(), *given_up),
        invalid_if_stopped=stopped,
        repeats=earlier,
        notes=(*searched, *costs, *kept, *filters, *unrecorded),
    )
    return recorded(plan, place, id=job, created=scene.now)


def _top_and_base(intent: Commit, scene: Scene) -> tuple[Disk, int, int]:
    """The disk, and the indexes of top and base in its chain; or refuse what QEMU cannot commit."""
    disk = refuse_empty(find_disk(scene.graph, intent.disk))
    refuse_moved(scene, disk, disk.layers)  # what a disk in snapshot mode wrote has no other way to stay
    scene.features.need("block-commit", "job-complete", "job-dismiss", "job-cancel", "block-job-cancel")
    if len(disk.layers) == 1:
        raise Unsupported(f"the chain of {disk.name} has only one layer", feature="commit of a base image")
    top = 0 if intent.top is None else layer_index(scene, disk, intent.top)
    base = len(disk.layers) - 1 if intent.base is None else layer_index(scene, disk, intent.base)
    folded, receiver = disk.layers[top:base], disk.layers[base]
    if base <= top:
        raise NotInChain(
            f"base {receiver.file} is not below top {disk.layers[top].file}",
            hint="base must be the lower layer",
        )
    if top:
        scene.features.need("job-finalize")
    if intent.keep_overlay and top:
        raise Unsupported("only a commit of the active layer can keep the overlay", feature="keep_overlay")
    refuse_read_only(disk, "commit")
    refuse_clear_data(folded, receiver.file, plain=intent.plain, encrypted=receiver.encrypted)
    refuse_commit_of_shorter(disk, top=top, base=base)
    refuse_inner(disk, folded)
    refuse_reopen(scene, disk, receiver)
    if top:  # the header of the layer above is written
        refuse_reopen(scene, disk, disk.layers[top - 1])
    refuse_in_use(scene, disk)
    refuse_viewed(scene, [receiver.file])
    refuse_loss(folded[1:] if intent.keep_overlay else folded, allowed=intent.discard_internal)
    return disk, top, base


def _commit(intent: Commit, scene: Scene, disk: Disk, job: str, *, top: int, base: int) -> tuple[Step, ...]:
    """The job from its start to its dismissal; it holds its nodes until then."""
    receiver = disk.layers[base]
    backing = None
    effect: DropLayers | Later = Later(MoveRoot(Root.of(disk, base)))
    if top:
        above = disk.layers[top - 1]
        backing = recorded_like(scene, above, disk.layers[base:])
        effect = DropLayers(disk.name, above.file, receiver.file, backing)
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
    if top:
        below = disk.layers[base + 1] if base + 1 < len(disk.layers) else None
        steps = copied_and_finalized(
            start,
            filled=flush_layer(scene, receiver, below, filled=True),
            named=flush_layer(scene, above, receiver),
        )
    else:
        steps = copied_and_ended(start, pivot=not intent.keep_overlay)
    return (*steps, job_dismiss(job))


def _retire(
    intent: Commit, scene: Scene, layers: tuple[Layer, ...]
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps that rename or remove the folded files that we see, and notes on those that stay.

    Args:
        intent: What is asked for.
        scene: The machine, and what lies on its disk.
        layers: The layers that are folded, and the base.
    """
    steps: list[Step] = []
    notes: list[str] = []
    for layer, below in pairwise(layers if scene.files.shared else ()):
        file = layer.file
        if _is_link(scene, file):  # its own name is not what others find it by
            notes.append(f"{file} is a symlink and keeps its name, although its data was committed")
        elif (
            intent.keep_overlay
            or intent.folded == "keep"
            or not file.startswith("/")
            or temporary(layer, scene.files)
        ):
            continue
        elif (proof := _proof(scene, layer, below)) is None:
            notes.append(
                f"{file} keeps its name, although its data was committed: its header is not that of the "
                "layer that QEMU has open"
            )
        elif not layer.window:
            steps.append(retire_file(file, intent.folded, _new_name(intent, scene, file), proof))
    return tuple(steps), tuple(notes)


def _proof(scene: Scene, layer: Layer, below: Layer) -> Proof | None:
    """What shows that a file is the layer as which QEMU has it: its own header, which says the same."""
    fact = scene.files.files.get(layer.file)
    header = fact.header if fact is not None and fact.kind == "regular" else None
    if fact is None or header is None or header.format != layer.format:
        return None
    backing = below.file if below.local else layer.backing  # what is no file has many spellings
    leads = fact.backing is not None and fact.backing == scene.files.real(below.file)
    if backing is not None and (header.backing == backing or (below.local and leads)):
        return Proof(layer.format, backing, fact.device, fact.inode)
    return None


def _new_name(intent: Commit, scene: Scene, file: str) -> str:
    """New name of a folded file, "" where it is removed; or refuse."""
    refuse_barred(scene, file, f"{intent.folded}d", hint=_KEEP)
    if intent.folded == "remove":
        return ""
    names = invalid_names(file)
    seen = scene.files.files[names[0]]
    if seen.unseen:
        raise InvalidTarget(
            f"{file} cannot be renamed to {names[0]}: {seen.problem}",
            file=names[0],
            hint=f"{seen.hint}; or keep its name with --folded keep".removeprefix("; or "),
        )
    free = next((name for name in names if not scene.files.files[name].taken), "")
    if not free:
        raise InvalidTarget(
            f"{names[0]} and {len(names) - 1} more such files exist",
            file=names[0],
            hint="remove some of them",
        )
    return free


def _filters(scene: Scene, disk: Disk, gone: tuple[Layer, ...]) -> tuple[str, ...]:
    """Notes on filters that go with the layers: QEMU lists each under the file of the layer beneath."""
    files = {layer.file for layer in gone}
    nodes = scene.graph.nodes
    return tuple(
        f"the filter {filter_.node} ({filter_.driver}) is between the layers, and is dropped from the chain"
        for filter_ in disk.filters
        if filter_.node in nodes and nodes[filter_.node].file in files
    )


def _is_link(scene: Scene, file: str) -> bool:
    """Whether the last part of the path is a symlink: the surveyed directory does not hold the file."""
    real = scene.files.real(file)
    where, name = posixpath.split(real)
    return name != posixpath.basename(file) or where not in {*scene.files.looked_in, posixpath.dirname(file)}


def refuse_needed(
    intent: Commit, scene: Scene, disk: Disk, changed: tuple[Layer, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Images that are backed by what changes and may become invalid, and notes on the search; or refuse."""
    files = scene.files
    disks = [name for layer in changed for name in other_disks(scene, disk, layer)]
    images = images_on(scene.graph, files, [layer.file for layer in changed], without=disk.files)
    allowed = {*intent.invalidate, *map(files.real, intent.invalidate)}
    given_up = tuple(file for file in images if file in allowed)
    needed = [*disks, *(file for file in images if file not in allowed)]
    if not files.shared:
        _refuse_by(files, needed)
        note = "images of other machines were not searched for: QEMU's files are not visible from here"
        if files.looked_in:
            note = (
                "images of other machines were searched for, but it is not known whether QEMU uses "
                "these files"
            )
        return given_up, (note,)
    for where in intent.look_in:
        if not files.directories[where].exists:
            raise InvalidTarget(f"{where}, given with --look-in, is not a directory", file=where)
    refuse_unsearched(scene, (*files.looked_in, *files.directories), "the chain")
    locked = [where.partition(": ")[0] for where in files.unreadable if where.endswith(NOT_ALLOWED)]
    _refuse_by(files, needed)
    unread = [file for file in locked if file not in allowed]
    _refuse_by(files, unread, "it cannot be read, and may be backed")
    notes = [f"could not be read, may be backed by the chain: {where}" for where in files.unreadable]
    notes += [
        f"images of other machines backed by {layer.file} were not searched for"
        for layer in changed
        if not layer.file.startswith("/")
    ]
    return given_up, tuple(notes)


def _refuse_by(files: Files, needed: Iterable[str], why: str = "") -> None:
    """Refuse when anything needs what changes; a disk of this machine cannot be given up."""
    by = list(dict.fromkeys(needed))
    if not by:
        return
    why = why or ("they are backed" if len(by) > 1 else "it is backed")
    disks = [name.removeprefix("disk ") for name in by if name.startswith("disk ")]
    hints = [f"stream {name} first: {command('stream', name)}" for name in disks]
    hints += keepers.ways(files, by)
    if any(name not in files.keepers for name in by[len(disks) :]):
        hints.append("stream such an image first, or let it become invalid with --invalidate FILE")
        hints.append("if it is a raw disk whose guest wrote that header, move it to another directory")
    raise StillNeeded(
        f"still needed by {', '.join(keepers.named(files, by))}: {why} by a layer that this commit changes",
        by=by,
        hint="; ".join(hints),
    )
