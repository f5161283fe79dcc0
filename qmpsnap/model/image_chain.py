"""The chain of images of a disk whose machine is off, as read from the headers."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from qmpsnap.model.header import Header

ImageFormat = Literal["qcow2", "raw"]
"""A format in which an image of a machine that is off can be opened."""


class ImageLayer(Struct, frozen=True):
    """An image that was checked, with what is needed to open it.

    Attributes:
        file: Its absolute path; relative names in its header are resolved from its directory.
        format: Its format, which the caller gave or the overlay records.
        virtual_size: Size of the disk in bytes.
        device: st_dev.
        inode: st_ino.
        header: The header of a qcow2 image.
        data_file: Absolute path of its external data file, which is raw.
        data_id: st_dev and st_ino of that file.
    """

    file: str
    format: ImageFormat
    virtual_size: int
    device: int
    inode: int
    header: Header | None = None
    data_file: str | None = None
    data_id: tuple[int, int] | None = None

    @property
    def backing(self) -> str | None:
        """The name of the backing file in the header, or None."""
        return self.header.backing if self.header is not None else None

    @property
    def opened(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """Each file that has to be opened for the image, with its st_dev and st_ino."""
        own = (self.file, (self.device, self.inode))
        if self.data_file is None or self.data_id is None:
            return (own,)
        return own, (self.data_file, self.data_id)


class ImageChain(Struct, frozen=True):
    """The images of one disk.

    Attributes:
        disk: The disk's name, which the caller chose.
        layers: The images, active first; never empty.
    """

    disk: str
    layers: tuple[ImageLayer, ...]

    @property
    def active(self) -> ImageLayer:
        """The newest layer, which is the image that the caller named."""
        return self.layers[0]

    @property
    def files(self) -> tuple[str, ...]:
        """The path of each layer, active first."""
        return tuple(layer.file for layer in self.layers)
