"""Whose disk a moment's record is about, when disks are called otherwise than they were then.

A disk's name is that of its device, and QEMU numbers devices without an id in the order of its command
line: at the next start `device[0]` may be another disk. The files tell: an overlay that began at the
moment is in the chain of the disk that it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from qmpsnap.model.record import MomentRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qmpsnap.model.graph import Graph
    from qmpsnap.model.record import Record

__all__ = ["with_current_names", "with_names"]

T = TypeVar("T")


def with_current_names(records: Iterable[Record], graph: Graph) -> tuple[Record, ...]:
    """The records, those of moments with each disk called as it is now; where nothing tells, as it was.

    A moment that a revert has left aside is told by what it stands on: an overlay that began at a moment
    of which it is known.
    """
    known = tuple(records)
    chains: dict[str, set[str]] = {}
    for disk in graph.disks.values():
        for file in disk.files:
            chains.setdefault(file, set()).add(disk.name)
    begun: dict[str, set[str]] = {}
    pending = [(one, name) for one in known if isinstance(one, MomentRecord) for name in one.covered]
    found: dict[int, dict[str, str]] = {}  # by id(): a record holds mappings, and has no hash
    while True:
        told = [(one, name, now) for one, name in pending if (now := _told(one, name, chains, begun))]
        if not told:
            break
        for one, name, now in told:
            found.setdefault(id(one), {})[name] = now
            for file in one.began(name):
                begun.setdefault(file, set()).add(now)
        pending = [(one, name) for one, name in pending if name not in found.get(id(one), {})]
    return tuple(
        with_names(one, found.get(id(one), {})) if isinstance(one, MomentRecord) else one for one in known
    )


def _told(
    record: MomentRecord, name: str, chains: Mapping[str, set[str]], begun: Mapping[str, set[str]]
) -> str:
    """What the disk is called now that the record calls `name`, or "" where no file tells."""
    below = (record.covered[name], *record.chains.get(name, ())[:-1])
    for where, files in ((chains, record.began(name)), (begun, below)):
        who = {disk for file in files for disk in where.get(file, ())}
        if name in who:  # two devices on one node
            return name
        if len(who) == 1:
            return who.pop()
    return ""


def with_names(record: MomentRecord, names: Mapping[str, str]) -> MomentRecord:
    """The record with its disks called otherwise, by their names in it."""
    if all(old == new for old, new in names.items()):
        return record
    anew = {name: names.get(name, name) for name in {*record.covered, *record.overlays, *record.chains}}
    if len(set(anew.values())) < len(anew):  # two would be one
        return record

    def moved(by_disk: Mapping[str, T]) -> dict[str, T]:
        return {anew.get(name, name): value for name, value in by_disk.items()}

    return replace(
        record,
        overlays=moved(record.overlays),
        covered=moved(record.covered),
        chains=moved(record.chains),
        formats=moved(record.formats),
        branches=tuple(moved(one) for one in record.branches),
        lost=tuple(anew.get(name, name) for name in record.lost),
    )
