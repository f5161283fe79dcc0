"""What QEMU says of its block nodes. QAPI: block-core.json."""

from __future__ import annotations

import json
from collections.abc import Iterator

from msgspec import ValidationError, convert, field

from qmpsnap.model.qapi import Reply, read


class Inserted(Reply, frozen=True):
    """The top node of a device with a medium: the part of BlockDeviceInfo that we read from query-block."""

    node_name: str
    ro: bool


class BlockInfo(Reply, frozen=True):
    """A device. QAPI: query-block."""

    device: str = ""
    qdev: str = ""
    inserted: Inserted | None = None
    io_status: str = "ok"


class BlockStats(Reply, frozen=True):
    """A node, with the nodes below it. QAPI: query-blockstats.

    Each is converted when it is reached: a chain may be longer than Python's stack is deep.
    """

    device: str = ""
    qdev: str = ""
    node_name: str = ""
    parent: object = None
    backing: object = None

    def chain(self) -> Iterator[BlockStats]:
        """This node, and each backing node in turn."""
        node = self
        yield node
        while node.backing is not None:
            node = read(BlockStats, node.backing, "query-blockstats")
            yield node

    @property
    def data_node(self) -> BlockStats | None:
        """The node that holds this one's data (`parent`), or None."""
        return read(BlockStats, self.parent, "query-blockstats") if self.parent else None


class SnapshotInfo(Reply, frozen=True):
    """A snapshot inside an image."""

    id: str
    name: str
    vm_state_size: int = 0
    date_sec: int = 0
    date_nsec: int = 0


class EncryptionInfo(Reply, frozen=True):
    """How the data of a qcow2 image are encrypted."""

    uuid: str = ""


class ImageInfoSpecificData(Reply, frozen=True):
    """Of what is told of an image of one format: its external data file, and the UUID of its LUKS header."""

    data_file: str = ""
    encrypt: EncryptionInfo = EncryptionInfo()
    uuid: str = ""


class ImageInfoSpecific(Reply, frozen=True):
    """What QEMU says of images of one format only."""

    type: str = ""
    data: ImageInfoSpecificData = ImageInfoSpecificData()


class ImageInfo(Reply, frozen=True):
    """An image, as its node reports it."""

    virtual_size: int
    actual_size: int | None = None
    backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: tuple[SnapshotInfo, ...] = ()
    encrypted: bool = False
    format_specific: ImageInfoSpecific = ImageInfoSpecific()


class BlockdevChild(Reply, frozen=True):
    """A child of a node; reported since QEMU 11."""

    child: str
    node_name: str


class BlockDirtyInfo(Reply, frozen=True):
    """A dirty bitmap."""

    name: str = ""
    persistent: bool = False
    busy: bool = False
    inconsistent: bool = False


class BlockdevCacheInfo(Reply, frozen=True):
    """A node's cache mode."""

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
    """The options that a node was opened with, as a file name that begins with `json:` spells them."""

    driver: str = ""
    filename: str = ""
    file: BlockdevOptions | str | None = None
    throttle_group: str = ""
    offset: int | str | None = None
    size: int | str | None = None
    key_secret: str = ""
    encrypt_key_secret: str = field(default="", name="encrypt.key-secret")

    def layers(self) -> Iterator[BlockdevOptions]:
        """These options, and those of each node below, down to the file."""
        options: BlockdevOptions | str | None = self
        while isinstance(options, BlockdevOptions):
            yield options
            options = options.file

    @property
    def secret(self) -> str:
        """Id of the secret object that decrypts what is read; "" when nothing does."""
        secrets = (options.encrypt_key_secret or options.key_secret for options in self.layers())
        return next(filter(None, secrets), "")


def file_options(name: str) -> BlockdevOptions | None:
    """Return the options that a file name spells; None if it spells none.

    QEMU truncates names at 4095 bytes; a truncated one spells no options.
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
