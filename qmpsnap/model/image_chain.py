"""The chain of images of a disk whose machine is off, as the images' own headers have it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from qmpsnap.model.header import Header

ImageFormat = Literal["qcow2", "raw"]
"""A format in which an image of a machine that is off is opened."""


class ImageLayer(Struct, frozen=True):
    """An image that was checked, and how it has to be opened.

    Attributes:
        file: Its absolute path, relative to which its header's names count.
        format: Its format, which the caller gave or the overlay records.
        virtual_size: Bytes of the disk that the guest sees.
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
        """The backing file's name as the header has it."""
        return self.header.backing if self.header is not None else None

    @property
    def opened(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """Each file that has to be opened for it, with its st_dev and st_ino."""
        own = (self.file, (self.device, self.inode))
        if self.data_file is None or self.data_id is None:
            return (own,)
        return own, (self.data_file, self.data_id)


class ImageChain(Struct, frozen=True):
    """The images of one disk.

    Attributes:
        disk: Its name, which the caller chose.
        layers: Active first; at least one.
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
