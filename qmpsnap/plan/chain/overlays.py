"""Overlays of a snapshot or a checkpoint: where they are created, whether they can be, and by which steps.

Where we see QEMU's files, we create them beforehand, exclusively, and QEMU takes them as they are; else QEMU
creates them, after it was asked whether the names are free.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qmpsnap.errors import InvalidTarget, NotFound, TargetExists, UnsafeImage, Unsupported
from qmpsnap.model.disk_names import find_disk, refuse_twin
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.header import backing_path
from qmpsnap.model.hints import NO_DISK_CHANGES, command, quoted
from qmpsnap.model.names import check_name, digest, is_owned_node, job_id, node_name, overlay_files
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import MadeBy, Overlay, Step
from qmpsnap.plan import ownership
from qmpsnap.plan.chain.lineage import put_over
from qmpsnap.plan.checks.disk import refuse_in_use
from qmpsnap.plan.checks.encryption import encryption_notes, refuse_clear_overlay, secret_for
from qmpsnap.plan.checks.opened import refuse_lost, refuse_window
from qmpsnap.plan.checks.place import (
    beside_active,
    made_by_qemu,
    refuse_barred,
    refuse_layer,
    refuse_place,
    refuse_there,
    refuse_unseen,
)
from qmpsnap.plan.commands.block import open_overlay, probe_absent
from qmpsnap.plan.commands.files import create_overlay
from qmpsnap.plan.intent import Snapshot
from qmpsnap.plan.record_places import state_place
from qmpsnap.plan.scene import Scene


@dataclass(frozen=True, slots=True)
class Overlays:
    """Overlays that can be created and put on.

    Attributes:
        disks: The disks that get one, in order.
        overlays: Their overlays, in the same order.
        token: Eight hex digits of which all names of the operation are made.
        make: The steps that create the overlays, and open those that QEMU does not open by itself.
        id: The operation's id.
        place: The directory of its record; "": none can be written.
        over: The steps that note the layers which others have put on and which the overlays cover.
        notes: What the caller should know.
    """

    disks: tuple[Disk, ...]
    overlays: tuple[Overlay, ...]
    token: str
    make: tuple[Step, ...]
    id: str
    place: str
    over: tuple[Step, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the disks."""
        return tuple(disk.name for disk in self.disks)


def _targets(intent: Snapshot, graph: Graph, *, can_name: bool) -> tuple[list[tuple[Disk, str]], list[str]]:
    """Each disk with the path of its overlay, and the names of the disks that are left out."""
    files: dict[str, str] = {}
    for spelling, file in intent.files.items():
        disk = find_disk(graph, spelling)
        if disk.name in files:
            raise InvalidTarget(f"two files are given for disk {disk.name!r}", file=file)
        files[disk.name] = file
    chosen = [find_disk(graph, spelling) for spelling in intent.disks] or [*graph.writable()]
    for index, disk in enumerate(chosen):
        if any(disk.name == other.name for other in chosen[:index]):
            raise InvalidTarget(f"disk {disk.name!r} is named twice", file=files.get(disk.name, ""))
        refuse_twin(disk, chosen[:index])
    names = {disk.name for disk in chosen}
    for name in files:
        if name not in names:
            raise NotFound(f"a file is given for disk {name!r}, which is not one of the disks to snapshot")
    if not chosen:
        raise NotFound("there is no writable disk with a medium", hint=NO_DISK_CHANGES)
    for disk in chosen:
        if not disk.layers:
            raise Unsupported(f"disk {disk.name!r} has no medium", feature="snapshot of an empty drive")
        if disk.read_only:
            raise Unsupported(f"disk {disk.name!r} is read-only", feature="snapshot of a read-only disk")
        if disk.name not in files:
            first = command("snapshot", "--disk", f"{disk.name}=FILE")
            beside_active(
                disk,
                hint=f"name the overlay's file: --disk {quoted(disk.name)}=FILE"
                if can_name
                else f"put an overlay in a file on it first: {first}",
            )
    ends = {disk.name: (disk.active.file, disk.base.file) for disk in chosen if disk.name not in files}
    files |= _free_files(ends, intent.label, files.values(), graph)
    left_out = [] if intent.disks else graph.left_out(chosen)
    return [(disk, files[disk.name]) for disk in chosen], left_out


def _free_files(
    ends: Mapping[str, tuple[str, str]], name: str, given: Collection[str], graph: Graph
) -> dict[str, str]:
    """Default paths of overlays; numbered where there is a layer of that name already.

    Its snapshot was deleted then, and the layer stayed: else the name is refused.
    """
    layers = {file for disk in graph.disks.values() for file in disk.files}
    files = overlay_files(ends, name, given=given)
    number = 2
    while layers & {*files.values()}:
        files = overlay_files(ends, f"{name}-{number}", given=given)
        number += 1
    return files


