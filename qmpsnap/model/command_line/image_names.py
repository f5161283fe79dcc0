"""Finds the image of each disk of a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qmpsnap.errors import Unsupported
from qmpsnap.model.command_line.blockdev import Node, nodes_of
from qmpsnap.model.command_line.disks import disks_of
from qmpsnap.model.command_line.options import Option, read_keys

_FILE_KEYS = ("file.filename", "filename")


def image_names(options: Sequence[Option]) -> dict[str, str]:
    """Return the file name of the image with which each disk was started, by the disk's name in qmpsnap.

    A disk whose image is not a file is left out; so are all if an option cannot be read.
    """
    try:
        nodes = nodes_of(options)
        found = {
            disk: _of_node(nodes, where) if isinstance(where, str) else _of_drive(options[where])
            for disk, where in disks_of(options).items()
        }
    except Unsupported:
        return {}
    return {disk: file for disk, file in found.items() if file}


def _of_drive(option: Option) -> str:
    if option.name != "-drive":
        return option.value or ""
    keys = dict(read_keys(option))
    return next((keys[key] for key in ("file", *_FILE_KEYS) if keys.get(key)), "")


def _of_node(nodes: Mapping[str, Node], name: str) -> str:
    node: object = nodes.get(name)
    for _ in range(len(nodes) + 10):  # deeper than any chain without a cycle
        if isinstance(node, str):
            node = nodes.get(node)
        if not isinstance(node, dict):
            return ""
        if isinstance(file := node.get("filename"), str):
            return file
        node = node.get("file")
    return ""
