"""Whose a record is: machines that share a base image keep their records in one place.

This is the one rule. A record is this machine's when it is of this very QEMU, when QEMU has its job, or when
a chain of now shows that the machine of then is this one. A layer that others may stand on too shows nothing:
only the active layer does, one that our overlay covers, and what the operation itself put there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.model.record import IntentRecord, MomentRecord

if TYPE_CHECKING:
    from collections.abc import Collection

    from qmpsnap.model.graph import Disk, Graph
    from qmpsnap.model.record import Record

__all__ = ["has_moment", "ran_here", "stands_here", "superseded_by"]

_WITH_OVERLAYS = frozenset({"snapshot", "checkpoint", "revert"})


def ran_here(record: IntentRecord, process: str) -> bool:
    """Whether the record is certainly of this very QEMU.

    Args:
        record: The record.
        process: Which QEMU it is, as `Machine.process` says; "" where that is not known.
    """
    return bool(process) and record.was is not None and record.was.process == process


def stands_here(record: IntentRecord, graph: Graph, records: Collection[Record]) -> bool:
    """Whether a chain of now shows that the record is of this machine.

    Args:
        record: The record.
        graph: What QEMU has.
        records: All records that were found, for the moments among them.
    """
    moments = [one for one in records if isinstance(one, MomentRecord)]
    return any(_shows(record, graph.disks[name], moments) for name in record.chains if name in graph.disks)


def _shows(record: IntentRecord, disk: Disk, moments: list[MomentRecord]) -> bool:
    files = disk.files
    made = {record.overlays.get(disk.name, ""), record.target} - {""}
    if made & set(files):
        return True
    before, after = record.chains.get(disk.name, ()), record.after.get(disk.name, ())
    if any(_was_active(file, disk, moments) for file in (*before[:1], *after[:1])):
        return True
    # An overlay that somebody else put on has no record; a base image shows nothing even then.
    return record.op not in _WITH_OVERLAYS and before[:1] != () and before[0] in files[:-1]


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


def superseded_by(record: IntentRecord, records: Collection[Record]) -> Record | None:
    """A later record with one of the same overlays: that is then what is in the chain.

    Two attempts under one name have overlays of one path.
    """
    for one in records:
        later = one.id != record.id and one.created > record.created
        if later and set(one.overlays.items()) & set(record.overlays.items()):
            return one
    return None
