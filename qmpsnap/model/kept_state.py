"""VM state in a file of its own, as records tell of it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from qmpsnap.model.document import AbsolutePath, Count, Text
from qmpsnap.model.frozen import FrozenStruct
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.names import fit_name


class KeptState(FrozenStruct, frozen=True):
    """VM state that is kept in a file of its own, with a moment of the disks.

    Attributes:
        mode: "stop", "background" (both: a stream, for a new QEMU) or "in-place" (a store, for any).
        file: The file, under the name that it has once it is whole.
        tag: Name of the snapshot inside the store; "" for a stream.
        running: Whether the guest ran.
        fingerprint: What the machine was.
        token: Eight hex digits of the operation, which tell whose an unfinished file is.
        inode: st_ino of the file as it was made; 0 until then, and in older records.
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
        """What the file is called until it is whole."""
        directory, slash, name = self.file.rpartition("/")
        return f"{directory}{slash}{fit_name(name, f'.{self.token}.partial' if self.token else '.partial')}"
