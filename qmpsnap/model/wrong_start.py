"""Detects a machine that was started from a backing file of other images: its guest corrupts them.

That happens when a snapshot is taken, QEMU quits, and is started again from the old file.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from qmpsnap.model.files import Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import quoted
from qmpsnap.model.record import IntentRecord, MomentRecord, Record


class WrongStart(Struct, frozen=True):
    """A disk whose guest writes into a backing file of other images.

    Attributes:
        disk: The disk's name.
        active: The layer that it writes into.
        newest: The topmost images above it, sorted: the machine should probably run from one of them.
    """

    disk: str
    active: str
    newest: tuple[str, ...]

    def __str__(self) -> str:
        """The warning, in one line."""
        which = self.newest[0] if len(self.newest) == 1 else f"one of {', '.join(self.newest)}"
        return (
            f"{self.disk} writes into {self.active}, the backing file of {', '.join(self.newest)}, "
            f"and so changes what {'that reads' if len(self.newest) == 1 else 'those read'}. "
            f"If this machine should run from a newer layer, quit it and start it from {which}"
        )

    @property
    def while_off(self) -> str:
        """The same for a machine that is off: nobody writes, but it may be the wrong layer."""
        named = " or ".join(f"-i {quoted(self.disk)}={quoted(file)}" for file in self.newest)
        return (
            f"{self.active}, named for {self.disk}, is the backing file of {', '.join(self.newest)}: only a "
            f"snapshot may branch from it. If the machine has a newer layer, name that: {named}"
        )


def recorded_overlays(graph: Graph, records: tuple[Record, ...]) -> tuple[str, ...]:
    """Overlays, according to our records, of layers that a guest now writes into."""
    active = {disk.active.file for disk in graph.disks.values() if disk.writable}
    return tuple(
        dict.fromkeys(
            file
            for record in records
            if isinstance(record, MomentRecord)
            for disk, covered in record.covered.items()
            if covered in active
            for file in record.began(disk)
        )
    )


def waiting_overlays(graph: Graph, interrupted: Iterable[IntentRecord]) -> tuple[str, ...]:
    """Overlays of operations on this QEMU to which its disks have not moved yet.

    Args:
        graph: QEMU's block graph.
        interrupted: Records of operations on this very QEMU that have not ended.
    """
    return tuple(
        file
        for record in interrupted
        for disk, file in record.overlays.items()
        if disk in graph.disks and graph.disks[disk].files == record.chains.get(disk)
    )


def wrong_starts(graph: Graph, files: Files, waiting: Iterable[str] = ()) -> tuple[WrongStart, ...]:
    """Every disk whose guest writes into a backing file of other images, by their headers.

    Args:
        graph: QEMU's block graph.
        files: Active layers, the images beside them, and recorded overlays.
        waiting: Overlays to which disks of this QEMU are about to move; these are not meant.
    """
    used = {files.real(node.file) for node in graph.nodes.values()} - {""}
    used |= {files.real(file) for file in waiting}
    used |= {files.real(file) for disk in graph.disks.values() for file in disk.files}
    wrong = []
    for disk in graph.disks.values():
        if not disk.writable or not disk.active.local:
            continue
        above = [file for file in files.backed_by(disk.active.file) if file not in used]
        newest = tuple(file for file in above if not files.backed_by(file))
        if newest:
            wrong.append(WrongStart(disk.name, disk.active.file, newest))
    return tuple(wrong)
