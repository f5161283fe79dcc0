"""Steps on a migration to or from a file of VM state. Part of the vocabulary in steps.py.

QEMU gets the open file itself, never a name that it would open, and never a shell's command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from qmpsnap.plan.job_steps import QmpStep, WaitStep

__all__ = [
    "AwaitClosed",
    "AwaitMigration",
    "CancelMigration",
    "LoadMemory",
    "MigrationStep",
    "PassFile",
    "ReleaseFile",
    "SaveMemory",
    "SetCapabilities",
    "SetParameters",
    "Way",
]

Arguments = dict[str, object]

Way = Literal["fd", "fdset"]
"""How QEMU gets an open file: by getfd and `fd:` (7.2), or by add-fd and `file:/dev/fdset/N`."""


@dataclass(frozen=True, slots=True)
class SetCapabilities(QmpStep):
    """Set what a migration does. QAPI: migrate-set-capabilities (migration.json).

    Attributes:
        values: Of each capability its name and whether it is to be on.
        was: The same as they were, to be put back.
    """

    values: tuple[tuple[str, bool], ...]
    was: tuple[tuple[str, bool], ...]
    command: ClassVar[str] = "migrate-set-capabilities"

    @property
    def arguments(self) -> Arguments:
        """One entry a capability."""
        return {"capabilities": [{"capability": name, "state": on} for name, on in self.values]}

    def back(self) -> SetCapabilities:
        """The step that puts them back."""
        return SetCapabilities(self.was, self.values)


@dataclass(frozen=True, slots=True)
class SetParameters(QmpStep):
    """Set how a migration does it. QAPI: migrate-set-parameters (migration.json).

    Attributes:
        values: Of each parameter its name and its value.
        was: The same as they were, to be put back.
    """

    values: tuple[tuple[str, int | str], ...]
    was: tuple[tuple[str, int | str], ...]
    command: ClassVar[str] = "migrate-set-parameters"

    @property
    def arguments(self) -> Arguments:
        """One entry a parameter."""
        return dict(self.values)

    def back(self) -> SetParameters:
        """The step that puts them back."""
        return SetParameters(self.was, self.values)


@dataclass(frozen=True, slots=True)
class PassFile(QmpStep):
    """Give QEMU an open file over the monitor. QAPI: getfd, add-fd (misc.json).

    Attributes:
        file: The file's path, which is ours alone to open.
        number: What QEMU knows it by: `qmpsnap-NUMBER`, or the set's number.
        way: How.
        write: Whether QEMU writes to it.
        inode: Of a file that QEMU reads: that of the one that was looked at.
    """

    file: str
    number: int
    way: Way
    write: bool
    inode: int = 0

    @property
    def command(self) -> str:
        """By the way."""
        return "getfd" if self.way == "fd" else "add-fd"

    @property
    def arguments(self) -> Arguments:
        """The name, or the set's number."""
        if self.way == "fd":
            return {"fdname": f"qmpsnap-{self.number}"}
        return {"fdset-id": self.number, "opaque": "qmpsnap"}

    @property
    def uri(self) -> str:
        """What a migration calls it by."""
        return f"fd:qmpsnap-{self.number}" if self.way == "fd" else f"file:/dev/fdset/{self.number}"

    def back(self) -> ReleaseFile:
        """The step that takes it away again."""
        return ReleaseFile(self.number, self.way)


@dataclass(frozen=True, slots=True)
class ReleaseFile(QmpStep):
    """Let QEMU close a file that it was given; done already is no error. QAPI: closefd, remove-fd.

    Attributes:
        number: As in PassFile.
        way: As in PassFile.
    """

    number: int
    way: Way

    @property
    def command(self) -> str:
        """By the way."""
        return "closefd" if self.way == "fd" else "remove-fd"

    @property
    def arguments(self) -> Arguments:
        """The name, or the set's number."""
        return {"fdname": f"qmpsnap-{self.number}"} if self.way == "fd" else {"fdset-id": self.number}


@dataclass(frozen=True, slots=True)
class SaveMemory(QmpStep):
    """Begin to write VM state to a file. QAPI: migrate (migration.json).

    Attributes:
        uri: Where to.
        may_stop: As in AwaitMigration.
    """

    uri: str
    may_stop: bool = True
    command: ClassVar[str] = "migrate"

    @property
    def arguments(self) -> Arguments:
        """Where to."""
        return {"uri": self.uri}


@dataclass(frozen=True, slots=True)
class LoadMemory(QmpStep):
    """Begin to read VM state from a file, in a QEMU that waits for it. QAPI: migrate-incoming."""

    uri: str
    command: ClassVar[str] = "migrate-incoming"

    @property
    def arguments(self) -> Arguments:
        """Where from."""
        return {"uri": self.uri}


@dataclass(frozen=True, slots=True)
class CancelMigration(QmpStep):
    """Stop a migration, and return once it has stopped. QAPI: migrate_cancel (migration.json).

    Attributes:
        wait: Whether to wait for its end instead: QEMU 7.2 hangs the guest when that runs on meanwhile.
    """

    wait: bool = False
    command: ClassVar[str] = "migrate_cancel"

    @property
    def arguments(self) -> Arguments:
        """None."""
        return {}


@dataclass(frozen=True, slots=True)
class AwaitMigration(WaitStep):
    """Wait for a migration. QAPI: MIGRATION, query-migrate (migration.json).

    Attributes:
        until: "settled": the one before is over, its thread too. "writing": the state of the devices is
            kept and the pages of memory follow, so that the guest may run on. "saved": all is written by a
            guest that stands still. "kept": all is written while it ran on; QEMU keeps a later memory
            than the disks when it had to stop the guest a second time, and that is a failure. "loaded".
        may_stop: Whether it may be given up meanwhile. QEMU 7.2 hangs a guest for good whose memory it
            was to write while it ran on, when that is cancelled.
    """

    until: Literal["settled", "writing", "saved", "kept", "loaded"]
    may_stop: bool = True
    command: ClassVar[str] = "await-migration"

    @property
    def arguments(self) -> Arguments:
        """What is waited for."""
        return {"until": self.until}


@dataclass(frozen=True, slots=True)
class AwaitClosed(WaitStep):
    """Wait until QEMU has closed the file: then its thread has ended, and all is handed to the kernel.

    Started before that, the next migration kills QEMU. The lock that `PassFile` leaves on the file goes
    with QEMU's last descriptor of it; no event tells.
    """

    file: str
    command: ClassVar[str] = "await-closed"

    @property
    def arguments(self) -> Arguments:
        """The file."""
        return {"file": self.file}


MigrationStep = (
    SetCapabilities
    | SetParameters
    | PassFile
    | ReleaseFile
    | SaveMemory
    | LoadMemory
    | CancelMigration
    | AwaitMigration
    | AwaitClosed
)
