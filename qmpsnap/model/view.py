"""The layers, with their formats, from which a disk is read as it was at a moment."""

from __future__ import annotations

from qmpsnap.model.frozen import JsonStruct
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.layer_stamps import WrittenLayer


class ViewLayer(JsonStruct, frozen=True):
    """One image that is read.

    Attributes:
        file: Its path.
        format: Driver of the image ("qcow2", "raw").
        is_device: Whether it is a block device.
        data_file: Path of its external data file; "" without one.
    """

    file: str
    format: str
    is_device: bool = False
    data_file: str = ""

    @property
    def backed(self) -> bool:
        """Whether an image of this format can have a backing file."""
        return self.format not in {"raw", "luks"}


class DiskView(JsonStruct, frozen=True):
    """How to read a disk as it was at a moment.

    Attributes:
        disk: The disk's name.
        moment: The moment's name.
        layers: The images, newest first; nothing else is opened, whatever their headers name.
        virtual_size: Size of the disk in bytes.
        allocated: Bytes of the layers on the host, or None: a copy has at most as many.
        snapshot: The snapshot inside the newest layer that holds the moment; None: the layer itself holds it.
        written: Whether the guest may write to the newest layer, which has the snapshot inside.
        written_since: Layers to which somebody else has written after the snapshot, which they hold.
    """

    disk: str
    moment: str
    layers: tuple[ViewLayer, ...]
    virtual_size: int
    allocated: int | None = None
    snapshot: InternalSnapshot | None = None
    written: bool = False
    written_since: tuple[WrittenLayer, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the layers, newest first."""
        return tuple(layer.file for layer in self.layers)
