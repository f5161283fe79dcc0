"""Plans that delete external moments; every other moment keeps its bytes.

A moment of a disk is what its layer L reads; an overlay O is based on L. To delete the moment, the two layers
are merged: O is committed into L, or L is streamed into O. The merged layer reads what O read, and all layers
above and below read the same bytes as before. Only what L itself read is lost, so the layers are merged only
if nothing but O is based on L. Otherwise only the name is deleted, and L stays (docs/decisions/delete.md).
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from msgspec import structs

from qmpsnap.errors import Busy, Refused, StillNeeded, Unsupported, WouldLose
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk, Graph, Layer
from qmpsnap.model.hints import command
from qmpsnap.model.moments import Moment, recognised_disks, related_records
from qmpsnap.model.names import closes_unused
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.record_changes import deleted_from
from qmpsnap.model.step import Step
from qmpsnap.model.units import size
from qmpsnap.plan.chain import commit, stream
from qmpsnap.plan.chain.deletion import Deleting, Part, whole, with_tidying
from qmpsnap.plan.chain.folding import Run, merged, ways
from qmpsnap.plan.checks.disk import refuse_jobs, refuse_loss, refuse_read_only, refuse_viewed
from qmpsnap.plan.checks.keepers import named
from qmpsnap.plan.checks.place import other_disks
from qmpsnap.plan.commands.files import Proof, retire_file
from qmpsnap.plan.commands.records import keep_continued, rewritten
from qmpsnap.plan.intent import Commit, Delete, Prune, Stream
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import refuse_unrecorded
from qmpsnap.plan.scene import Scene


def ask(intent: Delete | Prune, graph: Graph, files: Files, moments: Iterable[Moment]) -> Ask:
    """What the planner has to know of the layers of these moments, and of the images based on them."""
    chosen = tuple(moments)
    disks = dict.fromkeys(name for moment in chosen for name in moment.disks if name in graph.disks)
    question = Ask()
    for name in disks:
        if graph.disks[name].layers:
            question |= commit.ask(Commit(name, look_in=intent.look_in), graph, "")
    # Also the layers of other machines on the same base image: their overlays may be in any directory.
    chains = {file for name in disks for file in graph.disks[name].files}
    kin = {record.id for record in related_records(graph, files.records)}
    layers: set[str] = set()
    for record in files.records:
        if isinstance(record, MomentRecord):
            read = {file for disk in record.covered for file in record.read_from(disk)}
            if record.id in kin or read & chains:
                layers |= read | record.all_going_on
    aside = sorted(file for file in layers if file.startswith("/"))
    reads = tuple((file, "") for file in aside)
    return question | Ask(files=tuple(aside), survey=tuple(map(posixpath.dirname, aside)), readers=reads)


def plan(
    intent: Delete | Prune,
    moments: Iterable[Moment],
    scene: Scene,
    nameless: Collection[str] = (),
) -> Plan:
    """Plan the deletion of moments: jobs that merge their layers, then the deletion of the names; or refuse.

    Args:
        intent: The user's request.
        moments: External moments, the oldest first.
        scene: The machine and its files.
        nameless: More layers to merge, which hold no moment.

    Raises:
        Busy: When a job holds one of the chains, or a client of ours reads a moment through a layer.
        InvalidTarget: When it cannot be determined what else is based on a layer.
        Unsupported: When a disk is attached read-only.
    """
    chosen = tuple(moments)
    gone = tuple(moment.record for moment in chosen if moment.record is not None)
    if any(record.state is not None for record in gone):
        refuse_jobs(scene.jobs)
    _refuse_unfinished(scene, {disk for moment in chosen for disk in moment.disks})
    here = recognised_disks(scene.graph, scene.files.records)
    staying = {record.id: disks for record in gone if (disks := _elsewhere(record, here, scene))}
    others = [record for record in scene.files.records if record not in gone]
    others += [
        deleted_from(record, [disk for disk in record.disks if disk in here])
        for record in gone
        if record.id in staying
    ]
    known = replace(scene, files=structs.replace(scene.files, records=tuple(others)))
    deleting = Deleting(intent, known, gone, Frozen(staying))
    layers: dict[str, list[str]] = {}
    for moment in reversed(chosen):
        for part in moment.held:
            disk = scene.graph.disks[part.disk]
            if moment.record is None or part.disk in moment.record.lost or part.disk not in here:
                continue  # an earlier deletion that was stopped has done this disk, or it stays there
            if part.file in disk.files[1:]:
                layers.setdefault(part.disk, []).append(part.file)
            elif not any(part.file in other.files for other in scene.graph.disks.values()):
                _put_aside(deleting, part.disk, part.file)
    for name, disk in scene.graph.disks.items():
        wanted = {*layers.get(name, ()), *(file for file in disk.files[1:] if file in nameless)}
        if wanted:
            refuse_unrecorded(scene, disk, wanted)
            _merge(deleting, name, wanted)
    return whole(deleting, chosen, scene)


def _elsewhere(record: MomentRecord, here: Collection[str], scene: Scene) -> tuple[str, ...]:
    """Disks of the moment that are not here, and whose images may exist: it stays on them."""
    return tuple(
        disk
        for disk in record.disks
        if disk not in here
        and disk not in record.lost
        and ((fact := scene.files.files.get(record.covered[disk])) is None or fact.kind != "missing")
    )


def _refuse_unfinished(scene: Scene, disks: Collection[str]) -> None:
    """Refuse while an interrupted operation has changed a chain, but not yet the records of its moments.

    An interrupted operation that has changed no chain is no obstacle: the deletion can be started again.
    """
    for record in scene.files.records:
        if isinstance(record, IntentRecord):
            for disk, after in record.after.items():
                if disk in disks and record.chains.get(disk) != after == scene.graph.disks[disk].files:
                    raise Busy(
                        f"{record.op} {record.id!r} of {disk} has not been finished",
                        node="",
                        job_id=record.id,
                        hint=f"finish it first: {command('job', 'wait', record.id)}",
                    )


# -- which layers ----------------------------------------------------------------------------------


def standing(scene: Scene, disk: Disk, layer: Layer) -> list[str]:
    """What is based on a layer, apart from the disk's chain: other disks, images, and moments elsewhere."""
    images = scene.files.backed_by(layer.file, without=disk.files) if layer.file.startswith("/") else ()
    return [*other_disks(scene, disk, layer), *images, *_moments(scene, layer.file, disk.files)]


