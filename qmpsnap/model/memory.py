"""The note at the end of a memory file: whose VM state it is, and which layers it needs.

QEMU reads a migration stream up to its end mark and no further, so whatever follows is ours. A truncated
file, and a file from elsewhere, have no note.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from msgspec import Struct, field

from qmpsnap.model.document import Count, Text, dump, load, take
from qmpsnap.model.frozen import Frozen, FrozenStruct
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.machine import Fingerprint

_MAGIC = b"QMPSNAP\x01"
_TAIL = struct.Struct(">Q8s")
TAIL_BYTES = _TAIL.size
MAX_NOTE_BYTES = 16 << 20
_OTHERS_WRITE = 0o022


class LayerState(FrozenStruct, frozen=True, array_like=True):
    """A layer as it was when the memory was written.

    Attributes:
        disk: The disk's name.
        file: The layer's path.
        inode: st_ino.
        size: Bytes.
        modified: When it was last written, in nanoseconds since 1970.
    """

    disk: Text
    file: Text
    inode: Count
    size: Count
    modified: Count


class MemoryNote(FrozenStruct, frozen=True):
    """What a memory file is.

    Attributes:
        id: Id of the operation that wrote it.
        name: The checkpoint's name; "" for a file of `save`.
        stream_bytes: Bytes of QEMU's stream, which begins the file.
        running: Whether the guest was running.
        fingerprint: The machine that it was saved from.
        layers: Every file of every layer at that time, the disk's active one first; for a checkpoint, those
            that hold it.
    """

    id: Text
    name: Text
    stream_bytes: Count = field(name="bytes")
    running: bool
    fingerprint: Fingerprint
    layers: tuple[LayerState, ...]

    def to_bytes(self) -> bytes:
        """The bytes to append to the stream."""
        text = dump(self).encode("ascii")
        return text + _TAIL.pack(len(text), _MAGIC)

    @classmethod
    def from_bytes(cls, text: bytes) -> MemoryNote:
        """Read what `to_bytes` returned, without its tail.

        Raises:
            ValueError: When it is not one of our notes, or of another version.
        """
        try:
            return take(cls, load(text))
        except ValueError as error:
            raise ValueError(f"its note: {error}") from error


def note_size(tail: bytes) -> int:
    """Bytes of the note that precedes this tail, the last `TAIL_BYTES` of a file.

    Raises:
        ValueError: When there is none.
    """
    if len(tail) == TAIL_BYTES:
        size, magic = _TAIL.unpack(tail)
        if magic == _MAGIC and size <= MAX_NOTE_BYTES:
            return int(size)
    raise ValueError("it does not end in a note of ours: it was cut, or somebody else wrote it")


class MemoryFact(Struct, frozen=True):
    """What a file of VM state is, as far as it can be seen from outside.

    Attributes:
        path: As in the `Ask`.
        size: Bytes; -1 if there is no such file.
        note: Its note, or None.
        tags: Of a store (a qcow2 image): names of the VM states inside.
        inside: Of a qcow2 image: the snapshots inside it.
        sizes: Of a qcow2 image: bytes of its disk at each snapshot inside, by the snapshot's name.
        problem: Why there is no note, or "".
        inode: st_ino.
        user: Id of its owner.
        ours: Whether the owner is the superuser or our own user.
        mode: Its permissions.
        links: How many names it has.
        exposed: Whether other users can put files into its directory.
    """

    path: str
    size: int = -1
    note: MemoryNote | None = None
    problem: str = ""
    tags: tuple[str, ...] = ()
    inside: tuple[InternalSnapshot, ...] = ()
    sizes: Mapping[str, int] = Frozen()
    inode: int = 0
    user: int = 0
    ours: bool = True
    mode: int = 0o600
    links: int = 1
    exposed: bool = False

    def foreign(self, *, inode: int = 0, user: int | None = None) -> str:
        """Why the file may not be the one that we created, or "".

        Args:
            inode: That of the file that was created; 0 if not recorded.
            user: Id of the owner that it was given then; None if not recorded.
        """
        if self.links != 1:
            return f"it has {self.links} names, and may be any file of the host"
        if self.mode & _OTHERS_WRITE:
            return f"others may write to it (mode {self.mode:o})"
        if not self.ours and self.user != user:
            return f"it belongs to the user {self.user}"
        if inode and self.inode != inode and self.exposed:
            return "it is not the file that was made, and others may put files into its directory"
        return ""

    @property
    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.size >= 0
