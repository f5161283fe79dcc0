"""Builds the graph of disks whose machine is off, from the headers of their images alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from msgspec import Struct

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Bitmap, Disk, Graph, InternalSnapshot, Layer, Node
from qmpsnap.model.image_chain import ImageChain, ImageLayer
from qmpsnap.model.names import image_nodes


class ImageFact(Struct, frozen=True):
    """Facts about an image that are not in its header.

    Attributes:
        allocated: Bytes on the host.
        snapshots: Internal snapshots.
        bitmaps: Persistent bitmaps.
    """

    allocated: int
    snapshots: tuple[InternalSnapshot, ...] = ()
    bitmaps: tuple[Bitmap, ...] = ()


def image_graph(chains: Iterable[ImageChain], facts: Mapping[str, ImageFact]) -> Graph:
    """The disks and their chains; the nodes have the names that they would get if the images were opened.

    Args:
        chains: The images of each disk.
        facts: Facts about each layer, by its file.
    """
    disks: dict[str, Disk] = {}
    nodes: dict[str, Node] = {}
    for chain in chains:
        layers = tuple(_layer(chain, layer, facts[layer.file]) for layer in chain.layers)
        below = dict(pairwise(chain.files))
        disks[chain.disk] = Disk(chain.disk, qdev=chain.disk, root=layers[0].node, layers=layers)
        nodes |= {
            layer.node: Node(
                layer.node, layer.format, layer.file, layer.read_only, backing=below.get(layer.file, "")
            )
            for layer in layers
        }
    return Graph(Frozen(disks), Frozen(nodes))


def _layer(chain: ImageChain, layer: ImageLayer, fact: ImageFact) -> Layer:
    node, file_node, _ = image_nodes(chain.disk, layer.file)
    header = layer.header
    return Layer(
        node=node,
        file_node=file_node,
        file=layer.file,
        format=layer.format,
        virtual_size=layer.virtual_size,
        allocated=fact.allocated,
        backing=layer.backing,
        backing_format=header.backing_format if header is not None else None,
        read_only=layer is not chain.active,
        snapshots=fact.snapshots,
        bitmaps=fact.bitmaps,
        data_file=layer.data_file or "",
        encrypted=header is not None and header.luks is not None,
    )
