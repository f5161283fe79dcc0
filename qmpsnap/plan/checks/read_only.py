"""A disk that is attached read-only keeps its files as they are: nothing is written, renamed or removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import Unsupported

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk

__all__ = ["refuse_read_only"]


_HINT = "attach it read-write, or shut the machine off and work on its images"


def refuse_read_only(disk: Disk, what: str, *, hint: str = _HINT) -> None:
    """Refuse to change the files of a disk that was attached read-only, which others may read as well.

    Args:
        disk: The disk.
        what: The operation, as a noun.
        hint: What can be done instead.

    Raises:
        Unsupported: When it is read-only.
    """
    if disk.layers and disk.read_only:
        raise Unsupported(
            f"disk {disk.name!r} is read-only",
            feature=f"{what} of a read-only disk",
            hint=hint,
        )
