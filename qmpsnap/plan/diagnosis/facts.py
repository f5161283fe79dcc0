"""What the rules look at: everything that was read of a machine, or of images, in one go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from qmpsnap.model.files import FileFact, Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.host_process import HostProcess
from qmpsnap.model.job import Job
from qmpsnap.model.job_place import BlockGraph
from qmpsnap.model.machine import Status
from qmpsnap.model.moments import Moments
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.wrong_start import WrongStart


class Case(NamedTuple):
    """One occurrence of a trouble; the fields are those of `Finding`."""

    subject: str
    cause: str
    remedy: tuple[str, ...] = ()
    advice: str = ""


class Broken(Struct, frozen=True):
    """A disk of a machine that is off whose chain cannot be read.

    Attributes:
        disk: The disk's name.
        reason: Why, as the refusal says.
        hint: What the refusal advises.
        files: The chain as far as its headers lead, active first: each path, and what is there.
        near: Other images in the directories of these files.
    """

    disk: str
    reason: str
    hint: str = ""
    files: tuple[tuple[str, FileFact], ...] = ()
    near: tuple[str, ...] = ()


class Monitor(Struct, frozen=True):
    """A monitor that does not greet.

    Attributes:
        address: Its address.
        clients: The processes, or the addresses on other hosts, that are connected to it, as far as we may
            see them; None if nobody is known to be.
        stopped: Its QEMU, if a signal has stopped it.
    """

    address: str
    clients: tuple[HostProcess | str, ...] | None = None
    stopped: HostProcess | None = None


class Facts(Struct, frozen=True):
    """One look at a machine, or at the images of a machine that is off.

    Attributes:
        graph: Its disks and nodes.
        files: What was read of the files of the chains, and of the images and records beside them.
        moments: Its snapshots and checkpoints.
        operations: Records of operations on it, also of those whose client is at work.
        vanished: For those that can no longer be completed, why; by id.
        below: Disks that write into a backing file of other images.
        jobs: Its jobs.
        uses: Who uses which node; None if that was not asked, since every node is in use as far as known.
        exported: Nodes that QEMU exports; read if a filter of a backup is on top of a disk.
        status: Its run state; None where there is no guest.
        io_status: For each disk of which a request has failed "nospace" or "failed"; read if the guest is
            paused by that.
        blocked: Why QEMU cannot save the guest's memory, in its words.
        room: Free bytes of the file system, for each file that grows as the guest writes.
        read_only: For each layer that QEMU could not open for writing, why.
        missing: Files of VM state that do not exist.
        writers: For each file of which another process may change the image, that process.
        frozen: Whether the guest's file systems are frozen; None where its agent does not answer.
        agent: The socket of the agent; "" where it was not asked.
        monitor: The monitor, if that does not greet: nothing else is known then.
        broken: Disks whose chains cannot be read, of a machine that is off.
        damaged: For each image of a machine that is off that needs a repair, what is wrong with it.
    """

    graph: Graph
    files: Files
    moments: Moments
    operations: tuple[IntentRecord, ...] = ()
    vanished: Mapping[str, str] = Frozen()
    below: tuple[WrongStart, ...] = ()
    jobs: tuple[Job, ...] = ()
    uses: BlockGraph | None = None
    exported: frozenset[str] = frozenset()
    status: Status | None = None
    io_status: Mapping[str, str] = Frozen()
    blocked: tuple[str, ...] = ()
    room: Mapping[str, int] = Frozen()
    read_only: Mapping[str, str] = Frozen()
    missing: frozenset[str] = frozenset()
    writers: Mapping[str, str] = Frozen()
    frozen: bool | None = None
    agent: str = ""
    monitor: Monitor | None = None
    broken: tuple[Broken, ...] = ()
    damaged: Mapping[str, str] = Frozen()

    @property
    def off(self) -> bool:
        """Whether the images were looked at without a machine that runs on them."""
        return self.status is None

    @property
    def at_work(self) -> tuple[IntentRecord, ...]:
        """Operations whose client is at work."""
        return tuple(record for record in self.operations if record.live)
