"""QEMU's block graph as we model it: disks, their chains, and the nodes around them.

All values are frozen. A chain is always a tuple of layers, active first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

from msgspec import Struct

from qmpsnap.model.frozen import Frozen, JsonStruct
from qmpsnap.model.picture.boxes import Box, Kind, Panel, base_name, named, stacked
from qmpsnap.model.picture.picture import Picture
from qmpsnap.model.units import size

# Drivers that pass data through: a node of one of these is no image.
FILTER_DRIVERS = frozenset({
    "blkdebug", "blklogwrites", "blkreplay", "blkverify", "commit_top", "compress", "copy-before-write",
    "copy-on-read", "mirror_top", "preallocate", "snapshot-access", "throttle",
})  # fmt: skip

# Drivers of images that a node of another driver may stand on (raw over qcow2), and of several in one.
NESTED_DRIVERS = frozenset({
    "bochs", "cloop", "dmg", "parallels", "qcow", "qcow2", "qed", "quorum", "replication", "vdi", "vhdx",
    "vmdk", "vpc",
})  # fmt: skip

# Protocol drivers whose `file` is a path on the host that runs QEMU.
PATH_DRIVERS = frozenset({"file", "host_cdrom", "host_device"})

LONG_CHAIN = 200
"""Layers. libvirt refuses more, and each look at the graph holds QEMU's main loop for 0.3 s."""

Chains = dict[str, tuple[str, ...]]
"""Files of each disk's chain, active first, by the disk's name."""


class InternalSnapshot(JsonStruct, frozen=True):
    """A snapshot inside a qcow2 file. QAPI: SnapshotInfo (block-core.json).

    Attributes:
        id: Its id in the image, chosen by QEMU; "" in a prediction.
        name: Its name.
        vm_state_size: Bytes of VM state kept with it; 0: none.
        date: When it was taken, by the host's clock, in seconds since 1970; 0 in a prediction.
    """

    id: str
    name: str
    vm_state_size: int = 0
    date: float = 0.0


class Bitmap(JsonStruct, frozen=True):
    """A dirty bitmap. QAPI: BlockDirtyInfo (block-core.json).

    Attributes:
        name: Its name; "" for one that QEMU keeps for itself, as copy-before-write does.
        persistent: Whether it is stored in the image.
        busy: Whether a job or an export uses it.
        inconsistent: Whether it was in use when QEMU was killed; it can only be removed.
    """

    name: str
    persistent: bool = False
    busy: bool = False
    inconsistent: bool = False


class Io(JsonStruct, frozen=True):
    """How QEMU accesses an image, as far as it reports that. QAPI: BlockDeviceInfo (block-core.json).

    It reports neither `discard` nor `aio`. Whether a write waits for the disk depends on the device.

    Attributes:
        direct: Whether the host's page cache is bypassed (O_DIRECT), as with cache=none.
        no_flush: Whether flushes are ignored, as with cache=unsafe.
        detect_zeroes: What happens to zeroes that the guest writes: "off", "on" or "unmap".
    """

    direct: bool = False
    no_flush: bool = False
    detect_zeroes: str = "off"


class Node(JsonStruct, frozen=True):
    """One node of QEMU's block graph, as query-named-block-nodes lists it.

    Attributes:
        name: node-name; one that begins with '#' is QEMU's own and may change.
        driver: QEMU's driver name ("qcow2", "raw", "file", "throttle").
        file: Path where there is one, else the file name as QEMU spells it.
        read_only: Whether QEMU has it open read-only.
        backing: Its backing file, or "".
        spelled: QEMU's own name for it where that is not `file`: a relative one, json:, a descriptor set.
    """

    name: str
    driver: str
    file: str
    read_only: bool = False
    backing: str = ""
    spelled: str = ""

    @property
    def is_filter(self) -> bool:
        """Whether the node passes data through and is not an image."""
        return self.driver in FILTER_DRIVERS


