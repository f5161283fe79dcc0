"""Finds the images and formats from which a moment's disks can be read without touching the machine.

Nothing is sent to QEMU. A process that qmpsnap starts opens the images a second time, read-only. QEMU's image
locks prevent others from writing to them meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from qmpsnap.errors import AmbiguousName, Busy, NotFound, NotInChain, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Disk, Graph, InternalSnapshot, Layer
from qmpsnap.model.hints import command
from qmpsnap.model.moments import Moment, find_moments
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.plan.checks.disk import holders
from qmpsnap.plan.checks.opened import refuse_moved, refuse_window
from qmpsnap.plan.ownership import refuse_strange_base
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import state_questions, with_parents
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate.branch import branch_files, left_aside, refuse_invalid
from qmpsnap.plan.written import written_since

_FORMATS = frozenset({"qcow2", "raw"})

# QEMU does not tell which of the two it is.
_STAYS_WRITABLE = (
    "QEMU keeps the base open for writing after a commit that kept its overlay, until it is restarted, and "
    "any layer that a -drive has opened with copy-on-read=on: start the machine without that"
)


def ask(graph: Graph, *, state_dir: str = "") -> Ask:
    """What the planner has to know first: the records, which tell what moments there are."""
    places = state_questions(graph, state_dir)
    return Ask(directories=with_parents(places), records=places)


def ask_again(name: str, graph: Graph, files: Files, *, state_dir: str = "") -> Ask:
    """What the planner has to know next, once the moments are known: the files that hold the named moment."""
    layers = [layer for disk in graph.disks.values() for layer in disk.layers]
    parts = [file for layer in layers for file in layer.parts if file.startswith("/")]
    records = [
        moment.record
        for moment in find_moments(graph, files.records).named(name)
        if moment.record is not None
    ]
    more = [file for record in records for file in branch_files(record, graph)]
    return ask(graph, state_dir=state_dir) | Ask(files=(*parts, *more))


def views(name: str, disks: Sequence[str], scene: Scene) -> tuple[DiskView, ...]:
    """How to read each of the disks as it was at the moment; or refuse.

    Args:
        name: The moment's name.
        disks: Disks in any spelling; none: every disk that the moment includes.
        scene: The machine, and its files.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it.
        NotFound: When the moment does not include one of the disks.
        NotInChain: When no layer holds it any more.
        Busy: When a layer is being written to.
        FileMoved: When a layer's name does not lead to the file that QEMU has open.
        Unsupported: When a layer is encrypted or not a file, or the files are not visible from here.
    """
    moment = scene.moment(name)
    _refuse_unseen(scene)
    held = [disk for disk in moment.disks if disk in scene.graph.disks]
    wanted = list(dict.fromkeys(find_disk(scene.graph, disk).name for disk in disks)) or held
    for disk in wanted:
        if disk not in held:
            raise NotFound(
                f"{moment.name!r} does not include {disk}",
                hint=f"it includes: {', '.join(held) or 'no disk'}",
            )
    found = tuple(_view(moment, scene.graph.disks[disk], scene) for disk in wanted)
    if (record := moment.record) is None:
        return found
    return tuple(replace(view, written_since=written_since(record, (view.disk,), scene)) for view in found)


def readable(disks: Sequence[str], scene: Scene) -> tuple[Disk, ...]:
    """The disks, if all of them can be read from outside once the guest writes to another layer; or refuse.

    Args:
        disks: Disks by their names.
        scene: The machine, and its files.

    Raises:
        Refused: As `views`.
    """
    _refuse_unseen(scene)
    chosen = tuple(scene.graph.disks[disk] for disk in disks)
    for disk in chosen:
        _refuse_layers(disk, disk.layers, scene)
    return chosen


def foreseen(name: str, plan: Plan) -> tuple[DiskView, ...]:
    """How each disk will be read at the moment that a plan takes, once its overlays are on.

    No file was looked at, and a block device is not told from a file. So ask for `views` once the moment is
    there, and compare them with `as_foreseen`.

    Returns:
        The disks; none if `views` would refuse one by what the graph shows.
    """
    disks = tuple(plan.before.disks[disk] for disk in plan.disks)
    if any(
        layer.encrypted
        or layer.window
        or layer.inner
        or not layer.local
        or layer.format not in _FORMATS
        or (layer is not disk.active and not layer.read_only)
        for disk in disks
        for layer in disk.layers
    ):
        return ()
    return tuple(
        DiskView(
            disk.name,
            name,
            tuple(ViewLayer(layer.file, layer.format, data_file=layer.data_file) for layer in disk.layers),
            virtual_size=disk.active.virtual_size,
        )
        for disk in disks
    )


def as_foreseen(views: Sequence[DiskView], before: Sequence[DiskView]) -> bool:
    """Whether the disks are read as was foreseen, wherever their data are allocated."""
    return tuple(before) == tuple(replace(view, allocated=None) for view in views)


def only(candidates: Sequence[DiskView]) -> DiskView:
    """The only view; refuse if there are more.

    Raises:
        AmbiguousName: When the moment includes more than one disk.
    """
    if len(candidates) > 1:
        names = [view.disk for view in candidates]
        raise AmbiguousName(
            f"{candidates[0].moment!r} includes more than one disk: {', '.join(names)}",
            candidates=names,
            hint="name the disk",
        )
    return candidates[0]


def _view(moment: Moment, disk: Disk, scene: Scene) -> DiskView:
    if moment.kind == "internal":
        return _inside(moment, disk, scene)
    record = moment.record
    assert record is not None  # noqa: S101 - an external moment has one
    covered = record.covered[disk.name]
    refuse_invalid(record, disk, scene)
    if covered in disk.files:
        index = disk.files.index(covered)
        if index == 0:
            raise NotInChain(
                f"{disk.name} writes to {covered}, which held {moment.name!r}: its overlay was committed "
                "into it",
                hint="there is nothing left to read",
            )
        return _of_chain(moment, disk, index, scene)
    chain = left_aside(record, disk, scene)
    refuse_strange_base(record, disk, chain, scene)
    return _of_files(moment, disk, chain, scene)


def _inside(moment: Moment, disk: Disk, scene: Scene) -> DiskView:
    for part in moment.held:
        if part.disk == disk.name and part.file in disk.files:
            index = disk.files.index(part.file)
            snapshots = (each for each in disk.layers[index].snapshots if each.id == part.id)
            return _of_chain(moment, disk, index, scene, next(snapshots))
    raise NotInChain(
        f"the snapshot {moment.name!r} of {disk.name} is inside {moment.held[0].file}, which is not in its "
        "chain now",
        hint="it can be read once the disk is reverted to a snapshot that is read from that layer",
    )


def _of_chain(
    moment: Moment, disk: Disk, index: int, scene: Scene, snapshot: InternalSnapshot | None = None
) -> DiskView:
    """The view through layers that QEMU has open, from the one at this index down."""
    layers = disk.layers[index:]
    written = snapshot is not None and not layers[0].read_only
    _refuse_layers(disk, layers, scene)
    return DiskView(
        disk.name,
        moment.name,
        tuple(
            ViewLayer(layer.file, layer.format, _is_device(layer.file, scene), layer.data_file)
            for layer in layers
        ),
        virtual_size=layers[0].virtual_size,
        allocated=sum(layer.allocated for layer in layers if layer.allocated is not None)
        if all(layer.allocated is not None for layer in layers)
        else None,
        snapshot=snapshot,
        written=written,
    )


def _of_files(moment: Moment, disk: Disk, chain: Sequence[tuple[str, str]], scene: Scene) -> DiskView:
    """The view through layers that are in no chain now."""
    layers: list[ViewLayer] = []
    for file, form in chain:
        fact = scene.files.files[file]
        if fact.luks or form not in _FORMATS:
            raise _unsupported(disk, file, "encrypted" if fact.luks else f"of format {form!r}")
        if fact.header is not None and fact.header.data_file is not None and form == "qcow2":
            raise _unsupported(disk, file, "an image with its data in another file, and in no chain now")
        layers.append(ViewLayer(file, form, _is_device(file, scene)))
    newest = scene.files.files[chain[0][0]]
    size = newest.header.virtual_size if newest.header is not None and chain[0][1] == "qcow2" else newest.size
    return DiskView(disk.name, moment.name, tuple(layers), virtual_size=size)


def _refuse_unseen(scene: Scene) -> None:
    if not scene.files.shared:
        raise Unsupported(
            "the images are not visible from here, so they cannot be read",
            feature="reading images that are not visible",
            hint="run on QEMU's host; if its files are visible here: --shared-fs yes",
        )


def _refuse_layers(disk: Disk, layers: Sequence[Layer], scene: Scene) -> None:
    refuse_window(disk, layers)
    refuse_moved(scene, disk, layers)
    for layer in layers:
        _refuse_layer(disk, layer)
        if not layer.read_only and layer.node != disk.active.node:
            _refuse_written(disk, layer, scene)


def _refuse_layer(disk: Disk, layer: Layer) -> None:
    if layer.encrypted:
        raise _unsupported(disk, layer.file, "encrypted")
    if not layer.local:
        raise _unsupported(disk, layer.file, "not a file on this host")
    if layer.format not in _FORMATS:
        raise _unsupported(disk, layer.file, f"of format {layer.format!r}")


def _unsupported(disk: Disk, file: str, why: str) -> Unsupported:
    return Unsupported(
        f"{file}, a layer of {disk.name}, is {why}: a snapshot cannot be read through it from outside",
        feature="reading a snapshot of such a layer",
        hint=f"copy the disk as it is now: {command('mirror', disk.name, 'FILE', '--finish')}",
    )


def _refuse_written(disk: Disk, layer: Layer, scene: Scene) -> None:
    jobs = holders(scene, disk)
    what = f"job {jobs[0].id!r} is writing to it" if jobs else "QEMU has it open for writing"
    raise Busy(
        f"{layer.file}, a layer of {disk.name}, cannot be read from outside: {what}",
        node=layer.node,
        job_id=jobs[0].id if jobs else "",
        hint=f"wait for the job: {command('job', 'wait', jobs[0].id)}" if jobs else _STAYS_WRITABLE,
    )


def _is_device(file: str, scene: Scene) -> bool:
    fact = scene.files.files.get(file)
    return fact is not None and fact.kind == "block"
