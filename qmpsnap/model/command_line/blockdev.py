"""Reads the nodes of -blockdev options, and replaces images beneath them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qmpsnap.errors import Unsupported
from qmpsnap.model.command_line.options import Option, is_json, read_json, read_keys, write_keys
from qmpsnap.model.option_hints import Hint, Named

Node = dict[str, object]
"""The options of a node, nested as in JSON."""

_FILTERS: Final = frozenset(
    {"throttle", "copy-on-read", "copy-before-write", "compress", "snapshot-access", "preallocate"}
)
_FORMATS: Final = frozenset(
    {"raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "luks"}
    | {"parallels", "bochs", "cloop", "dmg"}
)
# What any node can have. QAPI: BlockdevOptions (block-core.json).
_ANY_NODE: Final = frozenset(
    {"node-name", "read-only", "auto-read-only", "discard", "detect-zeroes", "cache", "force-share"}
)
_ANY_FILE: Final = _ANY_NODE | {"aio", "locking", "aio-max-batch", "drop-cache"}
_FILES: Final = frozenset({"file", "host_device"})
_DEEPEST: Final = 50
_REFERRING: Final = frozenset({"-device", "-drive", "-machine", "-M", "-object", "-set", "-global"})
_CHAIN: Final = ("file", "backing", "data-file")


def nodes_of(options: Sequence[Option]) -> dict[str, Node]:
    """Return the top node of each -blockdev option, by its node name.

    Raises:
        Unsupported: When one cannot be read.
    """
    return {str(node.get("node-name", "")): node for _, node in _read(options)}


def is_written(nodes: Mapping[str, Node], root: str) -> bool:
    """Whether a device on the node may write to it."""
    return nodes[root].get("read-only") not in {True, "on", "yes", "true"}


@dataclass(frozen=True, slots=True)
class Image:
    """The image that a disk gets, in qcow2.

    Attributes:
        file: Its path.
        opened: If it has an encrypted layer, the options that open it; see `Start.nodes`. None: as the
            former image.
    """

    file: str
    opened: Mapping[str, object] | None = None


def with_image(options: Sequence[Option], images: Mapping[str, Image]) -> list[Option]:
    """Return the options with other images, in qcow2, beneath some root nodes; filters stay.

    Nodes that no device uses, or that none uses any more, are left out: QEMU would open their images.

    Args:
        options: The options.
        images: The image, by the root node's name.

    Raises:
        Unsupported: When an option cannot be read, or two disks have the same image.
    """
    before, read = dict(_read(options)), dict(_read(options))
    nodes = {str(node.get("node-name", "")): node for node in read.values()}
    replaced: dict[int, Image] = {}
    for root, image in images.items():
        node = _below_filters(nodes, nodes[root])
        if replaced.setdefault(id(node), image) != image:
            raise Unsupported(
                f"another disk has the same image as the node {root!r}: they cannot get images of their own",
                feature=root,
                hint=Hint(Named("launcher"), ", a function that starts such a QEMU from a qmpsnap.Start"),
            )
        _replace(nodes, node, image)
    while unused := nodes.keys() - _references(options, nodes):
        for name in unused:
            del nodes[name]
    return [
        Option(option.name, _text(option, read[number])) if read.get(number) != before.get(number) else option
        for number, option in enumerate(options)
        if number not in read or str(read[number].get("node-name", "")) in nodes
    ]


def _read(options: Sequence[Option]) -> Iterator[tuple[int, Node]]:
    for number, option in enumerate(options):
        if option.name == "-blockdev":
            text = option.value or ""
            yield number, read_json(option) if is_json(text) else _nest(option)


def _nest(option: Option) -> Node:
    """Return `a.b=c` as nested options, as in JSON."""
    node: Node = {}
    for key, value in read_keys(option, "driver"):
        *path, final = key.split(".")
        if len(path) > _DEEPEST:
            option.refuse("it is nested too deeply")
        inner = node
        for part in path:
            step = inner.setdefault(part, {})
            if not isinstance(step, dict):
                option.refuse(f"{key!r} is given twice")
            inner = step
        inner[final] = value
    return node


def _text(option: Option, node: Node) -> str:
    if is_json(option.value or ""):
        return json.dumps(node)
    return write_keys(_flatten(node), "driver")


def _flatten(node: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield from _flatten({str(number): item for number, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _references(options: Sequence[Option], nodes: Mapping[str, Node]) -> set[str]:
    """Return the names of the nodes to which a node or another option refers."""
    names = {text for node in nodes.values() for key, text in _flatten(node) if key != "node-name"}
    for option in options:
        if option.name in _REFERRING:
            names |= {value for _, value in read_keys(option, "")}
    return names & set(nodes)


def _below_filters(nodes: Mapping[str, Node], root: Node) -> Node:
    """Return the first node that is not a filter."""
    node = root
    for _ in range(len(nodes) + 1):  # the deepest chain without a cycle
        below = node.get("file")
        if node.get("driver") not in _FILTERS:
            break
        if isinstance(below, str) and below in nodes:
            node = nodes[below]
        elif isinstance(below, dict):
            node = below
    return node


def _replace(nodes: Mapping[str, Node], node: Node, image: Image) -> None:
    """Replace a node that is not a filter by the image."""
    file = node.get("file") if node.get("driver") in _FORMATS else None
    old = nodes.get(file) if isinstance(file, str) else file
    options = {
        key: value
        for key, value in node.items()
        if key in _ANY_NODE or (node.get("driver") == "qcow2" and key not in {"driver", *_CHAIN})
    }
    if image.opened is not None:
        options.pop("encrypt", None)
        options |= image.opened
    fresh: Node = {"driver": "file", "filename": image.file}
    if isinstance(old, dict):
        keep = _ANY_FILE if old.get("driver") in _FILES else _ANY_NODE
        fresh |= {key: value for key, value in old.items() if key in keep}
    child: object = fresh
    if isinstance(file, str) and isinstance(old, dict):
        users = [text for other in nodes.values() for _, text in _flatten(other)].count(file)
        if users == 2:  # its own name, and this node
            old.clear()
            old.update(fresh)
            child = file
        else:  # a part of a file that other nodes use, too
            fresh.pop("node-name", None)
    node.clear()
    node.update({"driver": "qcow2", **options, "file": child})
