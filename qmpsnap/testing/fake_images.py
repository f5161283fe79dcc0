"""Images of a machine that is off, which exist in memory only."""

from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import IMAGE_COMMANDS

__all__ = ["FakeImages"]


class FakeImages(FakeTarget):
    """Images of a machine that is off: there is no guest, and the process that opens them has no devices.

    Args:
        graph: Its block graph at the beginning.
        files: Its files; None: those of the graph, visible.
    """

    process = "fake"

    def __init__(self, graph: Graph, *, files: FakeFiles | None = None) -> None:
        super().__init__(graph, files=files, commands=IMAGE_COMMANDS)
        self.guest = None  # type: ignore[assignment]

    async def graph(self) -> Graph:
        """The graph as of now, with the nodes of the layers' files."""
        graph = await super().graph()
        disks = {
            name: replace(
                disk, layers=tuple(replace(layer, file_node=f"{layer.node}-file") for layer in disk.layers)
            )
            for name, disk in graph.disks.items()
        }
        return replace(graph, disks=Frozen(disks))

    async def refuse_migrated(self) -> None:
        """Refuse nothing: images alone are not migrated."""
