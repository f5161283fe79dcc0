"""Joins QEMU's replies about its block nodes into one graph.

It takes three commands. query-block lists the disks; query-blockstats is the only one that names every node
along a chain; query-named-block-nodes describes each node. They are joined by node name.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from qmpsnap.errors import Malformed
from qmpsnap.model.block_replies import (
    BlockDeviceInfo,
    BlockInfo,
    BlockStats,
    FdsetInfo,
    ImageInfo,
    file_options,
)
from qmpsnap.model.disk_names import disk_names
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import (
    FILTER_DRIVERS,
    NESTED_DRIVERS,
    PATH_DRIVERS,
    Bitmap,
    Disk,
    Filter,
    Graph,
    InternalSnapshot,
    Io,
    Layer,
    Node,
)
from qmpsnap.model.header import backing_path
from qmpsnap.model.qapi import read

GRAPH_QUERIES: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("query-block", Frozen({})),
    ("query-blockstats", Frozen({})),
    ("query-named-block-nodes", Frozen({"flat": True})),
)
"""The commands, with arguments, whose replies make `GraphReplies`, in this order."""

_SEVERAL = frozenset({"quorum", "replication"})  # drivers of a node on several images

FDSET = "/dev/fdset/"
"""How the name of a set of descriptors begins. QAPI: add-fd (misc.json)."""

OWN_FDS = ("/proc/self/fd/", "/dev/fd/")
"""How the name of a descriptor begins that QEMU inherited."""


class GraphMoved(Exception):
    """The three replies do not agree: the graph has changed between them, so ask again."""


class GraphReplies(Struct, frozen=True):
    """The replies to `GRAPH_QUERIES`.

    QAPI: query-block, query-blockstats, query-named-block-nodes (block-core.json).
    """

    block: list[BlockInfo]
    stats: list[BlockStats]
    named: list[BlockDeviceInfo]

    @classmethod
    def read(cls, block: object, stats: object, named: object) -> GraphReplies:
        """Convert the replies.

        Raises:
            Malformed: When one does not have the schema's shape.
        """
        return cls(
            read(list[BlockInfo], block, "query-block"),
            read(list[BlockStats], stats, "query-blockstats"),
            read(list[BlockDeviceInfo], named, "query-named-block-nodes"),
        )


def odd_names(replies: GraphReplies) -> tuple[str, ...]:
    """File names that QEMU uses, if one of them has no meaning outside QEMU; else none.

    Those are relative names, sets of descriptors (/dev/fdset/N), and QEMU's own descriptors.
    """
    names = tuple(entry.file for entry in replies.named if entry.drv in PATH_DRIVERS)
    odd = any(name.startswith((FDSET, *OWN_FDS)) or not name.startswith("/") for name in names)
    return tuple(dict.fromkeys(names)) if odd else ()


def parse_fdsets(reply: object) -> dict[str, tuple[int, ...]]:
    """The descriptors of each set, by the file name that stands for the set.

    Raises:
        Malformed: When the reply does not have the schema's shape.

    QAPI: query-fdsets (misc.json).
    """
    sets = read(list[FdsetInfo], reply, "query-fdsets")
    return {f"{FDSET}{fdset.fdset_id}": tuple(entry.fd for entry in fdset.fds) for fdset in sets}


def parse_graph(replies: GraphReplies, *, cwd: str = "", real: Mapping[str, str] = Frozen({})) -> Graph:
    """Join the replies into one graph.

    Args:
        replies: QEMU's replies.
        cwd: QEMU's working directory, if known; relative file names are resolved against it.
        real: Paths of the files that QEMU has open under its odd names (`odd_names`), as far as known.

    Raises:
        GraphMoved: When a node is named in one reply and missing in another.
        Malformed: When two disks cannot be distinguished, or a node low in a chain has another shape.
    """
    try:
        return _Join(replies, cwd, real).graph()
    except ValueError as error:
        raise Malformed(f"QEMU's block graph does not have the expected shape: {error}") from error


def _group(entry: BlockDeviceInfo) -> str:
    """A throttle's group, which QEMU reports only in the json: file name."""
    options = file_options(entry.file)
    return options.throttle_group if options else ""


