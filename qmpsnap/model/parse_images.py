"""Joins a storage daemon's nodes into the graph of the disks whose images it has open.

There query-block lists nothing, and query-blockstats names no backing nodes. query-named-block-nodes gives
each node's file name, and that of its backing node in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from qmpsnap.model.block_replies import BlockDeviceInfo, BlockInfo, BlockStats, Inserted
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import FILTER_DRIVERS, PATH_DRIVERS, Graph, Layer
from qmpsnap.model.open_images import OpenImages
from qmpsnap.model.parse import GraphMoved, GraphReplies, parse_graph
from qmpsnap.model.qapi import read


def parse_images(named: object, opened: OpenImages) -> Graph:
    """The graph of the disks in `opened`.

    Args:
        named: The reply to query-named-block-nodes, flat.
        opened: What was opened, and for which disk.

    Raises:
        GraphMoved: When a node is missing that another one is backed by.
        Malformed: When the reply does not have the schema's shape.

    QAPI: query-named-block-nodes (block-core.json).
    """
    nodes = {node.node_name: node for node in read(list[BlockDeviceInfo], named, "query-named-block-nodes")}
    chains = {disk: _chain(root, nodes, opened) for disk, root in opened.roots.items()}
    block = [
        BlockInfo(qdev=disk, inserted=Inserted(root, nodes[root].ro)) for disk, root in opened.roots.items()
    ]
    stats = [
        BlockStats(qdev=disk, node_name=chain[0], backing=_nested(chain[1:]))
        for disk, chain in chains.items()
    ]
    graph = parse_graph(GraphReplies(block, stats, _by_path(nodes, opened)))
    disks = {
        name: replace(disk, layers=tuple(_with_file_node(layer, nodes, opened) for layer in disk.layers))
        for name, disk in graph.disks.items()
    }
    return replace(graph, disks=Frozen(disks))


def _chain(root: str, nodes: Mapping[str, BlockDeviceInfo], opened: OpenImages) -> list[str]:
    """Names of the nodes of a chain, the root first."""
    chain = [root]
    while (below := _below(chain[-1], nodes, opened)) is not None:
        if below in chain:
            raise GraphMoved(below)
        chain.append(below)
    return chain


def _below(name: str, nodes: Mapping[str, BlockDeviceInfo], opened: OpenImages) -> str | None:
    """The node that a node is backed by.

    Disks may read from one base, which each of them opens for itself; and QEMU cuts names at 4095 bytes. Of
    several nodes of one name it is the one that was beneath when it was opened.
    """
    if name not in nodes:
        raise GraphMoved(name)
    recorded = nodes[name].backing_file
    if not recorded:
        return None
    fitting = [
        other.node_name
        for other in nodes.values()
        if other.file == recorded
        and other.drv not in PATH_DRIVERS | FILTER_DRIVERS
        and other.node_name != name
    ]
    nearest = next((below for below in opened.beneath(name) if below in fitting), None)
    if nearest is None and len(fitting) != 1:
        raise GraphMoved(recorded)
    return nearest or fitting[0]


def _nested(chain: list[str]) -> object:
    """The nodes as query-blockstats nests them."""
    nested: dict[str, object] | None = None
    for name in reversed(chain):
        nested = {"node-name": name, **({"backing": nested} if nested else {})}
    return nested


def _by_path(nodes: Mapping[str, BlockDeviceInfo], opened: OpenImages) -> list[BlockDeviceInfo]:
    """The nodes, each under the path that it was opened by: QEMU gives some of them a json: name."""
    paths = {nodes[name].file: path for name, path in opened.files.items() if name in nodes}
    return [
        replace(
            node,
            file=opened.files.get(name, node.file),
            backing_file=paths.get(node.backing_file, node.backing_file),
        )
        for name, node in nodes.items()
    ]


def _with_file_node(layer: Layer, nodes: Mapping[str, BlockDeviceInfo], opened: OpenImages) -> Layer:
    """The layer, with the node of its file where it is known which one that is."""
    named = opened.file_nodes.get(layer.node, "")
    if named not in nodes:
        files = [
            node.node_name for node in nodes.values() if node.drv in PATH_DRIVERS and node.file == layer.file
        ]
        named = files[0] if len(files) == 1 else ""
    return replace(layer, file_node=named)