def ask(intent: Snapshot, graph: Graph, _state_dir: str, *, can_name: bool = True) -> Ask:
    """What the planner wants to know about the file system."""
    targets, _ = _targets(intent, graph, can_name=can_name)
    chain = [layer.file for disk, _ in targets for layer in disk.layers if layer.file.startswith("/")]
    return Ask(
        files=(*chain, *(file for _, file in targets)),
        directories=tuple(posixpath.dirname(file) for _, file in targets),
        fresh=tuple((file, disk.active.file) for disk, file in targets if intent.use_existing),
    )


def prepare(
    op: str, intent: Snapshot, scene: Scene, *, can_name: bool = True, encrypts: bool = False
) -> Overlays:
    """Check everything about the overlays, and say how they are created; or refuse, as `snapshot.plan` does.

    Args:
        op: The operation, which becomes part of the record's id.
        intent: Name, disks and files.
        scene: The machine, and its files.
        can_name: Whether the caller of the operation can name the overlays' files.
        encrypts: Whether an overlay that can be encrypted is, although `plain` allows another.
    """
    check_name(intent.name)
    scene.features.need("transaction", *(("blockdev-snapshot-sync",) if scene.features.devices else ()))
    targets, left_out = _targets(intent, scene.graph, can_name=can_name)
    disks = tuple(disk for disk, _ in targets)
    refuse_lost(scene, disks)
    for disk, file in targets:
        refuse_window(disk, disk.layers[:1])
        refuse_in_use(scene, disk)
        _refuse_taken_name(scene, disk, intent.name)
        _refuse_unfinished(scene, disk, file)
        _check_target(scene, intent, disk, file, can_name=can_name)
    _refuse_same_file(scene, targets)
    named = [(disk.name, disk.files, file) for disk, file in targets]
    token = digest(op, intent.name, named, avoid=scene.names)
    refuse_unseen(scene)
    made_by: MadeBy = "caller" if intent.use_existing else "us" if scene.files.shared else "qemu"
    encrypts |= not intent.plain
    overlays = tuple(_overlay(scene, disk, file, token, made_by, encrypts=encrypts) for disk, file in targets)
    for disk, overlay in zip(disks, overlays, strict=True):
        if not overlay.secret:
            refuse_clear_overlay(disk, disk.active, plain=intent.plain)
    if any(is_owned_node(overlay.node) for overlay in overlays):
        scene.features.need("blockdev-add", "blockdev-del", "blockdev-snapshot")
    place = state_place(scene, disks[0])
    notes = [f"left out: {', '.join(left_out)}"] if left_out else []
    if made_by == "qemu":
        notes.append(made_by_qemu("overlays"))
    if not place:
        notes.append("there is no writable directory for records: the snapshot's name is not recorded")
    return Overlays(
        disks=disks,
        overlays=overlays,
        token=token,
        make=_make(disks, overlays, token, scene),
        id=job_id(op, "keep", token),
        place=place,
        over=put_over(scene, disks),
        notes=(*notes, *encryption_notes(overlays)),
    )


def _overlay(scene: Scene, disk: Disk, file: str, token: str, made_by: MadeBy, *, encrypts: bool) -> Overlay:
    secret, _ = secret_for(disk.layers[:1], scene.files) if encrypts else ("", None)
    if made_by == "caller" and not scene.files.files[file].luks:
        secret = ""
    return Overlay(
        disk=disk.name,
        covered=disk.active.node,
        node=node_name(
            digest(token, disk.name, avoid=scene.names), owned=secret != "" or not scene.features.devices
        ),
        file=file,
        backing=disk.active.file,
        made_by=made_by,
        secret=secret,
    )


def _make(
    disks: tuple[Disk, ...], overlays: tuple[Overlay, ...], token: str, scene: Scene
) -> tuple[Step, ...]:
    pairs = tuple(zip(disks, overlays, strict=True))
    return (
        *(_make_file(disk, overlay, token, scene) for disk, overlay in pairs if overlay.made_by != "caller"),
        *(open_overlay(overlay, disk.active.io) for disk, overlay in pairs if is_owned_node(overlay.node)),
    )


def _make_file(disk: Disk, overlay: Overlay, token: str, scene: Scene) -> Step:
    """What creates an overlay, or shows that QEMU will create it."""
    if overlay.made_by == "qemu":
        return probe_absent(overlay.file, node_name(token, owned=True))
    return create_overlay(
        overlay.file,
        size_bytes=disk.active.virtual_size,
        backing=overlay.backing,
        backing_format=disk.active.format,
        like=disk.active.file,
        luks=secret_for(disk.layers[:1], scene.files)[1] if overlay.secret else None,
    )


