"""Whether a machine was started from a layer that others stand on: its guest then writes into their data.

So it is when somebody takes a snapshot, ends QEMU, and starts it again from the old file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from qmpsnap.model.record import MomentRecord

if TYPE_CHECKING:
    from qmpsnap.model.files import Files
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.record import Record

__all__ = ["WrongStart", "recorded_overlays", "wrong_starts"]


class WrongStart(Struct, frozen=True):
    """A disk whose guest writes into a layer that other images stand on.

    Attributes:
        disk: The disk's name.
        active: The layer that it writes into.
        newest: Images above it on which no other stands, sorted: the machine may belong on one of them.
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


def recorded_overlays(graph: Graph, records: tuple[Record, ...]) -> tuple[str, ...]:
    """Overlays that our records know to have begun on a layer which a guest now writes into."""
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


def wrong_starts(graph: Graph, files: Files) -> tuple[WrongStart, ...]:
    """Every disk whose guest writes into a layer that other images stand on, by their headers.

    Args:
        graph: What QEMU has.
        files: Active layers, what lies beside them, and overlays that records know.
    """
    used = {files.real(node.file) for node in graph.nodes.values()} - {""}
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
