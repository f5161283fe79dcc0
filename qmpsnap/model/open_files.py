"""Which file QEMU has open behind each name of its graph.

While a machine runs, its image can be moved, replaced or removed, and QEMU keeps using the
file that it has open. Only when it opens the name again does it get the other file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from qmpsnap.model.graph import PATH_DRIVERS

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph

__all__ = ["OpenFile", "OpenName", "OpenState", "Reopens", "is_temporary", "open_names"]

OpenState = Literal["same", "moved", "unlinked", "unknown"]
Reopens = Literal["same", "nothing", "other"]

_TEMPORARY = "vl."  # block.c: create_tmp_file, the active layer in snapshot mode


class OpenFile(Struct, frozen=True):
    """What QEMU has open under one name, and where that file is now.

    Attributes:
        name: The path as the graph has it.
        state: "same": the name leads to the file that QEMU has open. "moved": it does not, and that file
            has another name. "unlinked": that file no longer has a name. "unknown": neither is known.
        path: A path to QEMU's file; "" when none is known.
        device: st_dev of QEMU's file; 0 when it is not known.
        inode: st_ino of QEMU's file; 0 when it is not known.
        replaced: Whether the name leads to another file.
        reopens: What QEMU would get by opening its own spelling of the name again, as it does to write
            into a layer that it has read-only: a relative name is resolved in QEMU's working directory.
    """

    name: str
    state: OpenState
    path: str = ""
    device: int = 0
    inode: int = 0
    replaced: bool = False
    reopens: Reopens = "same"

    @property
    def known(self) -> bool:
        """Whether we know which file QEMU has open."""
        return self.inode != 0


def is_temporary(path: str) -> bool:
    """Whether this is the name of a temporary layer of snapshot mode (-snapshot, snapshot=on)."""
    name = path.rpartition("/")[2]
    return name.startswith(_TEMPORARY) and len(name) == len(_TEMPORARY) + 6


class OpenName(Struct, frozen=True):
    """A name under which QEMU opened a file, and the image in it.

    Attributes:
        name: The path as the graph has it.
        spelled: The name as QEMU has it.
        format: Driver of the image in it; "" when it is not a layer of a disk.
        virtual_size: Bytes that the guest sees.
    """

    name: str
    spelled: str
    format: str = ""
    virtual_size: int = 0


def open_names(graph: Graph) -> tuple[OpenName, ...]:
    """Every file that a node of the graph has open: layers, data files, extents, targets."""
    layers = {layer.file: layer for disk in graph.disks.values() for layer in disk.layers if layer.local}
    found: dict[str, OpenName] = {}
    for node in graph.nodes.values():
        if node.driver in PATH_DRIVERS and node.file.startswith("/"):
            layer = layers.get(node.file)
            image = (layer.format, layer.virtual_size) if layer is not None else ("", 0)
            found.setdefault(node.file, OpenName(node.file, node.spelled or node.file, *image))
    for file, layer in layers.items():
        if file.startswith("/"):
            found.setdefault(file, OpenName(file, file, layer.format, layer.virtual_size))
    return tuple(found.values())
