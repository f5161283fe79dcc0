"""Whether QEMU can revert to a snapshot inside the image of each disk that takes part.

`loadvm` and `snapshot-load` check first that each disk has the snapshot, and then revert disk after disk. A
failure then leaves some disks reverted, the others not, and a guest that was running in `restore-vm`. So what
is known to fail is refused before anything is sent. What was tried is in docs/explanation/qemu.md.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable

from qmpsnap.errors import Busy, InvalidTarget, NotInChain, Unsupported
from qmpsnap.model.files import Ask, FileFact, Files
from qmpsnap.model.graph import Bitmap, Disk, Graph
from qmpsnap.model.hints import command, frees, qmp, quoted
from qmpsnap.model.moments import Moment, left_layers
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.checks.disk import unused_overlays
from qmpsnap.plan.inside.taking import Taking
from qmpsnap.plan.scene import GuestScene, Scene

# A disk that changes its size moves tables in its image; 1 MiB is a multiple of what was seen to be needed.
_ROOM_BYTES = 1 << 20


def ask_loadable(graph: Graph, name: str) -> Ask:
    """What has to be known to revert to that snapshot: the images' snapshot tables, and the free space."""
    images = tuple(
        disk.active.file
        for disk in graph.disks.values()
        if disk.writable
        and disk.active.local
        and disk.active.file.startswith("/")
        and any(snapshot.name == name for snapshot in disk.active.snapshots)
    )
    return Ask(memories=images, directories=tuple(map(posixpath.dirname, images)))


def ask_left(graph: Graph, files: Files, own: Iterable[MomentRecord]) -> Ask:
    """What has to be known of snapshots inside layers that are in no chain any more: their tables.

    Args:
        graph: The graph.
        files: The machine's files.
        own: The records of its moments.
    """
    left = (file for _, file in left_layers(graph, own) if file.startswith("/"))
    return Ask(memories=tuple(file for file in left if not _holds_none(files.images.get(file))))


def _holds_none(fact: FileFact | None) -> bool:
    return fact is not None and (fact.header is None or not fact.header.snapshot_count)


def refuse_left(moment: Moment, scene: Scene, *, do: str, way: str) -> None:
    """Refuse what QEMU cannot do with a snapshot that is only inside layers which it does not have open.

    Args:
        moment: An internal moment.
        scene: The machine.
        do: What can be done instead, in words.
        way: The commands for that, with {name} and {file}.
    """
    present = {file for disk in scene.graph.disks.values() for file in disk.files}
    files = [part.file for part in moment.held]
    if present.isdisjoint(files):
        ways = (way.format(name=quoted(moment.name), file=quoted(file)) for file in files)
        raise NotInChain(
            f"{moment.name!r} is inside {', '.join(files)}, which this machine has left",
            hint=f"{do}: {'; '.join(ways)}",
        )


def refuse_unloadable(moment: Moment, part: Taking, scene: GuestScene) -> None:
    """Refuse to load an internal snapshot that QEMU would load on some of its disks only."""
    refuse_unrevertable(moment, part, scene)
    for disk in part.disks:
        _refuse_size(disk, moment.name, scene)


def refuse_unrevertable(moment: Moment, part: Taking, scene: Scene) -> None:
    """Refuse to revert to an internal snapshot where a disk cannot, or where something else would notice."""
    _refuse_read_only(moment, part, scene)
    for disk in part.disks:
        for bitmap in disk.active.bitmaps:
            _refuse_bitmap(disk, bitmap)
        _refuse_reader(disk, scene.graph)


def bitmap_notes(name: str, part: Taking) -> tuple[str, ...]:
    """What will prevent a revert to a checkpoint that is being taken."""
    return tuple(
        f"{disk.name} has {_called(bitmap)}: QEMU reverts to {name!r} only after it is removed"
        for disk in part.disks
        for bitmap in disk.active.bitmaps
    )