def based(files: Files, by: Iterable[str], *, on: str = "it") -> list[str]:
    """What is based on a layer, as a clause; none if nothing is."""
    *some, last = named(files, dict.fromkeys(by)) or ("",)
    if not last:
        return []
    return [f"{', '.join(some)} and {last} are based on {on}" if some else f"{last} is based on {on}"]


def held(scene: Scene, layer: Layer) -> list[str]:
    """Moments that the layer holds; another layer that reads the same bytes could hold them as well."""
    return [f"the snapshot {record.name!r}" for record, file, _ in _reading(scene) if file == layer.file]


def _moments(scene: Scene, file: str, chain: Collection[str] = ()) -> Iterator[str]:
    """Moments that read from a layer, and are held by a layer outside the chain."""
    for record, own, below in _reading(scene):
        if own not in chain and file in below:
            yield f"the snapshot {record.name!r}"


def _reading(scene: Scene) -> Iterator[tuple[MomentRecord, str, tuple[str, ...]]]:
    """For every moment and each of its disks: the layer that holds it, and the layers that this reads."""
    for record in scene.files.records:
        if isinstance(record, MomentRecord):
            for disk in record.disks:
                if disk not in record.lost:
                    yield record, record.covered[disk], record.read_from(disk)


def sizes(disk: Disk) -> list[int]:
    """Bytes of each layer on the host, active first; the virtual size where QEMU does not know them."""
    return [layer.virtual_size if layer.allocated is None else layer.allocated for layer in disk.layers]


def _merge(deleting: Deleting, name: str, wanted: Collection[str]) -> None:
    """Plan the jobs that merge each of these layers of a disk with the layer above it."""
    disk = deleting.scene.graph.disks[name]
    refuse_read_only(disk, "deletion")
    needed = []
    goes = set()
    for index, layer in enumerate(disk.layers):
        by = standing(deleting.scene, disk, layer)
        if by:
            needed.append(index)
        holds = held(deleting.scene, layer)
        if layer.file in wanted and (by or holds):
            clauses = *based(deleting.scene.files, by), *(f"{what} is in it" for what in holds)
            deleting.stays(name, layer.file, "; ".join(clauses))
        elif layer.file in wanted:
            goes.add(index)
    base = len(disk.layers) - 1
    top = next((index for index in range(base, 0, -1) if index not in goes), 0)
    if base in goes and top in needed:  # copying a base image up would free nothing, as its file stays
        goes.remove(base)
        by = standing(deleting.scene, disk, disk.layers[top])
        because = "".join(based(deleting.scene.files, by, on="that"))
        why = f"{disk.files[top]} cannot be merged into it, because {because}"
        deleting.stays(name, disk.files[base], why)
    # Indexes change with each job, so the jobs name the layers by their files.
    for run in merged(sizes(disk), goes, needed):
        _merge_run(deleting, name, disk, run, needed)


def _merge_run(deleting: Deleting, name: str, disk: Disk, run: Run, needed: Collection[int]) -> None:
    """Plan the jobs of one run, in the cheapest way that is possible; else note why none is possible."""
    refuse_viewed(deleting.scene, disk.files[run.top : run.bottom + 1])
    reasons: list[Refused] = []
    every = list(ways(sizes(disk), run.top, run.bottom, needed))
    if isinstance(deleting.intent, Delete) and deleting.intent.down:
        every.sort(key=lambda way: way.receiver != run.bottom)
    for way in every:
        try:
            parts, scene = _jobs(deleting, name, disk, way)
        except (StillNeeded, WouldLose, Unsupported) as error:
            reasons.append(error)
            continue
        into = disk.files[way.receiver]
        note = f"{name}: at most {size(way.copied)} to copy into {into}"
        others = [
            f"{size(other.copied)} into {disk.files[other.receiver]}" for other in every if other != way
        ]
        note += f"; in another way it would be {' or '.join(others)}" if others else ""
        first = parts[0]
        parts[0] = replace(first, plan=replace(first.plan, notes=(note, *first.plan.notes)))
        deleting.parts += parts
        deleting.scene = scene
        return
    why = "; ".join(dict.fromkeys(reason.message for reason in reasons))
    for file in disk.files[run.top + 1 : run.bottom + 1]:
        deleting.stays(name, file, why)


