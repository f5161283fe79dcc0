"""Steps on files of VM state; nothing is sent. Part of the vocabulary in steps.py.

Such a file holds all that the guest had in its memory: it is made exclusively, for its owner alone, and is
called FILE.TOKEN.partial until it is whole, TOKEN being the operation's eight hex digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qmpsnap.plan.host_steps import HostOnly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpsnap.model.machine import Fingerprint

__all__ = [
    "CreateMemory",
    "CreateStore",
    "KeepBranch",
    "KeepLink",
    "KeepLost",
    "KeepPlace",
    "MemoryStep",
    "RemoveState",
    "SealMemory",
    "SealStore",
]

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class CreateMemory(HostOnly):
    """Make an empty file that takes a stream of VM state; QEMU gets it open.

    Attributes:
        file: The file.
        reserve_bytes: Bytes of the disk that are taken for it beforehand, so that there is room for certain.
    """

    file: str
    reserve_bytes: int = 0
    command: ClassVar[str] = "create-memory"


@dataclass(frozen=True, slots=True)
class CreateStore(HostOnly):
    """Make an empty qcow2 image that takes VM state, with the owner of the layer `like`: QEMU opens it."""

    file: str
    like: str
    command: ClassVar[str] = "create-store"


@dataclass(frozen=True, slots=True)
class SealMemory(HostOnly):
    """Write a note of whose state it is to the end of the file, sync it, and give it its name.

    Attributes:
        partial: The file as it is called until then.
        file: Its name.
        id: That of the operation.
        name: The checkpoint's name, or "".
        running: Whether the guest ran.
        fingerprint: What the machine is.
        layers: Files whose inode, size and time are noted, each with its disk's name.
    """

    partial: str
    file: str
    id: str
    name: str
    running: bool
    fingerprint: Fingerprint
    layers: tuple[tuple[str, str], ...] = ()
    command: ClassVar[str] = "seal-memory"

    @property
    def arguments(self) -> Arguments:
        """The two names."""
        return {"partial": self.partial, "file": self.file}


@dataclass(frozen=True, slots=True)
class SealStore(HostOnly):
    """Sync a store that QEMU has closed, and give it its name.

    Attributes:
        partial: The store as it is called until then.
        file: Its name.
    """

    partial: str
    file: str
    command: ClassVar[str] = "seal-store"


@dataclass(frozen=True, slots=True)
class RemoveState(HostOnly):
    """Remove a file of VM state, if it is the one of that operation; another one that took its name stays.

    Attributes:
        file: The file, or what it is called until it is whole: then its name tells whose it is.
        id: That of the operation, which a stream's note names.
        tag: Name of the snapshot inside a store; "" for a stream.
    """

    file: str
    id: str
    tag: str = ""
    command: ClassVar[str] = "remove-state"


@dataclass(frozen=True, slots=True)
class KeepBranch(HostOnly):
    """Add to a moment's record the overlays that began there by a revert.

    Attributes:
        directory: Where the record lies.
        id: That of the moment's record.
        overlays: New overlay of each disk.
    """

    directory: str
    id: str
    overlays: Mapping[str, str]
    command: ClassVar[str] = "keep-branch"

    @property
    def arguments(self) -> Arguments:
        """Which record, and the overlays."""
        return {"directory": self.directory, "id": self.id, "overlays": dict(self.overlays)}


@dataclass(frozen=True, slots=True)
class KeepLink(HostOnly):
    """Delete a moment, but keep in its record which overlays began there: others stand on them.

    Attributes:
        directory: Where the record lies.
        id: That of the moment's record.
    """

    directory: str
    id: str
    command: ClassVar[str] = "keep-link"


@dataclass(frozen=True, slots=True)
class KeepLost(HostOnly):
    """Note in a moment's record that a commit has written into the layer that held it.

    Attributes:
        directory: Where the record lies.
        id: That of the moment's record.
        disk: The disk whose layer it was.
    """

    directory: str
    id: str
    disk: str
    command: ClassVar[str] = "keep-lost"


@dataclass(frozen=True, slots=True)
class KeepPlace(HostOnly):
    """Note in a moment's record that layers have left the chain that it is read from; twice does no harm.

    Attributes:
        directory: Where the record lies.
        id: That of the moment's record.
        disk: The disk of these layers.
        gone: Files of these layers.
        into: The file that took their data (commit), and with it the moment where one of them held that;
            "" where none did (stream).
    """

    directory: str
    id: str
    disk: str
    gone: tuple[str, ...]
    into: str = ""
    command: ClassVar[str] = "keep-place"


MemoryStep = (
    CreateMemory
    | CreateStore
    | SealMemory
    | SealStore
    | RemoveState
    | KeepBranch
    | KeepLink
    | KeepLost
    | KeepPlace
)
