"""What is read to see a disk as it was at a moment: its layers, each with its format."""

from __future__ import annotations

from qmpsnap.model.frozen import JsonStruct
from qmpsnap.model.graph import InternalSnapshot


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
    """How a disk is read as it was at a moment.

    Attributes:
        disk: The disk's name.
        moment: The moment's name.
        layers: The images, newest first; nothing else is opened, whatever their headers name.
        virtual_size: Bytes that the guest saw.
        allocated: Bytes that the layers take on the host, as far as that is known: no more is copied.
        snapshot: The snapshot inside the newest layer that holds the moment; None: the layer itself does.
        written: Whether the guest writes to the newest layer meanwhile, beside the snapshot inside it.
    """

    disk: str
    moment: str
    layers: tuple[ViewLayer, ...]
    virtual_size: int
    allocated: int | None = None
    snapshot: InternalSnapshot | None = None
    written: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the layers, newest first."""
        return tuple(layer.file for layer in self.layers)