# -- jobs ------------------------------------------------------------------------------------------


def _jobs(deleting: Deleting, name: str, disk: Disk, run: Run) -> tuple[list[Part], Scene]:
    """The jobs of a run, and the scene that is predicted after them; or refuse."""
    intent, scene = deleting.intent, deleting.scene
    into = disk.files[run.receiver]
    parts = []
    if run.receiver < run.bottom:
        up = disk.layers[run.receiver + 1 : run.bottom + 1]
        part = Part(_up(deleting, disk, run, up, scene), name, tuple(layer.file for layer in up))
        parts.append(part)
        scene = _after(scene, part.plan)
    if run.top < run.receiver:
        down = disk.layers[run.top : run.receiver]
        ours = all(closes_unused(layer.node) for layer in down)
        wish = Commit(
            name,
            top=disk.files[run.top] if run.top else None,
            base=into,
            look_in=intent.look_in,
            folded="keep" if intent.keep_files else "remove" if ours else "rename",
        )
        part = Part(commit.plan(wish, scene), name, disk.files[run.top + 1 : run.receiver + 1])
        parts.append(part)
        scene = _after(scene, part.plan)
    return parts, scene


def _up(deleting: Deleting, disk: Disk, run: Run, gone: tuple[Layer, ...], scene: Scene) -> Plan:
    """Plan the stream of these layers into the layer above them, and the removal of their files."""
    intent = deleting.intent
    into = disk.files[run.receiver]
    wish = Stream(disk.name, into=into, base=next(iter(disk.files[run.bottom + 1 :]), None))
    job = stream.plan(wish, scene)
    commit.refuse_needed(Commit(disk.name, look_in=intent.look_in), scene, disk, gone)
    retire: list[Step] = []
    staying: list[str] = []
    if not intent.keep_files:
        refuse_loss(gone, allowed=False, hint="keep the file with --keep-files")
        for layer in gone:
            step = _dropped(scene, layer)
            if step is None:
                staying.append(f"{layer.file} stays, although {disk.name} no longer needs it")
            else:
                retire.append(step)
    files = {layer.file for layer in gone}
    goes_on = [
        keep_continued(record.directory, record.id, disk.name, into)
        for record in scene.files.records
        if isinstance(record, MomentRecord) and not files.isdisjoint(record.goes_on(disk.name))
    ]
    notes = tuple(note for note in job.notes if not note.endswith(f"no longer needed by {disk.name}"))
    return with_tidying(replace(job, notes=(*notes, *staying)), (*retire, *goes_on))


def _dropped(scene: Scene, layer: Layer) -> Step | None:
    """The step that removes the file of a layer that is no longer in a chain; None if the file stays."""
    fact = scene.files.files.get(layer.file)
    if not closes_unused(layer.node) or layer.window or layer.file in scene.files.barred:
        return None
    if fact is None or fact.real != layer.file:
        return None
    return _removed(scene, layer.file)


def _removed(scene: Scene, file: str) -> Step | None:
    """The step that removes an overlay; None for a base image, whose header does not show whose it is."""
    fact = scene.files.files.get(file)
    if fact is None or fact.kind != "regular" or fact.header is None or fact.header.backing is None:
        return None
    proof = Proof(fact.header.format, fact.header.backing, fact.device, fact.inode)
    return retire_file(file, "remove", "", proof, alone=True)


def _put_aside(deleting: Deleting, disk: str, file: str) -> None:
    """Remove a layer that is in no chain if nothing is based on it; else delete only the name."""
    scene = deleting.scene
    removed = {step.arguments["file"] for step in deleting.removed}
    by = [image for image in scene.files.backed_by(file) if image not in removed]
    by += _moments(scene, file)
    nodes = [repr(node.name) for node in scene.graph.nodes.values() if node.file == file]
    opened = [f"QEMU has it open as {' and '.join(nodes)}"] if nodes else []
    fact = scene.files.files.get(file)
    inside = fact is not None and fact.header is not None and fact.header.snapshot_count
    refuse_viewed(scene, [file])
    step = None if by or opened or inside or deleting.intent.keep_files else _removed(scene, file)
    if step is not None:
        deleting.removed.append(step)
    elif fact is None or fact.kind != "missing":
        deleting.stays(disk, file, "; ".join((*based(scene.files, by), *opened)))


def _after(scene: Scene, done: Plan) -> Scene:
    """The scene that is predicted after a part."""
    assert done.after is not None  # noqa: S101 - it has an intent
    records = rewritten(scene.files.records, done.steps)
    return replace(scene, graph=done.after, files=structs.replace(scene.files, records=records))
