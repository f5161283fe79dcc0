"""Steps on files of ours: nothing is sent to QEMU. Part of the vocabulary in steps.py."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from qmpsnap.model.record import IntentRecord
    from qmpsnap.plan.intent import Folded

__all__ = [
    "CreateOverlay",
    "CreatePlaceholder",
    "FinishRecord",
    "HostOnly",
    "HostStep",
    "KeepMoment",
    "Proof",
    "RemoveMade",
    "RemoveOrphan",
    "RetireFile",
    "WriteRecord",
]

Arguments = dict[str, object]


class HostOnly:
    """A step of ours on files; nothing is sent."""

    __slots__ = ()
    on: ClassVar[Literal["host"]] = "host"

    @property
    def arguments(self) -> Arguments:
        """The step's own facts, for people and for JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class WriteRecord(HostOnly):
    """Write down what is about to happen, so that whoever comes after a crash can end it."""

    directory: str
    record: IntentRecord
    command: ClassVar[str] = "write-record"

    @property
    def arguments(self) -> Arguments:
        """Where the record goes, and its id."""
        return {"directory": self.directory, "id": self.record.id}


@dataclass(frozen=True, slots=True)
class FinishRecord(HostOnly):
    """Remove the records of operations that have ended, and of moments that are no more.

    Attributes:
        directory: Where they lie.
        ids: Of the operations. A moment that one of them made keeps its record, which has the same id.
        moments: Ids of the moments' records.
    """

    directory: str
    ids: tuple[str, ...]
    moments: tuple[str, ...] = ()
    command: ClassVar[str] = "finish-record"

    @property
    def arguments(self) -> Arguments:
        """Where, and which."""
        moments: Arguments = {"moments": self.moments} if self.moments else {}
        return {"directory": self.directory, "ids": self.ids, **moments}


@dataclass(frozen=True, slots=True)
class KeepMoment(HostOnly):
    """Turn a snapshot's record into the record of its moment."""

    directory: str
    id: str
    name: str
    command: ClassVar[str] = "keep-moment"


@dataclass(frozen=True, slots=True)
class CreateOverlay(HostOnly):
    """Make an overlay exclusively, with owner, group, mode and label of the layer that it covers."""

    file: str
    size_bytes: int
    backing: str
    backing_format: str
    like: str
    command: ClassVar[str] = "create-overlay"


@dataclass(frozen=True, slots=True)
class CreatePlaceholder(HostOnly):
    """Make an empty file exclusively, so that what QEMU truncates is certainly ours."""

    file: str
    like: str
    command: ClassVar[str] = "create-file"


@dataclass(frozen=True, slots=True)
class Proof:
    """What shows that a file is the layer that is meant; it is looked at once more before it is touched.

    Attributes:
        format: That of the image; "": any that has a backing file.
        backing: The layer that its header has to lead to.
        device: st_dev of the file that was looked at; 0: not known.
        inode: Its st_ino; 0: not known.
    """

    format: str
    backing: str
    device: int = 0
    inode: int = 0


@dataclass(frozen=True, slots=True)
class RetireFile(HostOnly):
    """Rename a folded file, never onto another, or remove it; only if it is the layer that is meant.

    Attributes:
        file: The file.
        policy: What becomes of it.
        to: Its new name, or "".
        proof: What shows that it is that layer; None: it is not looked at.
    """

    file: str
    policy: Folded
    to: str
    proof: Proof | None = field(default=None, compare=False)
    command: ClassVar[str] = "retire-file"

    @property
    def arguments(self) -> Arguments:
        """Which file, and what becomes of it."""
        return {"file": self.file, "policy": self.policy, "to": self.to}


@dataclass(frozen=True, slots=True)
class RemoveMade(HostOnly):
    """Remove a file that this very run made, once QEMU certainly does not hold it."""

    file: str
    command: ClassVar[str] = "remove-file"


@dataclass(frozen=True, slots=True)
class RemoveOrphan(HostOnly):
    """Remove a file that an interrupted run made, if it is still as it was made: empty.

    Attributes:
        file: The file.
        backing: The layer that it was made over; None for a placeholder without a byte.
    """

    file: str
    backing: str | None
    command: ClassVar[str] = "remove-orphan"


HostStep = (
    WriteRecord
    | FinishRecord
    | KeepMoment
    | CreateOverlay
    | CreatePlaceholder
    | RetireFile
    | RemoveMade
    | RemoveOrphan
)
