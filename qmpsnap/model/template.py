"""A template for clones: a directory that holds a guest's memory and devices, and a record of all its files.

DIR/memory          the guest's memory, which every clone maps copy-on-write
    state           the state of its devices
    template.json   the record: what the machine was, and each file as it was then
    .DIR.partial    while it is being made, beside DIR

The layers of the disks stay where they are, and must stay as they are. An empty image is created beside each
of them, which is based on it: so a commit or a deletion finds that the layer is still needed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal

from msgspec import Meta

from qmpsnap.errors import BadName
from qmpsnap.model.document import AbsolutePath, Count, Text, dump, load, take
from qmpsnap.model.frozen import Frozen, FrozenStruct
from qmpsnap.model.keeper import ENDING
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.names import check_name, fit_name
from qmpsnap.model.view import DiskView, ViewLayer

RECORD: Final = "template.json"
MEMORY: Final = "memory"
STATE: Final = "state"
MAX_RECORD_BYTES: Final = 1 << 20


class FileState(FrozenStruct, frozen=True):
    """Shows that a file is still the same, and was not written to.

    Attributes:
        inode: st_ino.
        size: Bytes; 0 of a block device.
        modified: When it was last written, in nanoseconds since 1970; 0 of a block device.
    """

    inode: Count
    size: Count
    modified: int


class TemplateLayer(FrozenStruct, frozen=True):
    """An image of a disk's chain.

    Attributes:
        file: Its path.
        format: "raw" or "qcow2".
        was: Its state when the template was made.
        parts: Its further files (an external data file), each with its state at that time.
    """

    file: AbsolutePath
    format: Literal["raw", "qcow2"]
    was: FileState
    parts: Mapping[AbsolutePath, FileState] = Frozen()


class TemplateDisk(FrozenStruct, frozen=True):
    """A disk of the machine.

    Attributes:
        layers: The images of its chain, newest first.
        virtual_size: Bytes of the disk.
    """

    layers: Annotated[tuple[TemplateLayer, ...], Meta(min_length=1)]
    virtual_size: Count


class TemplateRecord(FrozenStruct, frozen=True):
    """A template.

    Attributes:
        name: Its name.
        created: ISO 8601 time in UTC.
        fingerprint: Describes the machine; every clone must match it.
        memory: The memory's file.
        state: The file of the devices' state.
        sealed: Whether QEMU opens the memory file read-only, so that its mode can be read-only, too.
        disks: The disks, by name.
        keepers: Each empty image that shows that a layer is needed, with that layer.
    """

    name: Text
    created: Text
    fingerprint: Fingerprint
    memory: FileState
    state: FileState
    sealed: bool
    disks: Mapping[Text, TemplateDisk]
    keepers: Mapping[AbsolutePath, AbsolutePath] = Frozen()

    def kept_state(self, directory: str) -> KeptState:
        """Return the devices' state, for loading."""
        file = posixpath.join(directory, STATE)
        return KeptState("stop", file, "", running=True, fingerprint=self.fingerprint, inode=self.state.inode)

    def views(self) -> tuple[DiskView, ...]:
        """Return how each disk is read."""
        return tuple(
            DiskView(
                name,
                self.name,
                tuple(ViewLayer(layer.file, layer.format) for layer in disk.layers),
                virtual_size=disk.virtual_size,
            )
            for name, disk in self.disks.items()
        )

    def files(self, directory: str) -> dict[str, FileState]:
        """Return the states of the files that must not change, by path."""
        states = {
            posixpath.join(directory, MEMORY): self.memory,
            posixpath.join(directory, STATE): self.state,
        }
        for disk in self.disks.values():
            for layer in disk.layers:
                states |= {layer.file: layer.was, **layer.parts}
        return states


def differences(then: Mapping[str, FileState], now: Mapping[str, FileState | None]) -> tuple[str, ...]:
    """Return why a template can no longer be used, a phrase for each file; none if it can.

    Args:
        then: The states of the files when the template was made, by path.
        now: Their present states; None: there is no such file.
    """
    reasons = []
    for file, was in then.items():
        state = now.get(file)
        if state is None:
            reasons.append(f"{file} is gone")
        elif state.inode != was.inode:
            reasons.append(f"{file} is another file")
        elif state != was:
            reasons.append(f"{file} has been written to")
    return tuple(reasons)


def partial_directory(directory: str) -> str:
    """Return the directory in which a template lies until it is complete."""
    place, name = posixpath.split(directory)
    return posixpath.join(place, fit_name(f".{name}", ".partial"))


def to_text(record: TemplateRecord) -> str:
    """The text of a record's file."""
    return dump(record) + "\n"


def from_text(text: bytes) -> TemplateRecord:
    """Parse a record that `to_text` wrote; it is untrusted.

    Raises:
        ValueError: When it is not a record, has another version, or a field is missing or wrong.
    """
    body = load(text)
    body.pop("version")
    unknown = body.keys() - set(TemplateRecord.__struct_fields__)
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    record = take(TemplateRecord, body)
    try:
        check_name(record.name)
    except BadName as error:
        raise ValueError(error.message) from error
    datetime.fromisoformat(record.created)
    for file in (*record.files(""), *record.keepers):
        if posixpath.normpath(file) != file and file not in {MEMORY, STATE}:
            raise ValueError(f"{file!r} is not a plain path")
    layers = {layer.file for disk in record.disks.values() for layer in disk.layers}
    for file, layer in record.keepers.items():
        if layer not in layers or not file.endswith(ENDING):
            raise ValueError(f"{file!r} is not based on a layer of the template")
    return record
