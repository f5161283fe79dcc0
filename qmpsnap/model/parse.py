"""The only reader of QEMU's raw block queries.

Three commands make one graph. query-block tells the disks; query-blockstats alone names every node
along a chain; query-named-block-nodes tells what each node is. They are joined by node name.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from qmpsnap.errors import Malformed
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import (
    FILTER_DRIVERS,
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
from qmpsnap.model.qdev import disk_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["FDSET", "GRAPH_QUERIES", "OWN_FDS", "GraphMoved", "odd_names", "parse_fdsets", "parse_graph"]

Raw = dict[str, object]

GRAPH_QUERIES: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("query-block", Frozen({})),
    ("query-blockstats", Frozen({})),
    ("query-named-block-nodes", Frozen({"flat": True})),
)
"""The commands, with arguments, whose answers `parse_graph` takes, in this order."""

FDSET = "/dev/fdset/"
"""How the name of a set of descriptors begins. QAPI: add-fd (misc.json)."""

OWN_FDS = ("/proc/self/fd/", "/dev/fd/")
"""How the name of a descriptor begins that QEMU was started with."""


class GraphMoved(Exception):
    """The three answers do not belong to one moment: ask again."""


def odd_names(named: object) -> tuple[str, ...]:
    """File names that QEMU uses, when one of them means nothing outside of it; else none.

    That is a relative name, a set of descriptors (/dev/fdset/N), and a descriptor of QEMU's own.

    Args:
        named: Return value of query-named-block-nodes, flat.
    """
    try:
        names = tuple(_text(row["file"]) for row in _rows(named) if row["drv"] in PATH_DRIVERS)
    except (KeyError, TypeError):  # `parse_graph` says what is wrong
        return ()
    odd = any(name.startswith((FDSET, *OWN_FDS)) or not name.startswith("/") for name in names)
    return tuple(dict.fromkeys(names)) if odd else ()


def parse_fdsets(answer: object) -> dict[str, tuple[int, ...]]:
    """The descriptors in each set, by the name that a file has which is opened from it.

    QAPI: query-fdsets (misc.json).
    """
    try:
        return {
            f"{FDSET}{_int(one['fdset-id'])}": tuple(_int(fd["fd"]) for fd in cast("list[Raw]", one["fds"]))
            for one in _rows(answer)
        }
    except (KeyError, TypeError) as error:
        raise Malformed(f"QEMU's answer to query-fdsets has not the expected shape: {error!r}") from error


def parse_graph(
    block: object,
    stats: object,
    named: object,
    *,
    cwd: str = "",
    real: Mapping[str, str] = Frozen({}),
) -> Graph:
    """Join the three answers into one graph.

    Args:
        block: Return value of query-block.
        stats: Return value of query-blockstats, without arguments.
        named: Return value of query-named-block-nodes, flat.
        cwd: QEMU's working directory where we know it; relative file names are resolved against it.
        real: Paths of the files that QEMU has open under its odd names (`odd_names`), so far as is known.

    Raises:
        GraphMoved: When a node is named in one answer and missing in another.
        Malformed: When an answer is not of the schema's shape.

    QAPI: query-block, query-blockstats, query-named-block-nodes (block-core.json).
    """
    try:
        return _Join(_rows(block), _rows(stats), _rows(named), cwd, real).graph()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Malformed(
            f"QEMU's answer about its block graph has not the expected shape: {error!r}"
        ) from error


def _group(row: Raw) -> str:
    """The group of a throttle: QEMU tells it in the json: file name alone."""
    try:
        options = json.loads(_text(row["file"]).removeprefix("json:"))
    except (ValueError, RecursionError):
        return ""
    group = options.get("throttle-group") if isinstance(options, dict) else None
    return group if isinstance(group, str) else ""


def _rows(answer: object) -> list[Raw]:
    if not isinstance(answer, list):
        raise TypeError(f"a list was expected, not {type(answer).__name__}")
    return cast("list[Raw]", answer)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string was expected, not {value!r}")
    return value


def _maybe_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"a number was expected, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class _Join:
    block: list[Raw]
    stats: list[Raw]
    named: list[Raw]
    cwd: str
    real: Mapping[str, str]

    def graph(self) -> Graph:
        entries = {_text(row["node-name"]): row for row in self.named}
        # The protocol node of each path; an image that is written has but one, for QEMU locks it.
        paths = {self._absolute(_text(row["file"])): row for row in self.named if row["drv"] in PATH_DRIVERS}
        under = dict(_lies_on(self.stats))
        nodes = {name: self._node(name, row, entries, under) for name, row in entries.items()}
        nodes |= self._cut_short(nodes, paths)
        chains = {self._key(row): row for row in self.stats}
        disks: list[Disk] = []
        for row in self.block:
            if not row.get("device") and not row.get("qdev"):
                continue  # its device is being unplugged, and goes within a tenth of a second
            chain = chains.get(self._key(row))
            if chain is None:
                raise GraphMoved(self._key(row))
            disks.append(self._disk(row, chain, entries, nodes, paths))
        names = disk_names([(disk.qdev, disk.drive, disk.root) for disk in disks])
        named = {name: replace(disk, name=name) for name, disk in zip(names, disks, strict=True)}
        return Graph(Frozen(named), Frozen(nodes))

    @staticmethod
    def _key(row: Raw) -> tuple[object, object]:
        return row.get("device"), row.get("qdev")

    def _node(self, name: str, row: Raw, entries: Mapping[str, Raw], under: Mapping[str, str]) -> Node:
        backing = self._absolute(_text(row.get("backing_file") or ""))
        path, spelled = self._file(name, row, entries, under), _text(row["file"])
        spelled = "" if spelled == path else spelled
        return Node(name, _text(row["drv"]), path, bool(row["ro"]), backing, spelled)

    def _file(self, name: str, row: Raw, entries: Mapping[str, Raw], under: Mapping[str, str]) -> str:
        """The path behind a node; QEMU's spelling of it where it lies in no file, or in several (quorum).

        Some drivers spell a file by a protocol of their own (`blkdebug:CONFIG:PATH`), or call it by another
        name than `file`. For a node of a disk query-blockstats tells on which node its data lies, whatever
        the drivers between: that way leads to the file, but to the data file where there is an external one.
        """
        path = self._path(row, entries)
        if path.startswith("/") or row["drv"] in PATH_DRIVERS or _data_file(cast("Raw", row["image"]), ""):
            return path
        while name in under and under[name] in entries:
            name = under[name]
            if entries[name]["drv"] in PATH_DRIVERS:
                return self._absolute(_text(entries[name]["file"]))
        return path

    def _path(self, row: Raw, entries: Mapping[str, Raw]) -> str:
        """The path behind a node: its own file name, or that of the node that it lies on.

        11.1 names the children. Before, a json: name holds the options of the same child; it is
        given whenever the options in use differ from what the header says.
        """
        spelled = _text(row["file"])
        if not spelled.startswith("json:"):
            return self._absolute(spelled)
        for child in cast("list[Raw]", row.get("children") or []):
            below = entries.get(_text(child["node-name"]))
            if child.get("child") == "file" and below is not None and below is not row:
                return self._path(below, entries)
        try:
            options = json.loads(spelled.removeprefix("json:"))
        except (ValueError, RecursionError):  # QEMU cuts a file name at 4095 bytes and ends it in "..."
            return spelled
        while isinstance(options, dict):
            if options.get("driver") in PATH_DRIVERS and isinstance(options.get("filename"), str):
                return self._absolute(options["filename"])
            options = options.get("file")
        return spelled

    @staticmethod
    def _cut_short(nodes: Mapping[str, Node], paths: Mapping[str, Raw]) -> dict[str, Node]:
        """The node whose name QEMU cut short, when just one path is left that it can lie on."""
        lost = [node for node in nodes.values() if node.file.startswith("json:") and not node.is_filter]
        left = paths.keys() - {node.file for node in nodes.values() if node.driver not in PATH_DRIVERS}
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
        row: Raw,
        chain: Raw,
        entries: Mapping[str, Raw],
        nodes: Mapping[str, Node],
        paths: Mapping[str, Raw],
    ) -> Disk:
        # A node between the image and its file may encrypt as well.
        luks = {one.file for one in nodes.values() if one.driver == "luks"}
        drive, qdev = _text(row.get("device", "")), _text(row.get("qdev", ""))
        inserted = cast("Raw | None", row.get("inserted"))
        layers: list[Layer] = []
        filters: list[Filter] = []
        below: Raw | None = chain if inserted is not None else None
        root = "" if inserted is None else _text(inserted["node-name"])
        if below is not None and below.get("node-name") != root:
            raise GraphMoved(row)
        while below is not None:
            name = _text(below["node-name"])
            node = nodes.get(name)
            if node is None:
                raise GraphMoved(name)
            if node.driver in FILTER_DRIVERS:
                row_io = _io(entries[name], entries[name])
                filters.append(Filter(name, node.driver, _group(entries[name]), row_io))
            else:
                layer = _layer(node, entries[name], paths.get(node.file))
                layers.append(replace(layer, encrypted=layer.encrypted or node.file in luks))
            below = cast("Raw | None", below.get("backing"))
        return Disk(
            name="",  # depends on what the others are called
            qdev=qdev,
            drive=drive,
            root=root,
            layers=tuple(layers),
            filters=tuple(filters),
            read_only=inserted is not None and bool(inserted["ro"]),
        )


def _lies_on(stats: Iterable[Raw]) -> Iterator[tuple[str, str]]:
    """Each node of a disk with the node on which its data lies.

    QAPI: BlockStats, `parent` (block-core.json).
    """
    left = list(stats)
    while left:
        row = left.pop()
        parent = cast("Raw", row.get("parent") or {})
        if "node-name" in row and "node-name" in parent:
            yield _text(row["node-name"]), _text(parent["node-name"])
        left += [cast("Raw", row[key]) for key in ("parent", "backing") if row.get(key)]


def _io(row: Raw, protocol: Raw) -> Io:
    """What is done with the file is said by its protocol node: the image's own options may be others.

    What is not said is taken as QEMU's default.
    """
    cache = cast("Raw", protocol.get("cache") or {})
    zeroes = _text(row.get("detect_zeroes", "off"))
    return Io(bool(cache.get("direct")), bool(cache.get("no-flush")), zeroes)


def _is_window(spelled: str) -> bool:
    """Whether a raw driver on the way to the file shows a part of it. QAPI: BlockdevOptionsRaw."""
    if not spelled.startswith("json:"):
        return False
    try:
        options = json.loads(spelled.removeprefix("json:"))
    except (ValueError, RecursionError):  # cut short: be it a part of a backing file that is told first
        return '"offset": ' in spelled
    while isinstance(options, dict):
        if options.get("driver") == "raw" and (
            options.get("offset") not in {None, 0, "0"} or "size" in options
        ):
            return True
        options = options.get("file")
    return False


def _layer(node: Node, row: Raw, protocol: Raw | None) -> Layer:
    image = cast("Raw", row["image"])
    return Layer(
        node=node.name,
        file=node.file,
        format=node.driver,
        virtual_size=_int(image["virtual-size"]),
        allocated=None if image.get("actual-size") is None else _int(image["actual-size"]),
        backing=_maybe_text(image.get("backing-filename")),
        backing_format=_maybe_text(image.get("backing-filename-format")),
        read_only=node.read_only,
        local=protocol is not None,
        window=_is_window(_text(row["file"])),
        snapshots=tuple(
            InternalSnapshot(
                _text(one["id"]),
                _text(one["name"]),
                _int(one.get("vm-state-size", 0)),
                _int(one.get("date-sec", 0)) + _int(one.get("date-nsec", 0)) / 1e9,
            )
            for one in cast("list[Raw]", image.get("snapshots") or [])
        ),
        bitmaps=tuple(
            Bitmap(
                _text(one.get("name", "")),
                bool(one.get("persistent")),
                bool(one.get("busy")),
                bool(one.get("inconsistent")),
            )
            for one in cast("list[Raw]", row.get("dirty-bitmaps") or [])
        ),
        data_file=_data_file(image, node.file),
        io=_io(row, protocol or row),
        encrypted=bool(image.get("encrypted")),
    )


def _data_file(image: Raw, file: str) -> str:
    """The external data file of a qcow2 image, whose name counts from the image's directory; or ""."""
    specific = cast("Raw", image.get("format-specific") or {})
    if specific.get("type") != "qcow2":
        return ""
    name = _text(cast("Raw", specific["data"]).get("data-file", ""))
    return (backing_path(name, of=file) or name) if name and file.startswith("/") else name
