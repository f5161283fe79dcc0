"""Steps that give a disk another root while its QEMU lives on. Part of the vocabulary in steps.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qmpsnap.model.graph import Io
from qmpsnap.plan.job_steps import QmpStep, WaitStep

__all__ = ["AddNode", "AddStore", "CheckRoots", "NewRoot", "ReopenFilter", "RootStep", "SetDrive"]

Arguments = dict[str, object]
_PLAIN = Io()


@dataclass(frozen=True, slots=True)
class AddNode(QmpStep):
    """Open an image, under no disk yet. QAPI: blockdev-add (block-core.json).

    Attributes:
        node: node-name that it gets.
        file: The image's path.
        format: Its driver.
        backing: node-name of the layer that it stands on; None: as its header says.
        io: How it is read and written. Its file takes that over, and layers that are opened with it.
        unmap: Whether the guest's discards free space; else QEMU ignores them.
    """

    node: str
    file: str
    format: str = "qcow2"
    backing: str | None = None
    io: Io = _PLAIN
    unmap: bool = False
    command: ClassVar[str] = "blockdev-add"

    @property
    def arguments(self) -> Arguments:
        """The node with its file."""
        options: Arguments = {
            "driver": self.format,
            "node-name": self.node,
            "file": {"driver": "file", "filename": self.file},
            **_io(self.io, unmap=self.unmap),
        }
        return options if self.backing is None else {**options, "backing": self.backing}


def _io(io: Io, *, unmap: bool = False) -> Arguments:
    """What differs from QEMU's defaults; it takes detect-zeroes=unmap only together with discard=unmap."""
    options: Arguments = {}
    if io.direct or io.no_flush:
        options["cache"] = {"direct": io.direct, "no-flush": io.no_flush}
    if unmap or io.detect_zeroes == "unmap":
        options["discard"] = "unmap"
    if io.detect_zeroes != "off":
        options["detect-zeroes"] = io.detect_zeroes
    return options


@dataclass(frozen=True, slots=True)
class AddStore(AddNode):
    """Open a store of VM state, for as long as it is written or read. QAPI: blockdev-add.

    It must not stay: QEMU would count it among the disks of an internal checkpoint.
    """


@dataclass(frozen=True, slots=True)
class NewRoot:
    """What a disk reads by a root.

    Attributes:
        disk: The disk's name.
        node: node-name of its active layer.
        file: Its path.
        format: Its driver.
        backing: What its header records as backing file, or None.
        chain: Files and formats of the layers below it, newest first.
        io: How its active layer is read and written.
    """

    disk: str
    node: str
    file: str
    format: str
    backing: str | None
    chain: tuple[tuple[str, str], ...]
    io: Io = _PLAIN

    def opened(self, *, backing: str | None = None) -> AddNode:
        """The step that opens its active layer.

        QEMU does not tell what it does with discards. An overlay takes them, which loses nothing; an image
        that stands on none may be preallocated, and keeps its space unless it certainly did not before.

        Args:
            backing: As in AddNode.
        """
        unmap = self.backing is not None
        return AddNode(self.node, self.file, self.format, backing, self.io, unmap)


@dataclass(frozen=True, slots=True)
class SetDrive(QmpStep):
    """Give a device another root. QAPI: qom-set (qom.json).

    The root that it has already would abort QEMU.

    Attributes:
        root: What the disk reads from now on.
        path: QOM path of the device.
        was: What it reads until then.
        closes: Whether QEMU closes the old root's node by that, so that it is opened again to be put back.
    """

    root: NewRoot
    path: str
    was: NewRoot
    closes: bool
    command: ClassVar[str] = "qom-set"

    @property
    def arguments(self) -> Arguments:
        """The device's property."""
        return {"path": self.path, "property": "drive", "value": self.root.node}

    def back(self) -> tuple[AddNode | SetDrive, ...]:
        """The steps that put the old root back."""
        again = (self.was.opened(),) if self.closes else ()
        return (*again, SetDrive(self.was, self.path, self.root, closes=False))


@dataclass(frozen=True, slots=True)
class ReopenFilter(QmpStep):
    """Put another image under a throttle. QAPI: blockdev-reopen (block-core.json).

    Attributes:
        root: What the disk reads from now on, below the filter.
        filter: The throttle's node-name.
        group: Its throttle-group.
        was: What it reads until then.
        closes: As in SetDrive.
        io: The throttle's own options, which it would lose; only its `discard` it keeps by itself.
    """

    root: NewRoot
    filter: str
    group: str
    was: NewRoot
    closes: bool
    io: Io = _PLAIN
    command: ClassVar[str] = "blockdev-reopen"

    @property
    def arguments(self) -> Arguments:
        """All options of the throttle, as the command demands."""
        options: Arguments = {
            "driver": "throttle",
            "node-name": self.filter,
            "throttle-group": self.group,
            "file": self.root.node,
            **_io(self.io),
        }
        return {"options": [options]}

    def back(self) -> tuple[AddNode | ReopenFilter, ...]:
        """The steps that put the old image back."""
        again = (self.was.opened(),) if self.closes else ()
        return (*again, ReopenFilter(self.was, self.filter, self.group, self.root, closes=False, io=self.io))


@dataclass(frozen=True, slots=True)
class CheckRoots(WaitStep):
    """Ask which root each device has: some take another one and keep the old. QAPI: query-block.

    Attributes:
        roots: Of each disk its name, its qdev as query-block spells it, and the node-name of its root.
    """

    roots: tuple[tuple[str, str, str], ...]
    command: ClassVar[str] = "check-roots"

    @property
    def arguments(self) -> Arguments:
        """The roots, by disk."""
        return {disk: node for disk, _, node in self.roots}


RootStep = AddStore | AddNode | SetDrive | ReopenFilter | CheckRoots
