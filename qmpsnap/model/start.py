"""How a second QEMU of a machine must differ from the first; what a launcher is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from qmpsnap.model.frozen import Frozen

RAM_ID: Final = "pc.ram"
"""Id of the object that is the memory of a pc or q35 machine that was started without an object."""

USES_PATH: Final = "x-use-canonical-path-for-ramblock-id"
"""Property of a memory object: whether its block has the object's path for a name; else it has its id.

Machine types up to 3.1 set it for files and memfds. QEMU: backends/hostmem.c, hw/core/machine.c.
"""

_OBJECTS: Final = "/objects/"


def block_name(id: str, *, uses_path: bool) -> str:  # noqa: A002 - QEMU calls it so
    """The name that the memory of an object has in VM state; QEMU loads it into no other block."""
    return f"{_OBJECTS}{id}" if uses_path else id


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """The guest's memory as a file that QEMU maps.

    Attributes:
        file: Path of the file; absolute.
        size_bytes: Size of the guest's memory.
        block: Name that the guest's memory has in VM state: the id of the object, or "/objects/" and the id.
        share: Whether what the guest writes goes into the file; else the file is only read, and each QEMU has
            a copy of its own of what its guest changes (copy on write).
        sealed: Whether QEMU opens the file read-only; not with `share`. QEMU 7.2 has no such option.
    """

    file: str
    size_bytes: int
    share: bool
    block: str = RAM_ID
    sealed: bool = False

    @property
    def id(self) -> str:
        """Id of the memory object."""
        return self.block.removeprefix(_OBJECTS)

    @property
    def uses_path(self) -> bool:
        """Whether the block has the object's path for a name."""
        return self.block.startswith(_OBJECTS)

    @property
    def properties(self) -> Mapping[str, object]:
        """The memory object, as `-object` takes it in JSON.

        QAPI: MemoryBackendFileProperties (qom.json).
        """
        seal = {"readonly": True, "rom": "off"} if self.sealed else {}
        return Frozen(
            {
                "qom-type": "memory-backend-file",
                "id": self.id,
                "size": self.size_bytes,
                "mem-path": self.file,
                "share": self.share,
                USES_PATH: self.uses_path,
                **seal,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a new QEMU must differ from the first QEMU of the machine; the argument of a launcher.

    Everything else (devices, CPU, size of the memory) must be as in the first. Whatever only one process can
    have (listening sockets, ports, a pid file) must be different, unless the new QEMU is alone.

    Attributes:
        disks: The image that each disk starts from, by the disk's name; each is a qcow2 image.
        nodes: Of each of these disks that has an encrypted layer, the options that open its image, as
            `-blockdev` takes them in JSON, without a node name. They name the secret object of each layer.
        memory: The file that is the guest's memory; None: memory as in the first QEMU.
        incoming: Whether QEMU waits for VM state, which qmpsnap then loads.
        paused: Whether the guest stays paused until qmpsnap resumes it; with `incoming` it always does.
        directory: A directory for the new QEMU's sockets and logs, which nobody else uses; "": none.
        monitors: Paths of unix sockets on which QEMU has to listen for further QMP clients, one client each.
        alone: Whether no other QEMU of the machine runs, so that this one may have its network connections:
            forwarded ports, a tap, a socket.
    """

    disks: Mapping[str, str] = field(default_factory=Frozen)
    nodes: Mapping[str, Mapping[str, object]] = field(default_factory=Frozen)
    memory: GuestMemory | None = None
    incoming: bool = False
    paused: bool = False
    directory: str = ""
    monitors: tuple[str, ...] = ()
    alone: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """QEMU's arguments for memory, VM state and monitors, to be appended to the machine's own.

        Those of the machine must not name another memory object (`-machine memory-backend=`, `-mem-path`).
        """
        words: list[str] = []
        if self.memory is not None:
            words += ["-object", json.dumps(dict(self.memory.properties))]
            words += ["-machine", f"memory-backend={self.memory.id.replace(',', ',,')}"]
        if self.incoming or self.paused:
            words += ["-S"]
        if self.incoming:
            words += ["-incoming", "defer"]
        for path in self.monitors:
            words += ["-qmp", f"unix:{path.replace(',', ',,')},server=on,wait=off"]
        return tuple(words)