class Layer(Struct, frozen=True):
    """One image of a chain.

    Attributes:
        node: node-name of the format node.
        file_node: node-name of the node below it that is its file; "" where that is not known.
        file: Path of the file that holds the image, whatever drivers lie between (throttle, blkdebug, raw
            and so on); as QEMU spells it where it lies in no file (nbd), or in several (quorum).
        format: Driver of the format node ("qcow2", "raw").
        virtual_size: Bytes that the guest sees.
        allocated: Bytes on the host, or None where QEMU does not know.
        backing: Backing file as the header records it, or None.
        backing_format: Its format as recorded, or None.
        read_only: Whether QEMU has the layer open read-only.
        local: Whether `file` is a path on the host that runs QEMU.
        window: Whether the image is only a part of the file: QEMU was given an offset or a size (driver raw).
        inner: Driver of an image that lies between the layer and its file (raw over a node of qcow2), or of
            several that are one layer (quorum); "" where the file is the layer's image.
        snapshots: Internal snapshots of the image.
        bitmaps: Dirty bitmaps of the node.
        data_file: Path of the external data file of a qcow2 image, else as QEMU spells it; "" without one.
        io: How QEMU reads and writes it.
        encrypted: Whether its data are encrypted (LUKS, inside qcow2 or by a node of its own).
        secret: Id of the secret object that QEMU opened it with; "" where it is not encrypted, or not known.
    """

    node: str
    file: str
    format: str
    virtual_size: int
    allocated: int | None = None
    backing: str | None = None
    backing_format: str | None = None
    read_only: bool = False
    local: bool = True
    window: bool = False
    snapshots: tuple[InternalSnapshot, ...] = ()
    bitmaps: tuple[Bitmap, ...] = ()
    data_file: str = ""
    io: Io = Io()
    encrypted: bool = False
    file_node: str = ""
    secret: str = ""
    inner: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Every file of the image: its own, and the external data file if there is one.

        Other multi-file formats (vmdk) can neither be migrated nor hold snapshots.
        """
        return (self.file, self.data_file) if self.data_file else (self.file,)

    def to_json(self, *, active: bool, invalid: bool) -> dict[str, object]:
        """The layer as `chain --json` prints it.

        Args:
            active: Whether the guest writes to it.
            invalid: Whether it no longer holds its moment.
        """
        return {
            "node": self.node,
            "file": self.file,
            "format": self.format,
            "virtual_size": self.virtual_size,
            "allocated": self.allocated,
            "backing": self.backing,
            "backing_format": self.backing_format,
            "read_only": self.read_only,
            "active": active,
            "invalid": invalid,
            "snapshots": [snapshot.to_json() for snapshot in self.snapshots],
            "bitmaps": [bitmap.to_json() for bitmap in self.bitmaps if bitmap.name],
        }

    def box(self, *, active: str, invalid: bool) -> Box:
        """The layer in a picture.

        Args:
            active: What it says of the active layer; "" for another one.
            invalid: Whether it no longer holds its moment.
        """
        lines = (
            *((active,) if active else ()),
            f"{self.format}, {size(self.virtual_size)}, {size(self.allocated)} allocated",
            *((f"node {self.node}",) if self.node else ()),
            *named("inside", [snapshot.name for snapshot in self.snapshots]),
            *named("bitmaps", [bitmap.name for bitmap in self.bitmaps if bitmap.name]),
            *(("INVALID: a commit wrote into it",) if invalid else ()),
        )
        kind: Kind = "bad" if invalid else "active" if active else "layer"
        return Box(self.file, base_name(self.file), lines, kind, full=self.file)


class Filter(Struct, frozen=True):
    """A filter node above or between the layers of a disk.

    Attributes:
        node: node-name.
        driver: QEMU's driver name.
        group: A throttle's group, if QEMU reports it.
        io: How it was opened; the file below may have been opened otherwise.
        under: node-name of the layer right above it; "" where no layer is above it.
    """

    node: str
    driver: str
    group: str = ""
    io: Io = Io()
    under: str = ""

    def to_json(self) -> dict[str, object]:
        """The filter as `chain --json` prints it."""
        return {"node": self.node, "driver": self.driver}

    def box(self) -> Box:
        """The filter in a picture."""
        return Box(f"filter {self.node}", self.node, (self.driver,), "filter")


class Disk(Struct, frozen=True, dict=True):
    """What the guest sees, with its chain.

    Attributes:
        name: Its name in output: qdev id, else drive id, else the part of its device's QOM path
            that distinguishes it (`device[0]`), else, without a device, the root node's name.
        qdev: As query-block gives it: a QOM path or a plain id, or "".
        drive: The id of a -drive, or "".
        root: node-name of the top node, which may be a filter; filters that QEMU's jobs insert and name
            themselves (mirror_top, commit_top) are left out. "" for an empty drive.
        layers: The chain, active first; empty for an empty drive.
        filters: Filters between the root and the base, the root's first; without those that QEMU's
            jobs insert, and without nodes between a layer and its file.
        read_only: Whether the guest may not write.
    """

    name: str
    qdev: str = ""
    drive: str = ""
    root: str = ""
    layers: tuple[Layer, ...] = ()
    filters: tuple[Filter, ...] = ()
    read_only: bool = False

    @cached_property
    def writable(self) -> bool:
        """Whether it has a medium that the guest can write to."""
        return bool(self.layers) and not self.read_only

    @cached_property
    def active(self) -> Layer:
        """The newest layer, the one the guest writes to."""
        return self.layers[0]

    @cached_property
    def base(self) -> Layer:
        """The oldest layer."""
        return self.layers[-1]

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Files of the chain, active first."""
        return tuple(layer.file for layer in self.layers)

    def to_json(self, *, invalid: Collection[str] = ()) -> dict[str, object]:
        """The disk as `chain --json` prints it; `invalid`: files that no longer hold their moment."""
        return {
            "name": self.name,
            "qdev": self.qdev,
            "drive": self.drive,
            "root": self.root,
            "read_only": self.read_only,
            "layers": [
                layer.to_json(active=layer is self.active, invalid=layer.file in invalid)
                for layer in self.layers
            ],
            "filters": [node.to_json() for node in self.filters],
        }

    def panel(self, *, invalid: Collection[str] = ()) -> Panel:
        """The disk in a picture: its filters and layers, the root at the top.

        Args:
            invalid: Files that no longer hold their moment.
        """
        boxes = [node.box() for node in self.filters if not node.under]
        for layer in self.layers:
            active = (
                "" if layer is not self.active else "read-only disk" if self.read_only else "active layer"
            )
            boxes.append(layer.box(active=active, invalid=layer.file in invalid))
            boxes += [node.box() for node in self.filters if node.under and node.under == layer.node]
        empty = Box("", "(empty)", kind="more")
        return Panel(self.name, tuple(boxes) or (empty,), stacked(boxes))