class _Join(Struct, frozen=True):
    replies: GraphReplies
    cwd: str
    real: Mapping[str, str]

    def graph(self) -> Graph:
        entries = {entry.node_name: entry for entry in self.replies.named}
        # The protocol node of each path; a writable image has only one, because QEMU locks it.
        paths = {
            self._absolute(entry.file): entry for entry in self.replies.named if entry.drv in PATH_DRIVERS
        }
        under = dict(_data_nodes(self.replies.stats))
        nodes = {name: self._node(entry, entries, under) for name, entry in entries.items()}
        nodes |= self._truncated(nodes, paths)
        chains = {(stats.device, stats.qdev): stats for stats in self.replies.stats}
        disks: list[Disk] = []
        for device in self.replies.block:
            key = device.device, device.qdev
            if not any(key):
                continue  # its device is being unplugged, and disappears within a tenth of a second
            if key not in chains:
                raise GraphMoved(key)
            disks.append(self._disk(device, chains[key], entries, nodes, paths, under))
        names = disk_names([(disk.qdev, disk.drive, disk.root) for disk in disks])
        named = {name: replace(disk, name=name) for name, disk in zip(names, disks, strict=True)}
        return Graph(Frozen(named), Frozen(nodes))

    def _node(
        self, entry: BlockDeviceInfo, entries: Mapping[str, BlockDeviceInfo], under: Mapping[str, str]
    ) -> Node:
        path = self._file(entry, entries, under)
        spelled = "" if entry.file == path else entry.file
        return Node(entry.node_name, entry.drv, path, entry.ro, self._absolute(entry.backing_file), spelled)

    def _file(
        self, entry: BlockDeviceInfo, entries: Mapping[str, BlockDeviceInfo], under: Mapping[str, str]
    ) -> str:
        """The path behind a node; QEMU's spelling of it if there is no file, or several (quorum).

        Some drivers spell a file by a protocol of their own (`blkdebug:CONFIG:PATH`), or their child is not
        called `file`. For a node of a disk, query-blockstats names the node that holds its data, whatever
        drivers are in between: that leads to the file, or to the data file if there is an external one.
        """
        path = self._path(entry, entries)
        if path.startswith("/") or entry.drv in PATH_DRIVERS or _data_file(entry.image, ""):
            return path
        name = entry.node_name
        while name in under and under[name] in entries:
            name = under[name]
            if entries[name].drv in PATH_DRIVERS:
                return self._absolute(entries[name].file)
        return path

    def _path(self, entry: BlockDeviceInfo, entries: Mapping[str, BlockDeviceInfo]) -> str:
        """The path behind a node: its own file name, or that of the node below.

        11.1 names the children. Before that, a json: name holds the options of the same child; QEMU gives one
        whenever the options in use differ from those in the header.
        """
        if not entry.file.startswith("json:"):
            return self._absolute(entry.file)
        for child in entry.children:
            below = entries.get(child.node_name)
            if child.child == "file" and below is not None and below is not entry:
                return self._path(below, entries)
        options = file_options(entry.file)
        for layer in options.layers() if options else ():
            if layer.driver in PATH_DRIVERS and layer.filename:
                return self._absolute(layer.filename)
        return entry.file

    @staticmethod
    def _truncated(nodes: Mapping[str, Node], paths: Iterable[str]) -> dict[str, Node]:
        """The node whose name QEMU truncated, if only one path is left that can be its file."""
        lost = [node for node in nodes.values() if node.file.startswith("json:") and not node.is_filter]
        left = set(paths) - {node.file for node in nodes.values() if node.driver not in PATH_DRIVERS}
        if len(lost) != 1 or len(left) != 1:
            return {}
        return {lost[0].name: replace(lost[0], file=left.pop())}

    def _absolute(self, path: str) -> str:
        if path in self.real:
            return self.real[path]
        if self.cwd and path and not path.startswith("/") and ":" not in path.partition("/")[0]:
            return posixpath.normpath(posixpath.join(self.cwd, path))
        return path

    def _disk(
        self,
        device: BlockInfo,
        top: BlockStats,
        entries: Mapping[str, BlockDeviceInfo],
        nodes: Mapping[str, Node],
        paths: Mapping[str, BlockDeviceInfo],
        under: Mapping[str, str],
    ) -> Disk:
        # A node between the image and its file may encrypt as well.
        luks = {node.file for node in nodes.values() if node.driver == "luks"}
        inserted = device.inserted
        layers: list[Layer] = []
        filters: list[Filter] = []
        if inserted is not None and top.node_name != inserted.node_name:
            raise GraphMoved(top.node_name)
        for stats in top.chain() if inserted is not None else ():
            node = nodes.get(stats.node_name)
            if node is None:
                raise GraphMoved(stats.node_name)
            entry = entries[node.name]
            if node.driver in FILTER_DRIVERS:
                above = layers[-1].node if layers else ""
                filters.append(Filter(node.name, node.driver, _group(entry), _io(entry, entry), above))
            else:
                layer = _layer(node, entry, paths.get(node.file))
                inner = _inner(node.name, entries, under)
                layers.append(replace(layer, encrypted=layer.encrypted or node.file in luks, inner=inner))
        return Disk(
            name="",  # depends on the names of the others
            qdev=device.qdev,
            drive=device.device,
            root=inserted.node_name if inserted else "",
            layers=_with_secrets(layers, entries),
            filters=tuple(filters),
            read_only=inserted is not None and inserted.ro,
        )