def refuse_data_file(disk: Disk, *, hint: str) -> None:
    """Refuse to keep a snapshot in an image whose data are in another file."""
    if disk.active.data_file:
        raise Unsupported(
            f"{disk.name} ({disk.active.file}) keeps its data in an external file "
            f"({disk.active.data_file}), so "
            "QEMU cannot take a snapshot inside it",
            feature="snapshots inside an image with an external data file",
            hint=hint,
        )


def _refuse_read_only(moment: Moment, part: Taking, scene: Scene) -> None:
    known = {disk.name for disk in (*part.disks, *part.left)}
    for held in moment.held:
        disk = scene.graph.disks[held.disk]
        if held.in_chain and held.disk not in known and held.disk not in part.named:
            raise NotInChain(
                f"{disk.name} has {moment.name!r} but is attached read-only, so it cannot be reverted",
                hint=f"attach it writable; or leave it out: --leave {disk.name}",
            )


def _refuse_bitmap(disk: Disk, bitmap: Bitmap) -> None:
    active = disk.active
    words = json.dumps({"node": active.node, "name": bitmap.name})
    if not bitmap.name:
        hint = f"end the backup or remove the copy-before-write node that created it ({frees('NODE')})"
    elif bitmap.busy:
        hint = f"end the export or the backup that uses it, then: {_removal(words)}"
    else:
        hint = f"remove it; the next backup is then a full one: {_removal(words)}"
    raise Unsupported(
        f"{disk.name} ({active.file}) has {_called(bitmap)}: QEMU cannot revert to a snapshot inside an "
        "image with a dirty bitmap, and would fail after it has reverted other disks",
        feature="revert inside an image with a dirty bitmap",
        hint=hint,
    )


def _removal(words: str) -> str:
    return command("qmp", "block-dirty-bitmap-remove", words)


def _called(bitmap: Bitmap) -> str:
    if not bitmap.name:
        return "a dirty bitmap without a name"
    state = ", which was in use when QEMU ended" if bitmap.inconsistent else ""
    return f"the dirty bitmap {bitmap.name!r}{state}"


def _refuse_reader(disk: Disk, graph: Graph) -> None:
    """Refuse when another node reads the active layer: a revert would change its data without notice."""
    above = {filter_.node for filter_ in disk.filters}
    views = (
        node
        for node in graph.nodes.values()
        if node.driver == "copy-before-write" and node.file == disk.active.file and node.name not in above
    )
    for node in (*views, *unused_overlays(graph, disk)):
        raise Busy(
            f"node {node.name!r} ({node.driver}) reads {disk.name} through its active layer, and "
            "would read other data afterwards",
            node=node.name,
            job_id="",
            hint=f"remove it first: {frees(node.name)}",
        )


def _refuse_size(disk: Disk, name: str, scene: GuestScene) -> None:
    """Refuse when the disk's size would have to change and cannot, or when this is not known."""
    active = disk.active
    fact = scene.files.memories.get(active.file)
    then = fact.sizes.get(name) if fact is not None else None
    exported = scene.machine.exported
    nodes = {disk.root, active.node, *(above.node for above in disk.filters)} & exported
    if then == active.virtual_size or (then is None and not nodes):
        return
    had = f"it had {then}" if then is not None else "its size then is not known"
    if nodes:
        raise Busy(
            f"node {min(nodes)!r} of {disk.name} is exported, which fixes its size; it has "
            f"{active.virtual_size} "
            f"bytes now, {had} at {name!r}",
            node=min(nodes),
            job_id="",
            hint=f"end the export first: {qmp('block-export-del', id='ID')}; its ID is in the answer to "
            f"{qmp('query-block-exports')}",
        )
    where = scene.files.directories.get(posixpath.dirname(active.file))
    if where is not None and where.exists and where.free_bytes < _ROOM_BYTES:
        raise InvalidTarget(
            f"{disk.name} has {active.virtual_size} bytes, {had} at {name!r}; to change that, QEMU needs "
            f"space in {where.path}, which has {where.free_bytes} bytes free",
            file=active.file,
            hint="free some space there",
        )
