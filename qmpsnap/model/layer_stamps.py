"""Whether a layer that holds a snapshot was written to after the snapshot was complete, as its file shows.

QEMU does not write to the file of a layer that it has open read-only. So the record of a moment has a stamp
of each of its layers: when the file was last written, its inode, and a digest of what its header says of
the backing file. A later time in the same file means that somebody has written to it: whether that has
changed what the guest reads is not known. A copy has another inode, a loss of power may leave an earlier
time, and after a move somebody has to write new names of backing files: none of these shows anything.

What we write ourselves (a job's data, the name of a backing file in a header) is in the record of the
operation, with the stamps of before. When that record goes, the moments get new stamps, but for those whose
layers had been written to before the operation began.

These stamps are not the marks in the headers of overlays, which tell which layer a file is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from msgspec.structs import replace

from qmpsnap.model.files import FileFact, Files
from qmpsnap.model.frozen import Frozen, JsonStruct
from qmpsnap.model.graph import FILTER_DRIVERS, PATH_DRIVERS, Graph
from qmpsnap.model.header import Header
from qmpsnap.model.names import digest
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import DropLayers, Later

_FORMATS = frozenset({"qcow2", "raw", "luks"})


class WrittenLayer(JsonStruct, frozen=True):
    """A layer that was written to after a snapshot that it holds.

    Attributes:
        moment: Name of the snapshot.
        taken: When that was taken, ISO 8601 in UTC.
        disk: Name of the disk.
        file: The layer.
        at: When it was last written, ISO 8601 in UTC.
        was: When it was last written as the snapshot was complete, in nanoseconds since 1970.
    """

    moment: str
    taken: str
    disk: str
    file: str
    at: str
    was: int


def stamp_of(header: Header | None, *, modified_ns: int, inode: int) -> str:
    """The stamp of a file with that header that was last written then."""
    backing = (header.backing, header.backing_format) if header is not None else (None, None)
    return f"{modified_ns}-{inode}-{digest(*backing)}"


def written_after(then: str, now: str) -> bool:
    """Whether a file that had the stamp `then` was written to until it had the stamp `now`."""
    (was, *file), (modified, *same) = then.split("-"), now.split("-")
    return file == same and int(modified) > int(was)


def frozen_layers(graph: Graph) -> tuple[str, ...]:
    """Files of layers beneath others to which QEMU does not write.

    A layer that QEMU has open for writing is left out: with copy-on-read=on, QEMU goes on writing to it.
    """
    written = {
        node.file
        for node in graph.nodes.values()
        if not node.read_only and node.driver not in PATH_DRIVERS | FILTER_DRIVERS
    }
    return tuple(
        dict.fromkeys(
            layer.file
            for disk in graph.disks.values()
            for layer in disk.layers[1:]
            if layer.local and not layer.inner and layer.format in _FORMATS and layer.file not in written
        )
    )


def layers_written(record: IntentRecord) -> frozenset[str]:
    """Layers beneath others to which an operation writes: data of a job, or the name of a backing file."""
    start = record.start
    match start.effect if start is not None else None:
        case DropLayers(above=above, base=base):
            stream = start is not None and start.command == "block-stream"
            files = {above} if stream or base is None else {above, base}
        case Later(effect=effect) if not record.target:
            files = {effect.root.file}
        case _:
            files = set()
    return frozenset(file for file in files if file.startswith("/"))


def with_renewals(record: IntentRecord, moments: Iterable[MomentRecord]) -> IntentRecord:
    """The record of an operation, with those of the moments that need new stamps once it has ended."""
    written = layers_written(record)
    renews = {one.id: one.directory for one in moments if not written.isdisjoint(one.stamps)}
    return replace(record, renews=Frozen(renews)) if renews else record


def renewed(record: MomentRecord, before: Mapping[str, str], now: Mapping[str, str]) -> MomentRecord:
    """The record of a moment, with new stamps of the layers that an operation of ours has written to.

    If a layer had been written to before, the record stays, and shows it: the data may now be in another
    layer.

    Args:
        record: The record.
        before: Stamps of the operation's layers as it began.
        now: Present stamps of those that it has written to; "" for one that gets none.
    """
    if _written_before(record.stamps, before):
        return record
    read = {file for disk in record.covered for file in record.read_from(disk)}
    stamps = {file: now.get(file, stamp) for file, stamp in record.stamps.items() if file in read}
    return replace(record, stamps=Frozen({file: stamp for file, stamp in stamps.items() if stamp}))


def written_layers(record: MomentRecord, files: Files) -> tuple[WrittenLayer, ...]:
    """Layers of a moment that somebody has written to since it was complete, as far as that is known.

    Args:
        record: The record of the moment.
        files: What was read: of a file that was not, nothing is known.
    """
    intents = [one for one in files.records if isinstance(one, IntentRecord) and one.stamps]
    found = []
    for disk, file, then in _stamped(record):
        fact = files.files.get(file) or files.images.get(files.real(file))
        if fact is None or fact.kind != "regular" or not written_after(then, _stamp(fact)):
            continue
        ours = (one for one in intents if file in one.stamps)
        if not any(not _written_before({file: then}, one.stamps) for one in ours):
            at = datetime.fromtimestamp(fact.modified, UTC).isoformat(timespec="seconds")
            was = int(then.partition("-")[0])
            found.append(WrittenLayer(record.name, record.created, disk, file, at, was))
    return tuple(found)


def _stamped(record: MomentRecord) -> Iterator[tuple[str, str, str]]:
    """Disk, file and stamp of each layer of the moment that has one."""
    for disk in record.disks:
        for file in record.read_from(disk) if disk not in record.lost else ():
            if file in record.stamps:
                yield disk, file, record.stamps[file]


def _written_before(stamps: Mapping[str, str], before: Mapping[str, str]) -> bool:
    return any(written_after(stamp, before[file]) for file, stamp in stamps.items() if file in before)


def _stamp(fact: FileFact) -> str:
    return stamp_of(fact.header, modified_ns=fact.modified_ns, inode=fact.inode)