def _refuse_taken_name(scene: Scene, disk: Disk, name: str) -> None:
    for layer in disk.layers:
        if any(snapshot.name == name for snapshot in layer.snapshots):
            raise TargetExists(
                f"{disk.name} already has an internal snapshot {name!r}, inside {layer.file}",
                file=layer.file,
                hint="choose another name",
            )
    for moment in scene.moments.named(name):
        for part in moment.held:
            if part.disk == disk.name and part.overlay:
                raise TargetExists(
                    f"{disk.name} already has a snapshot {name!r}: {part.overlay}",
                    file=part.overlay,
                    hint="choose another name",
                )


def _refuse_unfinished(scene: Scene, disk: Disk, file: str) -> None:
    """Refuse the overlay of an operation that was not finished: nobody could say whose it is."""
    for record in scene.files.records:
        if isinstance(record, IntentRecord) and record.overlays.get(disk.name) == file:
            hint = f"finish it first: qmpsnap job wait {record.id}"
            if record.live:
                hint = "wait until its client ends"
            elif not ownership.stands_here(record, scene.graph, scene.files.records):
                hint = (
                    f"finish it first, on the machine that started it (qmpsnap job wait {record.id}); "
                    "or choose another name"
                )
            raise TargetExists(
                f"{file} is an overlay of {record.op} {record.name!r} ({record.id}), which is not finished",
                file=file,
                hint=hint,
            )


def _refuse_same_file(scene: Scene, targets: list[tuple[Disk, str]]) -> None:
    seen: dict[str, str] = {}
    for disk, file in targets:
        real = scene.files.real(file)
        if real in seen:
            raise InvalidTarget(
                f"disks {seen[real]!r} and {disk.name!r} are given the same file: {file}", file=file
            )
        seen[real] = disk.name


def _check_target(scene: Scene, intent: Snapshot, disk: Disk, file: str, *, can_name: bool) -> None:
    refuse_layer(scene, file, hint="an overlay needs a file of its own")
    if not scene.files.shared:
        if intent.use_existing:
            raise Unsupported(
                f"size and backing file of {file} cannot be checked: QEMU's files are not visible from here",
                feature="use_existing",
                hint="QEMU would accept an overlay that does not fit; omit --use-existing to have it created",
            )
        _check_unseen(disk, file)
        return
    if not file.startswith("/"):
        raise InvalidTarget(f"{file!r} is not an absolute path", file=file)
    if intent.use_existing:
        _check_existing(scene, disk, file)
        return
    if disk.name not in {find_disk(scene.graph, spelling).name for spelling in intent.files}:
        refuse_barred(
            scene,
            disk.active.file,
            "given an overlay beside it",
            hint=f"name its file: --disk {quoted(disk.name)}=FILE; or run as that user",
        )
    name, place = "choose another name", "free some space there"
    if can_name:
        name += ", or --use-existing"
        place += f", or choose another file: --disk {quoted(disk.name)}=FILE"
    refuse_there(scene, file, hint=name)
    refuse_place(scene, file, hint=place)


def _check_unseen(disk: Disk, file: str) -> None:
    """Where QEMU's files are not visible, a relative name is only safe beside the layer that it covers."""
    active = disk.active  # an address (nbd://...) is no name
    relative = active.local and not active.file.startswith("/")
    if relative and posixpath.dirname(file) != posixpath.dirname(active.file):
        raise InvalidTarget(
            f"QEMU opened {disk.name} by the relative name {disk.active.file!r}; an overlay in another "
            "directory would record a backing file that the next start does not find",
            file=file,
            hint="start QEMU with an absolute path, or run where its files are visible",
        )


def _check_existing(scene: Scene, disk: Disk, file: str) -> None:
    fact, active = scene.files.files[file], disk.active
    if not fact.taken:
        raise InvalidTarget(
            f"{file} does not exist", file=file, hint="omit --use-existing to have it created"
        )
    header = fact.header
    if header is None or header.format != "qcow2":
        raise InvalidTarget(
            f"{file} is not a qcow2 image{': ' + fact.problem if fact.problem else ''}", file=file
        )
    if header.data_file is not None:
        raise UnsafeImage(f"{file} keeps its data in another file ({header.data_file!r})", file=file)
    if header.virtual_size != active.virtual_size:
        raise InvalidTarget(
            f"{file} has {header.virtual_size} bytes, {disk.name} has {active.virtual_size}",
            file=file,
            hint="the guest's disk would change its size; create the overlay with the size of the disk",
        )
    backing = header.backing and backing_path(header.backing, of=file)
    if not backing or not (backing == active.file or fact.backing == scene.files.real(active.file)):
        raise InvalidTarget(
            f"{file} has the backing file {header.backing!r}, not {active.file}",
            file=file,
            hint="the disk's data would be missing at the next start",
        )
    if header.backing_format != active.format:
        raise InvalidTarget(
            f"{file} records the backing format {header.backing_format!r}, not {active.format!r}", file=file
        )
    if file not in scene.files.fresh:
        raise InvalidTarget(
            f"{file} already has data, which the guest would read from now on",
            file=file,
            hint="an overlay has to be empty; choose another name",
        )
