"""A QEMU of this host as other processes see it: its monitors, who is connected to them, and its images."""

from __future__ import annotations

from enum import StrEnum

from qmpsnap.model.frozen import JsonStruct
from qmpsnap.model.host_process import HostProcess


class SocketState(StrEnum):
    """Whether a client can connect to a monitor."""

    FREE = "free"
    HELD = "held"
    UNKNOWN = "unknown"  # the kernel does not tell
    UNREACHABLE = "unreachable"


class QmpSocket(JsonStruct, frozen=True):
    """A QMP monitor, and who is connected to it.

    Attributes:
        address: What `connect` and `-s` take, or "" if we cannot connect to it.
        text: The monitor as QEMU's command line names it.
        state: Whether it serves a client now. A monitor serves one client at a time.
        clients: The processes that are connected to it, as far as we may see them.
        remote: Addresses of clients on other hosts.
        why: Why we cannot connect to it; "" if we can.
    """

    address: str
    text: str
    state: SocketState
    clients: tuple[HostProcess, ...] = ()
    remote: tuple[str, ...] = ()
    why: str = ""


class OpenDisk(JsonStruct, frozen=True):
    """An image that a process has open, with the images beneath it.

    Attributes:
        disk: The disk's name in the command line; "" if it is not known.
        files: Paths as the process sees them, the active layer first. They may lead elsewhere for others.
        rest: The backing file that the lowest of them names, if that is not open; "" if there is none.
    """

    disk: str
    files: tuple[str, ...]
    rest: str = ""


class RunningQemu(JsonStruct, frozen=True):
    """A process of this host that is a QEMU, or a storage daemon of QEMU's.

    Attributes:
        process: The process.
        name: The machine's name, as `-name` gives it; "" if it has none.
        daemon: Whether it is a qemu-storage-daemon: it has images and monitors, but no machine.
        sockets: Its QMP monitors, in the order of the command line.
        disks: The images that it has open; None if we may not look.
    """

    process: HostProcess
    name: str = ""
    daemon: bool = False
    sockets: tuple[QmpSocket, ...] = ()
    disks: tuple[OpenDisk, ...] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def address(self) -> str:
        """The address of its monitor, a free one if it has several; "" if none can be connected to."""
        usable = [each for each in self.sockets if each.address]
        free = [each for each in usable if each.state is SocketState.FREE]
        return next((each.address for each in (*free, *usable)), "")

    @property
    def label(self) -> str:
        """The machine with its process, for messages."""
        return f"{self.name or '(without a name)'}: {self.process}"