def _data_nodes(disks: Iterable[BlockStats]) -> Iterator[tuple[str, str]]:
    """Each node of a disk, with the node that holds its data.

    QAPI: BlockStats, `parent` (block-core.json).
    """
    pending = list(disks)
    while pending:
        for stats in pending.pop().chain():
            below = stats.data_node
            if below is not None:
                if stats.node_name and below.node_name:
                    yield stats.node_name, below.node_name
                pending.append(below)


def _inner(name: str, entries: Mapping[str, BlockDeviceInfo], under: Mapping[str, str]) -> str:
    """Driver of another image below the node, or of the node itself if that is of several; else ""."""
    if entries[name].drv in _SEVERAL:
        return entries[name].drv
    while name in under and under[name] in entries:
        name = under[name]
        if entries[name].drv in NESTED_DRIVERS:
            return entries[name].drv
    return ""


def _io(entry: BlockDeviceInfo, protocol: BlockDeviceInfo) -> Io:
    """The protocol node says how the file is accessed: the image's own options may differ."""
    return Io(protocol.cache.direct, protocol.cache.no_flush, entry.detect_zeroes)


def _is_window(spelled: str) -> bool:
    """Whether a raw driver above the file shows only a part of it. QAPI: BlockdevOptionsRaw."""
    options = file_options(spelled)
    if options is None:  # truncated: the offset may be that of a backing file, whose options come first
        return spelled.startswith("json:") and '"offset": ' in spelled
    return any(
        layer.driver == "raw" and (layer.offset not in {None, 0, "0"} or layer.size is not None)
        for layer in options.layers()
    )


def _layer(node: Node, entry: BlockDeviceInfo, protocol: BlockDeviceInfo | None) -> Layer:
    image = entry.image
    options = file_options(entry.file)
    return Layer(
        node=node.name,
        file=node.file,
        format=node.driver,
        virtual_size=image.virtual_size,
        allocated=image.actual_size,
        backing=image.backing_filename,
        backing_format=image.backing_filename_format,
        read_only=node.read_only,
        local=protocol is not None,
        window=_is_window(entry.file),
        snapshots=tuple(
            InternalSnapshot(
                inside.id, inside.name, inside.vm_state_size, inside.date_sec + inside.date_nsec / 1e9
            )
            for inside in image.snapshots
        ),
        bitmaps=tuple(
            Bitmap(bitmap.name, bitmap.persistent, bitmap.busy, bitmap.inconsistent)
            for bitmap in entry.dirty_bitmaps
        ),
        data_file=_data_file(image, node.file),
        io=_io(entry, protocol or entry),
        encrypted=image.encrypted,
        secret=options.secret if options else "",
    )


def _with_secrets(layers: Iterable[Layer], entries: Mapping[str, BlockDeviceInfo]) -> tuple[Layer, ...]:
    """The layers, each with its secret also where QEMU has cut the name that tells it.

    Overlays have the LUKS header of the layer beneath (`plan/checks/encryption.py`), and are opened alike.
    """
    layers = tuple(layers)
    uuids = {layer.node: _luks_uuid(entries[layer.node].image) for layer in layers if layer.encrypted}
    secrets = {uuids[layer.node]: layer.secret for layer in layers if layer.encrypted and layer.secret}
    return tuple(
        replace(layer, secret=secrets.get(uuids[layer.node], ""))
        if layer.encrypted and not layer.secret and uuids[layer.node]
        else layer
        for layer in layers
    )


def _luks_uuid(image: ImageInfo) -> str:
    data = image.format_specific.data
    return data.encrypt.uuid or data.uuid


def _data_file(image: ImageInfo, file: str) -> str:
    """The external data file of a qcow2 image, whose name is relative to the image's directory; or ""."""
    specific = image.format_specific
    name = specific.data.data_file if specific.type == "qcow2" else ""
    return (backing_path(name, of=file) or name) if name and file.startswith("/") else name
