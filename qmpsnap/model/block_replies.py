"""What QEMU says of its block nodes. QAPI: block-core.json."""

from __future__ import annotations

import json
from collections.abc import Iterator

from msgspec import ValidationError, convert, field

from qmpsnap.model.qapi import Reply, read


class Inserted(Reply, frozen=True):
    """The top node of a device with a medium: of BlockDeviceInfo what query-block is asked for."""

    node_name: str
    ro: bool


class BlockInfo(Reply, frozen=True):
    """A device. QAPI: query-block."""

    device: str = ""
    qdev: str = ""
    inserted: Inserted | None = None


class BlockStats(Reply, frozen=True):
    """A node, with what stands below it. QAPI: query-blockstats.

    These are read one at a time: a chain may be longer than Python's stack is deep.
    """

    device: str = ""
    qdev: str = ""
    node_name: str = ""
    parent: object = None
    backing: object = None

    def chain(self) -> Iterator[BlockStats]:
        """This node, and each that backs the one before."""
        node = self
        yield node
        while node.backing is not None:
            node = read(BlockStats, node.backing, "query-blockstats")
            yield node

    @property
    def lies_on(self) -> BlockStats | None:
        """The node that holds this one's data (`parent`), or None."""
        return read(BlockStats, self.parent, "query-blockstats") if self.parent else None


class SnapshotInfo(Reply, frozen=True):
    """A snapshot inside an image."""

    id: str
    name: str
    vm_state_size: int = 0
    date_sec: int = 0
    date_nsec: int = 0


class ImageInfoSpecificData(Reply, frozen=True):
    """Of what is told of a qcow2 image alone, the name of its external data file."""

    data_file: str = ""


class ImageInfoSpecific(Reply, frozen=True):
    """What is told of images of one format."""

    type: str = ""
    data: ImageInfoSpecificData = ImageInfoSpecificData()


class ImageInfo(Reply, frozen=True):
    """What a node reads from its image."""

    virtual_size: int
    actual_size: int | None = None
    backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: tuple[SnapshotInfo, ...] = ()
    encrypted: bool = False
    format_specific: ImageInfoSpecific = ImageInfoSpecific()


class BlockdevChild(Reply, frozen=True):
    """A node below another one; told since QEMU 11."""

    child: str
    node_name: str


class BlockDirtyInfo(Reply, frozen=True):
    """A dirty bitmap."""

    name: str = ""
    persistent: bool = False
    busy: bool = False
    inconsistent: bool = False


class BlockdevCacheInfo(Reply, frozen=True):
    """How a node caches."""

    direct: bool = False
    no_flush: bool = False


class BlockDeviceInfo(Reply, frozen=True):
    """A node. QAPI: query-named-block-nodes."""

    node_name: str
    drv: str
    file: str
    ro: bool
    image: ImageInfo
    backing_file: str = field(default="", name="backing_file")
    detect_zeroes: str = field(default="off", name="detect_zeroes")
    cache: BlockdevCacheInfo = BlockdevCacheInfo()
    children: tuple[BlockdevChild, ...] = ()
    dirty_bitmaps: tuple[BlockDirtyInfo, ...] = ()


class BlockdevOptions(Reply, frozen=True):
    """How a node was opened, as a file name that begins with `json:` spells it."""

    driver: str = ""
    filename: str = ""
    file: BlockdevOptions | str | None = None
    throttle_group: str = ""
    offset: int | str | None = None
    size: int | str | None = None

    def layers(self) -> Iterator[BlockdevOptions]:
        """These options, and those of each node below on the way to the file."""
        options: BlockdevOptions | str | None = self
        while isinstance(options, BlockdevOptions):
            yield options
            options = options.file


def file_options(name: str) -> BlockdevOptions | None:
    """Return the options that a file name spells; None when it spells none.

    A name that QEMU has cut, at 4095 bytes, spells none either.
    """
    if not name.startswith("json:"):
        return None
    try:
        return convert(json.loads(name.removeprefix("json:")), BlockdevOptions)
    except (ValueError, RecursionError, ValidationError):
        return None


class Fd(Reply, frozen=True):
    """A descriptor in a set."""

    fd: int


class FdsetInfo(Reply, frozen=True):
    """A set of descriptors. QAPI: query-fdsets (misc.json)."""

    fdset_id: int
    fds: tuple[Fd, ...]
