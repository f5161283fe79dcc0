"""Plan of a pruning: external moments are deleted by a rule, with as few bytes copied as that allows."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Disk, Graph, Layer
from qmpsnap.model.moments import Moment, find_moments
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.chain import delete
from qmpsnap.plan.chain.folding import fewest
from qmpsnap.plan.intent import Prune
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene


def ask_again(intent: Prune, graph: Graph, files: Files) -> Ask:
    """What the planner wants to know once it knows the records: of every external moment's layers."""
    moments = find_moments(graph, files.records).moments
    return delete.ask(intent, graph, files, (moment for moment in moments if moment.kind == "external"))


def plan(intent: Prune, scene: Scene) -> Plan:
    """Plan the deletion of the moments that the rule does not keep; one without steps when it keeps all.

    With `keep_last` the newest moments stay. With `max_depth` those go whose layers cost least to merge. A
    layer that something else needs stays in either case, and a note says so. Layers whose moments were
    deleted before, when something needed them, go with the others once nothing does.

    Raises:
        NotFound, AmbiguousDisk: When a disk is not there, or a spelling means two.
        Busy, InvalidTarget: As in `delete.plan`.
    """
    disks = [find_disk(scene.graph, name) for name in intent.disks] or list(scene.graph.disks.values())
    names = {disk.name for disk in disks}
    moments = [
        moment
        for moment in scene.moments.moments
        if moment.kind == "external" and not names.isdisjoint(moment.disks)
    ]
    if intent.keep_last is not None:
        return delete.plan(intent, moments[: -intent.keep_last], scene, _nameless(disks, scene))
    chosen, nameless = _too_deep(intent.max_depth or 1, disks, moments, scene)
    return delete.plan(intent, chosen, scene, nameless)


def _nameless(disks: Iterable[Disk], scene: Scene) -> frozenset[str]:
    """Layers that hold only moments which were deleted before."""
    records = [record for record in scene.files.records if isinstance(record, MomentRecord)]
    held = {
        (name, file)
        for record in records
        for name, file in record.covered.items()
        if record.deleted and name not in record.lost
    }
    held -= {pair for record in records if not record.deleted for pair in record.covered.items()}
    return frozenset(file for disk in disks for file in disk.files[1:] if (disk.name, file) in held)


def _too_deep(
    depth: int, disks: Iterable[Disk], moments: list[Moment], scene: Scene
) -> tuple[list[Moment], frozenset[str]]:
    """The moments, and the layers without one, that have to go from chains that are too deep."""
    nameless = _nameless(disks, scene)
    names = {f"the snapshot {moment.name!r}" for moment in moments}
    chosen: list[Moment] = []
    gone: set[str] = set()
    for disk in disks:
        held = {part.file: moment for moment in moments for part in moment.held if part.disk == disk.name}
        forced = {part.file for moment in chosen for part in moment.held if part.disk == disk.name}
        needed = [index for index, layer in enumerate(disk.layers) if _others(scene, disk, layer, names)]
        free = [
            index
            for index, file in enumerate(disk.files)
            if index and index not in needed and (file in held or file in nameless)
        ]
        certain = [index for index in free if disk.files[index] in forced]
        removed = fewest(delete.sizes(disk), free, depth, needed, certain)
        for index in removed:
            file = disk.files[index]
            if file in held and held[file] not in chosen:
                chosen.append(held[file])
            elif file not in held:
                gone.add(file)
    return sorted(chosen, key=moments.index), frozenset(gone)


def _others(scene: Scene, disk: Disk, layer: Layer, names: Collection[str]) -> bool:
    """Whether anything is based on a layer, other than the chain and moments that could go with it."""
    return any(what not in names for what in delete.standing(scene, disk, layer))
