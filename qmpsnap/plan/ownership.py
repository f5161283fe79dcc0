"""Whose a record is: machines that share a base image keep their records in one place.

This is the one rule. A record is this machine's when it is of this very QEMU, when QEMU has its job, or when
a chain of now shows that the machine of then is this one. A layer that others may stand on too shows nothing:
only the active layer does, one that our overlay covers, and what the operation itself put there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection

from qmpsnap.errors import NotInChain
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.record import IntentRecord, MomentRecord, Record
from qmpsnap.plan.record_places import state_directories
from qmpsnap.plan.scene import Scene


def may_remove(file: str, record: IntentRecord, scene: Scene) -> bool:
    """Whether a file that an operation was to make may be removed on the record's word, if it has no data.

    An overlay shows by its own header what it was made for. A file without one may be anybody's empty file:
    only beside the machine's layers, or beside the record, is it ours.
    """
    fact = scene.files.files.get(file)
    if fact is not None and fact.header is not None and fact.header.backing is not None:
        return True
    layers = (layer.file for disk in scene.graph.disks.values() for layer in disk.layers)
    places = {posixpath.dirname(one) for one in (*layers, record.directory)}
    return posixpath.dirname(file) in places


def refuse_strange_base(
    record: MomentRecord, disk: Disk, chain: tuple[tuple[str, str], ...], scene: Scene
) -> None:
    """Refuse a chain that is not this machine's: a record alone must not make a guest read any file.

    Each layer stands on the next by its own header, so the base image tells where they belong: it is one
    that QEMU has open, or lies beside one of these, or, if the record is kin, beside the record or an overlay
    that began at the moment and is backed by it by its own header.

    Raises:
        NotInChain: When it is another one, or a layer has another format than QEMU has it with.
    """
    known = {scene.files.real(layer.file): layer.format for layer in disk.layers if layer.local}
    near = {posixpath.dirname(one) for one in known}
    if _is_kin(record, scene):
        near.add(posixpath.dirname(record.directory))
        near |= {
            posixpath.dirname(one)
            for one in record.began(disk.name)
            if _covers(one, chain[0][0], record, scene)
        }
    for file, form in chain:
        fact = scene.files.files[file]
        held = known.get(fact.real)
        if held is not None and held != form:
            raise NotInChain(f"{file} is {held} in the chain of {disk.name}, and {form} in {record.name!r}")
        data = fact.header.data_file if fact.header is not None else None
        if held is None and data is not None:
            raise NotInChain(
                f"the layer {file} of {record.name!r} keeps its data in another file ({data!r}), which no "
                f"disk of this machine has open",
                hint="start a QEMU on an overlay of your own on it",
            )
    base, _ = chain[-1]
    real = scene.files.files[base].real
    if real not in known and posixpath.dirname(real) not in near:
        raise NotInChain(
            f"{record.name!r} stands on {base}, which no disk of this machine has open, and which lies "
            "beside none of its layers, the record, and what began there",
            hint="start a QEMU on an overlay of your own on it, if it is yours",
        )


def _is_kin(record: MomentRecord, scene: Scene) -> bool:
    """Whether the record lies in a place of this machine's own, or beside one of which the machine goes on.

    A link leads to other places, and a bundle of images may bring one to another machine's records.
    """
    disks = [disk for disk in scene.graph.disks.values() if disk.layers]
    return any(record.directory in state_directories(disk, scene.state_dir) for disk in disks) or any(
        isinstance(other, MomentRecord)
        and other.directory == record.directory
        and not {*other.goes_on(disk.name)}.isdisjoint(disk.files)
        for other in scene.files.records
        for disk in disks
    )


def _covers(overlay: str, covered: str, record: MomentRecord, scene: Scene) -> bool:
    """Whether it is the recorded overlay, not a copy or another image, and is backed by that layer."""
    fact = scene.files.files.get(overlay)
    if fact is None or fact.kind != "regular" or fact.backing != scene.files.real(covered):
        return False
    mark = fact.header.mark if fact.header is not None else ""
    return record.marks.get(overlay) in {None, f"{mark}-{fact.inode}"}


def ran_here(record: IntentRecord, process: str) -> bool:
    """Whether the record is certainly of this very QEMU.

    Args:
        record: The record.
        process: Which QEMU it is, as `Machine.process` says; "" where that is not known.
    """
    return bool(process) and record.origin is not None and record.origin.process == process


def stands_here(record: IntentRecord, graph: Graph, records: Collection[Record]) -> bool:
    """Whether a chain of now shows that the record is of this machine.

    Args:
        record: The record.
        graph: QEMU's block graph.
        records: All records that were found, for the moments among them.
    """
    moments = [one for one in records if isinstance(one, MomentRecord)]
    return any(_shows(record, graph.disks[name], moments) for name in record.chains if name in graph.disks)


def _shows(record: IntentRecord, disk: Disk, moments: list[MomentRecord]) -> bool:
    files = disk.files
    overlays = record.overlays
    made = {overlays.get(disk.name, ""), record.target} - {""}
    if made & set(files):
        return True
    before, after = record.chains.get(disk.name, ()), record.after.get(disk.name, ())
    if any(_was_active(file, disk, moments) for file in (*before[:1], *after[:1])):
        return True
    # An overlay that somebody else put on has no record; a base image shows nothing even then.
    return not overlays and before[:1] != () and before[0] in files[:-1]


def _was_active(file: str, disk: Disk, moments: list[MomentRecord]) -> bool:
    """Whether the machine writes to that layer, or did until a moment of its own covered it."""
    local = [one for one in disk.files if one.startswith("/")]
    if file not in local:
        return False
    index = local.index(file)
    return index == 0 or any(
        one.covered.get(disk.name) == file and local[index - 1] in one.began(disk.name) for one in moments
    )


def has_moment(record: IntentRecord, records: Collection[Record]) -> bool:
    """Whether the record's moment is kept already: its client ended right after that."""
    return any(isinstance(one, MomentRecord) and one.id == record.id for one in records)


def has_checkpoint(record: IntentRecord, records: Collection[Record]) -> bool:
    """Whether the checkpoint whose store the operation makes, if it makes one, still has memory."""
    wanted = {step.arguments["id"] for step in record.steps if step.command == "keep-store"}
    return wanted <= {one.id for one in records if isinstance(one, MomentRecord) and one.state is not None}


def superseded_by(record: IntentRecord, records: Collection[Record]) -> Record | None:
    """A later record with one of the same overlays: that is then what is in the chain.

    Two attempts under one name have overlays of one path.
    """
    for one in records:
        later = one.id != record.id and one.created > record.created
        if later and set(one.overlays.items()) & set(record.overlays.items()):
            return one
    return None
