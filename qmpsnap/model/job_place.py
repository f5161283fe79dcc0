"""Where each job works: its disk, the file that it writes, and when it began.

A job's reply names no node, but QEMU's block graph lists each block job with the nodes that it uses. The time
when a job began is known only from our records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from qmpsnap.model.frozen import JsonStruct
from qmpsnap.model.graph import Graph
from qmpsnap.model.qapi import Reply
from qmpsnap.model.record import IntentRecord

# What QEMU calls the node that a job writes: mirror, backup and an active commit; another commit; stream.
_WRITTEN = ("target", "base", "active node")


class BlockGraphNode(Reply, frozen=True):
    """A node, a device or a job. QAPI: XDbgBlockGraphNode (block-core.json)."""

    id: int
    type: str
    name: str


class BlockGraphEdge(Reply, frozen=True):
    """One node, device or job uses a node. QAPI: XDbgBlockGraphEdge (block-core.json)."""

    parent: int
    child: int
    name: str


class BlockGraph(Reply, frozen=True):
    """Who uses which node. QAPI: x-debug-query-block-graph (block-core.json)."""

    nodes: tuple[BlockGraphNode, ...] = ()
    edges: tuple[BlockGraphEdge, ...] = ()


class JobPlace(JsonStruct, frozen=True):
    """Where a job works; "" if not known.

    Attributes:
        disk: Name of its disk; several are separated by ", ".
        target: The file that it writes.
        created: ISO 8601 time in UTC at which its operation began; only known for our own operations.
    """

    disk: str = ""
    target: str = ""
    created: str = ""


def job_places(
    graph: Graph, block_graph: BlockGraph, records: Iterable[IntentRecord]
) -> Mapping[str, JobPlace]:
    """Return the places of the jobs that QEMU's block graph or a record knows, by job id.

    Args:
        graph: The disks.
        block_graph: Who uses which node, read after the graph.
        records: Records of our own operations.
    """
    uses = _Uses(graph, block_graph)
    of_records = {record.id: record for record in records}
    seen = {node.name: uses.place(node.id) for node in block_graph.nodes if node.type == "block-job"}
    places = {}
    for job_id in (*seen, *(job_id for job_id in of_records if job_id not in seen)):
        place, record = seen.get(job_id, JobPlace()), of_records.get(job_id)
        if record is not None:
            disks = record.disk or ", ".join(record.chains)
            place = JobPlace(place.disk or disks, place.target or record.written, record.created)
        places[job_id] = place
    return places


class _Uses:
    def __init__(self, graph: Graph, block_graph: BlockGraph) -> None:
        self._graph = graph
        self._names = {node.id: node.name for node in block_graph.nodes if node.type == "block-driver"}
        self._children: dict[int, list[BlockGraphEdge]] = {}
        for edge in block_graph.edges:
            self._children.setdefault(edge.parent, []).append(edge)
        self._disks: dict[str, list[str]] = {}
        for disk in graph.disks.values():
            for layer in disk.layers:
                self._disks.setdefault(layer.node, []).append(disk.name)

    def place(self, job: int) -> JobPlace:
        used = self._children.get(job, [])
        written = next((edge for name in _WRITTEN for edge in used if edge.name == name), None)
        node = self._graph.nodes.get(self._names.get(written.child, "")) if written is not None else None
        # Of two disks with a common base, the job's is the one that has more of the job's nodes.
        counts = Counter(disk for edge in used if edge is not written for disk in self._above(edge.child))
        most = max(counts.values(), default=0)
        disks = ", ".join(disk for disk, count in counts.items() if count == most)
        return JobPlace(disks, node.file if node is not None else "")

    def _above(self, node: int) -> Iterator[str]:
        """Disks that have the node as a layer; a filter is followed to the layer beneath."""
        disks = self._disks.get(self._names.get(node, ""))
        if disks is not None:
            yield from disks
        else:
            for edge in self._children.get(node, ()):
                yield from self._above(edge.child)