class Graph(Struct, frozen=True):
    """All disks of a machine, and every node that QEMU has.

    Attributes:
        disks: By the disk's name, in QEMU's order.
        nodes: Every node by its name, including those of no disk.
    """

    disks: Mapping[str, Disk]
    nodes: Mapping[str, Node] = Frozen()

    def first_of(self, disk: Disk) -> Disk:
        """The first disk with the same root node: itself, unless two devices share a node."""
        return next((other for other in self.disks.values() if disk.root and other.root == disk.root), disk)

    def writable(self) -> tuple[Disk, ...]:
        """The disks with a medium that the guest can write to; of devices on the same node only the first."""
        return tuple(disk for disk in self.disks.values() if disk.writable and self.first_of(disk) is disk)

    def left_out(self, chosen: Collection[Disk]) -> list[str]:
        """The other disks, each with the reason why it is left out: `cd0 (empty)`."""
        return [
            f"{disk.name} "
            f"({'empty' if not disk.layers else 'read-only' if disk.read_only else self._twin(disk)})"
            for disk in self.disks.values()
            if disk not in chosen
        ]

    def _twin(self, disk: Disk) -> str:
        return f"the same node as {self.first_of(disk).name}"

    def chains(self, *names: str) -> Chains:
        """Files of each disk's chain, active first; of all disks when none is named."""
        return {name: self.disks[name].files for name in (names or self.disks) if name in self.disks}

    def picture(self, *, invalid: Collection[str] = ()) -> Picture:
        """The disks with their chains and filters; `VM.picture()` shows the jobs, too.

        Args:
            invalid: Files that no longer hold their moment.
        """
        panels = tuple(disk.panel(invalid=invalid) for disk in self.disks.values())
        return Picture(summary(self.chains()), (panels,))

    def _repr_svg_(self) -> str:
        return self.picture().render("svg")

    def to_json(self, *, invalid: Collection[str] = ()) -> dict[str, object]:
        """The disks as `chain --json` prints them.

        Args:
            invalid: Files that no longer hold their moment, from `VM.jobs.interrupted(live=True)`.
        """
        return {"disks": [disk.to_json(invalid=invalid) for disk in self.disks.values()]}


def summary(chains: Mapping[str, tuple[str, ...]]) -> str:
    """The chains in words: `vda: 2 layers, the active one is sn1.qcow2`; the title of a picture."""
    return "; ".join(map(_counted, chains, chains.values())) or "no disks"


def _counted(disk: str, files: tuple[str, ...]) -> str:
    match files:
        case ():
            return f"{disk}: empty"
        case (active,):
            return f"{disk}: one layer, {base_name(active)}"
        case (active, *_):
            return f"{disk}: {len(files)} layers, the active one is {base_name(active)}"
    raise AssertionError(files)


def draw(files: tuple[str, ...]) -> str:
    """Draw one chain, base first: `[base] <- [sn1] <- [sn2*]`.

    Args:
        files: The chain's files, active first.
    """
    if not files:
        return "(empty)"
    names = [_short(file) for file in reversed(files)]
    names[-1] += "*"
    return " <- ".join(f"[{name}]" for name in names)


def _short(file: str) -> str:
    name = file.rpartition("/")[2] or file
    for suffix in (".qcow2", ".raw", ".img"):
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    return name
