"""Steps that give a disk another root while its QEMU lives on. Part of the vocabulary in steps.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qmpsnap.plan.job_steps import QmpStep, WaitStep

__all__ = ["AddNode", "AddStore", "CheckRoots", "NewRoot", "ReopenFilter", "RootStep", "SetDrive"]

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class AddNode(QmpStep):
    """Open an image, under no disk yet. QAPI: blockdev-add (block-core.json).

    Attributes:
        node: node-name that it gets.
        file: The image's path.
        format: Its driver.
        backing: node-name of the layer that it stands on; None: as its header says.
    """

    node: str
    file: str
    format: str = "qcow2"
    backing: str | None = None
    command: ClassVar[str] = "blockdev-add"

    @property
    def arguments(self) -> Arguments:
        """The node with its file."""
        options: Arguments = {
            "driver": self.format,
            "node-name": self.node,
            "file": {"driver": "file", "filename": self.file},
        }
        return options if self.backing is None else {**options, "backing": self.backing}


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
    """

    disk: str
    node: str
    file: str
    format: str
    backing: str | None
    chain: tuple[tuple[str, str], ...]


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
        again = (AddNode(self.was.node, self.was.file, self.was.format),) if self.closes else ()
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
    """

    root: NewRoot
    filter: str
    group: str
    was: NewRoot
    closes: bool
    command: ClassVar[str] = "blockdev-reopen"

    @property
    def arguments(self) -> Arguments:
        """All options of the throttle, as the command demands."""
        options = {
            "driver": "throttle",
            "node-name": self.filter,
            "throttle-group": self.group,
            "file": self.root.node,
        }
        return {"options": [options]}

    def back(self) -> tuple[AddNode | ReopenFilter, ...]:
        """The steps that put the old image back."""
        again = (AddNode(self.was.node, self.was.file, self.was.format),) if self.closes else ()
        return (*again, ReopenFilter(self.was, self.filter, self.group, self.root, closes=False))


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
