"""Plans that delete external moments by a rule, and copy as few bytes as the rule allows."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime

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
    """What the planner has to know, once it knows the records, of the layers of every external moment."""
    moments = find_moments(graph, files.records).moments
    return delete.ask(intent, graph, files, (moment for moment in moments if moment.kind == "external"))


def plan(intent: Prune, scene: Scene) -> Plan:
    """Plan the deletion of the moments that the rule does not keep; no steps if it keeps all of them.

    With `keep_last` the newest moments stay. With `max_depth` the moments are deleted whose layers cost least
    to merge. A layer that something else needs stays in either case, and a note says so. Layers whose moments
    were deleted earlier, while something needed the layers, are merged too once nothing needs them.

    Raises:
        NotFound, AmbiguousName: When a disk does not exist, or a spelling matches two.
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
        return delete.plan(
            intent, _oldest_first(moments)[: -intent.keep_last], scene, _nameless(disks, scene)
        )
    depth = intent.max_depth or 1
    chosen, nameless = _too_deep(depth, disks, moments, scene)
    plan = delete.plan(intent, chosen, scene, nameless)
    return _with_reasons(plan, _still_too_deep(plan, depth, disks, moments, scene))


def _oldest_first(moments: list[Moment]) -> list[Moment]:
    """The moments by time, each after those that it stands on: the host's clock may have been set back."""
    held = {
        (disk, file): datetime.fromisoformat(moment.created)
        for moment in moments
        if moment.record is not None
        for disk, file in moment.record.covered.items()
    }

    def key(moment: Moment) -> tuple[datetime, int]:
        files = [
            (disk, file)
            for disk in moment.disks
            if moment.record is not None
            for file in moment.record.read_from(disk)
        ]
        times = [held[one] for one in files if one in held]
        return max((*times, datetime.fromisoformat(moment.created))), len(files)

    return sorted(moments, key=key)


def _nameless(disks: Iterable[Disk], scene: Scene) -> frozenset[str]:
    """Layers that hold only moments that were deleted earlier."""
    records = [record for record in scene.files.records if isinstance(record, MomentRecord)]
    held = {
        (name, file)
        for record in records
        for name, file in record.covered.items()
        if name not in record.disks and name not in record.lost
    }
    held -= {(name, record.covered[name]) for record in records for name in record.disks}
    return frozenset(file for disk in disks for file in disk.files[1:] if (disk.name, file) in held)


def _too_deep(
    depth: int, disks: Iterable[Disk], moments: list[Moment], scene: Scene
) -> tuple[list[Moment], frozenset[str]]:
    """The moments to delete, and the layers without a moment to merge, in chains that are too deep."""
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


def _still_too_deep(
    plan: Plan, depth: int, disks: Iterable[Disk], moments: list[Moment], scene: Scene
) -> tuple[str, ...]:
    """Why chains stay deeper than that, each with the layers that stay below its active one."""
    nameless = _nameless(disks, scene)
    names = {f"the snapshot {moment.name!r}" for moment in moments}
    held = {(part.disk, part.file) for moment in moments for part in moment.held}
    notes = []
    for disk in disks:
        after = plan.parts[-1].after
        files = after.disks[disk.name].files if after is not None else disk.files
        if len(files) <= depth:
            continue
        reasons = []
        for layer in disk.layers[1:]:
            if layer.file in files:
                by = [what for what in delete.standing(scene, disk, layer) if what not in names]
                if by:
                    reasons += delete.based(scene.files, by, on=layer.file)
                elif (disk.name, layer.file) not in held and layer.file not in nameless:
                    reasons.append(f"{layer.file} holds no snapshot that could be deleted")
        why = f": {'; '.join(reasons)}" if reasons else ""
        notes.append(f"{disk.name} still has {len(files)} layers, not {depth}{why}")
    return tuple(notes)


def _with_reasons(plan: Plan, notes: tuple[str, ...]) -> Plan:
    """The plan with these notes in its last part."""
    if not plan.then:
        return replace(plan, notes=(*plan.notes, *notes))
    *parts, last = plan.then
    return replace(plan, then=(*parts, replace(last, notes=(*last.notes, *notes))))


def _others(scene: Scene, disk: Disk, layer: Layer, names: Collection[str]) -> bool:
    """Whether anything is based on a layer, except its chain and the moments named in `names`."""
    return any(what not in names for what in delete.standing(scene, disk, layer))
