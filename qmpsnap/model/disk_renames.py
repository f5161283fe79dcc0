"""Maps the disk names in a moment's record to the present ones, when QEMU's names have changed.

A disk's name is that of its device, and QEMU numbers devices without an id in the order of its command
line: at the next start `device[0]` may be another disk. The files decide: an overlay of
the moment is in the chain of its disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from msgspec.structs import replace

from qmpsnap.model.graph import Graph
from qmpsnap.model.record import MomentRecord, Record

T = TypeVar("T")


def with_current_names(records: Iterable[Record], graph: Graph) -> tuple[Record, ...]:
    """The records with present disk names in those of moments; a disk that no file identifies keeps its name.

    A moment on a branch that a revert has left is identified by its backing file, which is an overlay of a
    moment that is already identified.
    """
    known = tuple(records)
    chains: dict[str, set[str]] = {}
    for disk in graph.disks.values():
        for file in disk.files:
            chains.setdefault(file, set()).add(disk.name)
    begun: dict[str, set[str]] = {}
    pending = [
        (record, name) for record in known if isinstance(record, MomentRecord) for name in record.covered
    ]
    found: dict[int, dict[str, str]] = {}  # by id(): a record holds mappings, and has no hash
    while True:
        newly_named = [
            (record, name, now)
            for record, name in pending
            if (now := _current_name(record, name, chains, begun))
        ]
        if not newly_named:
            break
        for record, name, now in newly_named:
            found.setdefault(id(record), {})[name] = now
            for file in record.goes_on(name):
                begun.setdefault(file, set()).add(now)
        pending = [(record, name) for record, name in pending if name not in found.get(id(record), {})]
    return tuple(
        with_names(record, found.get(id(record), {})) if isinstance(record, MomentRecord) else record
        for record in known
    )


def _current_name(
    record: MomentRecord, name: str, chains: Mapping[str, set[str]], begun: Mapping[str, set[str]]
) -> str:
    """The present name of the disk that the record calls `name`, or "" if no file identifies it."""
    below = (record.covered[name], *record.chains.get(name, ())[:-1])
    for where, files in ((chains, record.goes_on(name)), (begun, below)):
        candidates: set[str] = set()
        for file in files:
            disks = where.get(file, ())
            if name in disks:  # two devices on one node
                return name
            candidates.update(disks)
        if len(candidates) == 1:
            return candidates.pop()
    return ""


def with_names(record: MomentRecord, names: Mapping[str, str]) -> MomentRecord:
    """The record with its disks renamed; `names` maps old names to new ones."""
    if all(old == new for old, new in names.items()):
        return record
    new_names = {name: names.get(name, name) for name in {*record.covered, *record.overlays, *record.chains}}
    if len(set(new_names.values())) < len(new_names):  # two would be one
        return record

    def moved(by_disk: Mapping[str, T]) -> dict[str, T]:
        return {new_names.get(name, name): value for name, value in by_disk.items()}

    return replace(
        record,
        overlays=moved(record.overlays),
        covered=moved(record.covered),
        chains=moved(record.chains),
        formats=moved(record.formats),
        branches=tuple(moved(branch) for branch in record.branches),
        continued=tuple(map(moved, record.continued)),
        lost=tuple(new_names.get(name, name) for name in record.lost),
        deleted_from=tuple(new_names.get(name, name) for name in record.deleted_from),
    )
