"""Reads the nodes of -blockdev options, and replaces images beneath them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from qmpsnap.model.command_line.options import Option, is_json, read_json, read_keys, write_keys

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


def with_image(options: Sequence[Option], images: Mapping[str, str]) -> list[Option]:
    """Return the options with other images, in qcow2, beneath some root nodes; filters stay.

    Nodes of the old chain that nothing else uses any more are left out.

    Args:
        options: The options.
        images: Path of the image, by the root node's name.

    Raises:
        Unsupported: When an option cannot be read.
    """
    read = dict(_read(options))
    nodes = {str(node.get("node-name", "")): node for node in read.values()}
    before = _references(options, nodes)
    for root, image in images.items():
        _replace(nodes, nodes[root], image)
    dropped: set[str] = set()
    while (
        unused := before
        - dropped
        - _references(options, {n: node for n, node in nodes.items() if n not in dropped})
    ):
        dropped |= unused
    return [
        Option(option.name, _text(option, read[number])) if number in read else option
        for number, option in enumerate(options)
        if number not in read or read[number].get("node-name") not in dropped
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
        else:
            yield f"{prefix}{key}", str(value)


def _references(options: Sequence[Option], nodes: Mapping[str, Node]) -> set[str]:
    """Return the names of the nodes to which a node or another option refers."""
    names = {text for node in nodes.values() for key, text in _flatten(node) if key != "node-name"}
    for option in options:
        if option.name in {"-device", "-machine", "-M", "-object"}:
            names |= {value for _, value in read_keys(option, "")}
    return names & set(nodes)


def _replace(nodes: Mapping[str, Node], root: Node, image: str) -> None:
    """Replace the first node that is not a filter by the image."""
    node = root
    for _ in range(len(nodes) + 1):  # the deepest chain without a cycle
        below = node.get("file")
        if node.get("driver") not in _FILTERS:
            break
        if isinstance(below, str) and below in nodes:
            node = nodes[below]
        elif isinstance(below, dict):
            node = below
    is_format = node.get("driver") in _FORMATS
    file = node.get("file") if is_format else None
    old = nodes.get(file) if isinstance(file, str) else file
    options = {
        key: value
        for key, value in node.items()
        if key in _ANY_NODE or (node.get("driver") == "qcow2" and key not in {"driver", *_CHAIN})
    }
    if isinstance(old, dict):
        keep = _ANY_FILE if old.get("driver") in _FILES else _ANY_NODE
        fresh = {"driver": "file", "filename": image, **{k: v for k, v in old.items() if k in keep}}
        old.clear()
        old.update(fresh)
    child = (
        file if isinstance(file, str) and file in nodes else (old or {"driver": "file", "filename": image})
    )
    node.clear()
    node.update({"driver": "qcow2", **options, "file": child})
