"""VM state in a file of its own, as it is recorded."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from qmpsnap.model.document import AbsolutePath, Count, Text
from qmpsnap.model.frozen import FrozenStruct
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.names import fit_name


class KeptState(FrozenStruct, frozen=True):
    """VM state in a file of its own, saved with a moment of the disks.

    Attributes:
        mode: "stop", "background" (both: a stream, for a new QEMU) or "in-place" (a store, for any QEMU).
        file: The file, under its final name.
        tag: Name of the snapshot inside the store; "" for a stream.
        running: Whether the guest was running.
        fingerprint: The machine that it was saved from.
        token: Eight hex digits of the operation, which say to whom an unfinished file belongs.
        inode: st_ino of the file when it was created; 0 until then, and in older records.
        user: Id of the owner that it had then, or None.
    """

    mode: Literal["stop", "background", "in-place"]
    file: AbsolutePath
    tag: Text
    running: bool
    fingerprint: Fingerprint
    token: Annotated[str, Meta(pattern=r"^([0-9a-f]{8})?$")] = ""
    inode: Count = 0
    user: Count | None = None

    @property
    def partial(self) -> str:
        """The file's name until it is complete."""
        directory, slash, name = self.file.rpartition("/")
        return f"{directory}{slash}{fit_name(name, f'.{self.token}.partial' if self.token else '.partial')}"
