"""Troubles of QEMU's block graph: nodes that nobody uses, and filters that somebody left."""

from __future__ import annotations

from collections.abc import Iterator

from qmpsnap.model.graph import PATH_DRIVERS, Disk, Filter, Graph, Node
from qmpsnap.model.hints import qmp_words
from qmpsnap.model.names import is_owned_node
from qmpsnap.model.parse_machine import device_path
from qmpsnap.plan.diagnosis.facts import Case, Facts

# Filters that a job or a backup puts in, and takes away at its end; others are a user's own.
_PASSING = frozenset({"commit_top", "copy-before-write", "mirror_top", "snapshot-access"})


def unexplained(graph: Graph) -> tuple[Node, ...]:
    """Nodes that may be unused: they are in no chain, and keep a file from others or have a name of ours."""
    known = {layer.node for disk in graph.disks.values() for layer in disk.layers}
    known |= {one.node for disk in graph.disks.values() for one in disk.filters}
    files = {file for disk in graph.disks.values() for layer in disk.layers for file in layer.parts}
    return tuple(
        node
        for node in graph.nodes.values()
        if node.name not in known
        and not (node.driver in PATH_DRIVERS and node.file in files)
        and (not node.read_only or is_owned_node(node.name))
    )


def node_left(facts: Facts) -> Iterator[Case]:
    """A node that nothing uses, and that keeps its file open for writing."""
    if facts.off or facts.at_work:
        return
    suspects = unexplained(facts.graph)
    used = _used(facts)
    for node in suspects:
        if node.name not in used if used is not None else is_owned_node(node.name):
            ours = "; an operation that died left it" if is_owned_node(node.name) else ""
            mode = "" if node.read_only else " for writing"
            yield Case(
                node.name,
                f"nothing uses this node, which has {node.file or node.driver} open{mode}{ours}: the file "
                "stays locked, and QEMU's internal snapshots take the node for a disk",
                qmp_words("blockdev-del", node_name=node.name),
            )


def covered(graph: Graph) -> tuple[tuple[Disk, Filter], ...]:
    """Disks with a filter on top that a job or a backup puts there, each with the filter."""
    return tuple(
        (disk, disk.filters[0])
        for disk in graph.disks.values()
        if disk.qdev and disk.layers and disk.filters
        if disk.filters[0].node == disk.root and disk.filters[0].driver in _PASSING
    )


def filter_left(facts: Facts) -> Iterator[Case]:
    """A filter of a job or a backup on top of a disk, and no job that uses it."""
    if facts.off or facts.at_work or facts.jobs or facts.exported:
        return  # what is exported may be read through it
    for disk, top in covered(facts.graph):
        below = disk.filters[1].node if len(disk.filters) > 1 else disk.active.node
        yield Case(
            disk.name,
            f"the filter {top.node} ({top.driver}) is on top of it without a job: a backup or a job was not "
            "cleaned up",
            qmp_words("qom-set", path=device_path(disk.qdev), property="drive", value=below),
            "unless another client has just put it there",
        )


def _used(facts: Facts) -> frozenset[str] | None:
    """Names of the nodes that a device, a job, an export or another node uses; None if that is not known."""
    if facts.uses is None or not facts.uses.nodes:
        return None
    names = {node.id: node.name for node in facts.uses.nodes}
    return frozenset(names.get(edge.child, "") for edge in facts.uses.edges)
