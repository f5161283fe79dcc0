"""The moments of a machine's disks: external ones from our records, internal ones from the images."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

from qmpsnap.model.files import Files
from qmpsnap.model.frozen import Frozen, JsonStruct
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.layer_stamps import WrittenLayer, written_layers
from qmpsnap.model.memory import MemoryFact
from qmpsnap.model.names import is_device_path, stem
from qmpsnap.model.picture.html import image, table
from qmpsnap.model.record import IntentRecord, Member, MomentRecord, Record
from qmpsnap.model.tree import Tree

MomentKind = Literal["external", "internal"]
"""Where a moment is: overlays began there, or it is inside the images."""


class MomentPart(JsonStruct, frozen=True):
    """One disk's part of a moment.

    Attributes:
        disk: The disk's name.
        file: File that holds what the disk read.
        overlay: External: the overlay that began there; "" for an internal one.
        allocated: External: bytes that the overlay takes on the host; None where that is not known.
        id: Internal: the snapshot's id in the image; "" for an external one.
        vm_state_size: Internal: bytes of VM state in the image.
        in_chain: Whether `file` is where the moment is read from: for an external one the layer just
            below its overlay, for an internal one the active layer. A stream, a commit or a revert
            changes that.
        invalid: Whether a commit has written into `file` since.
        written: External: layers from which it is read and to which somebody else has written since it was
            complete; whether they hold other data is not known.
    """

    disk: str
    file: str
    overlay: str = ""
    allocated: int | None = None
    id: str = ""
    vm_state_size: int = 0
    in_chain: bool = True
    invalid: bool = False
    written: tuple[WrittenLayer, ...] = ()


class Moment(Struct, frozen=True):
    """The state of disks at one instant, under one name.

    Attributes:
        name: Its name.
        kind: "external" (overlays began there) or "internal" (inside the images).
        created: ISO 8601 time in UTC; for an internal one the earliest of its parts.
        held: One part for each image that has it, in the order of the disks, active layer first.
        current: Whether a disk writes to an overlay that began there.
        record: External: its record; None for an internal one.
    """

    name: str
    kind: MomentKind
    created: str
    held: tuple[MomentPart, ...]
    current: bool = False
    record: MomentRecord | None = None

    @property
    def disks(self) -> tuple[str, ...]:
        """Names of the disks that it is on."""
        return tuple(dict.fromkeys(part.disk for part in self.held))

    @property
    def mode(self) -> str:
        """How its VM state was saved: "stop", "background", "in-place", "internal"; "" for disks only."""
        if self.record is not None and self.record.state is not None:
            return self.record.state.mode
        return "internal" if self.vm_state_size else ""

    @property
    def member(self) -> Member | None:
        """Which machine of a group this is, where it is a moment of several machines; else None."""
        return self.record.member if self.record is not None else None

    @property
    def vm_state_file(self) -> str:
        """The file that holds its VM state; "" for an internal one, or without VM state."""
        state = self.record.state if self.record is not None else None
        return state.file if state is not None else ""

    @property
    def vm_state_size(self) -> int:
        """Bytes of VM state inside the images."""
        return sum(part.vm_state_size for part in self.held)

    @property
    def allocated(self) -> int | None:
        """External: bytes of its overlays; None where one is not known, and for an internal one."""
        sizes = [part.allocated for part in self.held]
        return None if self.kind == "internal" or None in sizes else sum(size or 0 for size in sizes)

    def to_json(self) -> dict[str, object]:
        """The moment as `list --json` prints it; that adds the size of the VM state file."""
        return {
            "name": self.name,
            "kind": self.kind,
            "created": self.created,
            "current": self.current,
            "allocated": self.allocated,
            "vm_state_size": self.vm_state_size,
            "mode": self.mode,
            "vm_state_file": self.vm_state_file,
            "held": [part.to_json() for part in self.held],
            **({"member": self.member.to_json()} if self.member is not None else {}),
        }


class Moments(Struct, frozen=True):
    """Everything that can be listed.

    Attributes:
        moments: The oldest first.
        current: For each disk with a medium the name of the moment at which its active layer began;
            None if no record says so.
        records_seen: Whether records could be read; if not, external moments are not known.
        unneeded: VM state files beside the images that no record refers to.
        tree: The disks' images, and all others that have a backing file in common with them.
        unreadable: What lies beside the images and could not be read, as "PATH: REASON".
    """

    moments: tuple[Moment, ...]
    current: Mapping[str, str | None]
    records_seen: bool = True
    unneeded: tuple[str, ...] = ()
    tree: Tree = Tree()
    unreadable: tuple[str, ...] = ()

    def named(self, name: str) -> tuple[Moment, ...]:
        """The moments of that name: none, one, or several of different kinds or on different disks."""
        return tuple(moment for moment in self.moments if moment.name == name)

    def _repr_html_(self) -> str:
        rows = [(one.name, one.kind, one.created, one.mode, ", ".join(one.disks)) for one in self.moments]
        return table(("name", "kind", "taken", "VM state", "disks"), rows) + image(self.tree.picture())

    def to_json(self) -> dict[str, object]:
        """All as `list --json` prints it."""
        return {
            "moments": [moment.to_json() for moment in self.moments],
            "current": dict(self.current),
            "records_seen": self.records_seen,
            "unneeded": list(self.unneeded),
            "tree": [image.to_json() for image in self.tree.images],
            "unreadable": list(self.unreadable),
        }


def find_moments(
    graph: Graph,
    records: Iterable[Record],
    *,
    own: Sequence[MomentRecord] | None = None,
    records_seen: bool = True,
    states: Collection[str] = (),
    memories: Mapping[str, MemoryFact] = Frozen(),
    files: Files | None = None,
) -> Moments:
    """Every moment of the graph's disks.

    Of an internal one in a layer of a chain the parts are one moment, and so are those of one that is only in
    layers which a revert or a stream has left aside, as far as these were looked at.

    A record belongs to these disks if one of its overlays is in a chain, or if it is related to
    such a record: a revert leaves layers aside to which another revert can return. Other records are skipped:
    machines that share a base image keep their records in one directory.

    Args:
        graph: The graph.
        records: Records of these disks, and of others.
        own: The same as `related_records` finds of them, if that is known.
        records_seen: Whether records were looked for.
        states: Files of VM state that were found.
        memories: Of layers in no chain: the snapshots inside them.
        files: What was read of the layers; None: whether somebody has written to them is not told.
    """
    known = tuple(records)
    own = related_records(graph, known) if own is None else own
    changing = tuple(record for record in known if isinstance(record, IntentRecord) and record.invalid)
    moments = [_external(graph, record, changing, files) for record in own if not record.deleted]
    moments = [moment for moment in moments if moment.held]  # none: its disks were unplugged
    parts: dict[str, list[tuple[float, MomentPart]]] = {}
    for disk in graph.disks.values():
        for name, date, held in _internal(disk) if graph.first_of(disk) is disk else ():
            parts.setdefault(name, []).append((date, held))
    aside: dict[str, list[tuple[float, MomentPart]]] = {}
    for name, file in left_layers(graph, own):
        for snapshot in memories[file].inside if file in memories else ():
            if snapshot.name not in parts:
                part = MomentPart(
                    name, file, id=snapshot.id, vm_state_size=snapshot.vm_state_size, in_chain=False
                )
                aside.setdefault(snapshot.name, []).append((snapshot.date, part))
    parts |= aside
    for name, dated in parts.items():
        created = datetime.fromtimestamp(min(date for date, _ in dated), UTC).isoformat()
        moments.append(Moment(name, "internal", created, tuple(held for _, held in dated)))
    moments.sort(key=lambda one: (datetime.fromisoformat(one.created), one.name))
    current: dict[str, str | None] = {disk.name: None for disk in graph.disks.values() if disk.layers}
    for moment in moments:
        for part in moment.held:
            if part.overlay and graph.disks[part.disk].files[:1] == (part.overlay,):
                current[part.disk] = moment.name
    needed = {
        file
        for record in known
        if record.state is not None
        for file in (record.state.file, record.state.partial)
    }
    unneeded = tuple(file for file in states if file not in needed)
    return Moments(tuple(moments), Frozen(current), records_seen, unneeded)


def left_layers(graph: Graph, own: Iterable[MomentRecord]) -> tuple[tuple[str, str], ...]:
    """Layers of the machine's moments that are in none of its chains, each with the name of its disk.

    Args:
        graph: The graph.
        own: The records of the machine's moments.
    """
    present = {file for disk in graph.disks.values() for file in disk.files}
    left = {
        (disk, file)
        for record in own
        for disk, held in record.covered.items()
        if disk in graph.disks
        for file in (held, *record.chains.get(disk, ()), *record.goes_on(disk))
        if file not in present
    }
    return tuple(sorted(left))


def state_places(graph: Graph) -> tuple[tuple[str, str], ...]:
    """Default places of VM state for these disks: directories, each with the prefix of the file names."""
    return tuple(
        dict.fromkeys(
            (posixpath.dirname(file), stem(disk.base.file))
            for disk in graph.disks.values()
            for file in disk.files
            if file.startswith("/") and disk.base.local and not is_device_path(file)
        )
    )


def related_records(graph: Graph, records: Iterable[Record]) -> tuple[MomentRecord, ...]:
    """Records of these disks' moments: those with a layer in a chain that goes on from them, and their kin.

    These are the moments at which a layer of a known moment began, and those that are held by a layer which
    goes on from a known one: a stream or a revert has left them aside. The record of a deleted moment is
    included, because it links others. A layer that several machines read does not link. If the guest writes
    to a layer of the moment, its overlay was committed into that layer.
    """
    known = tuple(record for record in records if isinstance(record, MomentRecord))
    written = {disk.name: disk.active.file for disk in graph.disks.values() if disk.layers}
    by_going_on: dict[tuple[str, str], list[int]] = {}
    by_held: dict[tuple[str, str], list[int]] = {}
    for number, record in enumerate(known):
        for layer in _going_on(record):
            by_going_on.setdefault(layer, []).append(number)
        for layer in record.covered.items():
            by_held.setdefault(layer, []).append(number)
    pending = [(disk.name, file) for disk in graph.disks.values() for file in disk.files]
    seen, found, going_on = set(pending), set[int](), set[tuple[str, str]]()
    while pending:
        layer = pending.pop()
        led = [*by_going_on.get(layer, ())]
        if layer in going_on:
            led += (one for one in by_held.get(layer, ()) if not _passes(known[one], written))
        for number in led:
            if number not in found:
                found.add(number)
                more = {layer for layer in _going_on(known[number]) if layer not in going_on}
                layers = {layer for layer in _layers(known[number]) if layer not in seen}
                pending += more | layers
                going_on |= more
                seen |= more | layers
    return tuple(known[number] for number in sorted(found))


def recognised_disks(graph: Graph, records: Iterable[Record]) -> frozenset[str]:
    """Disks of the graph whose chain has a layer that a related moment names for that disk.

    The others are not known to be the disks of that name in the records: an empty drive, or a drive with
    another medium.
    """
    related = related_records(graph, records)
    known = {layer for record in related for layers in (_layers, _going_on) for layer in layers(record)}
    return frozenset(
        disk.name for disk in graph.disks.values() if any((disk.name, file) in known for file in disk.files)
    )


def written_into(files: Collection[str], records: Iterable[Record]) -> str:
    """The file of `files` that an unfinished commit, or one that kept its overlay, has changed; else "".

    If the chain also contains that commit's top, its data is unchanged: top covers all that was written.
    """
    for record in records:
        if isinstance(record, IntentRecord) and record.invalid and record.top not in files:
            for file in files:
                if file in record.invalid:
                    return file
    return ""


def _going_on(record: MomentRecord) -> Iterator[tuple[str, str]]:
    return ((disk, file) for disk in record.covered for file in record.goes_on(disk))


def _layers(record: MomentRecord) -> Iterator[tuple[str, str]]:
    """Every layer that the moment is read from."""
    yield from record.covered.items()
    for disk, files in record.chains.items():
        for file in files:
            yield disk, file


def _passes(record: MomentRecord, written: Mapping[str, str]) -> bool:
    """Whether the moment is read from a layer that its disk's guest writes to."""
    return any(
        record.covered.get(disk) == file or file in record.chains.get(disk, ())
        for disk, file in written.items()
    )


def _external(
    graph: Graph, record: MomentRecord, changing: tuple[IntentRecord, ...], files: Files | None
) -> Moment:
    held = []
    written = written_layers(record, files) if files is not None else ()
    current = False
    for disk in graph.disks.values():
        covered = record.covered.get(disk.name, "")
        if not covered or disk.name in record.deleted_from:
            continue
        begun = [file for file in record.goes_on(disk.name) if file in disk.files]
        overlay = begun[0] if begun else record.overlays.get(disk.name, "")
        index = disk.files.index(overlay) if begun else -1
        below = disk.files[index + 1] if begun and index + 1 < len(disk.files) else None
        held.append(
            MomentPart(
                disk.name,
                covered,
                overlay=overlay,
                allocated=disk.layers[index].allocated if begun else None,
                in_chain=covered == below,
                invalid=disk.name in record.lost or bool(written_into(record.read_from(disk.name), changing)),
                written=tuple(layer for layer in written if layer.disk == disk.name),
            )
        )
        current |= index == 0
    return Moment(record.name, "external", record.created, tuple(held), current, record)


def _internal(disk: Disk) -> Iterable[tuple[str, float, MomentPart]]:
    """Parts of internal moments; a commit into an image does not change its internal snapshots."""
    for layer in disk.layers:
        for snapshot in layer.snapshots:
            part = MomentPart(
                disk.name,
                layer.file,
                id=snapshot.id,
                vm_state_size=snapshot.vm_state_size,
                in_chain=layer is disk.active,
            )
            yield snapshot.name, snapshot.date, part
