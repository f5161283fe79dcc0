"""Chains and graphs from a drawing: `chain("base <- mid <- active*")`."""

from __future__ import annotations

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk, Graph, Layer, Node

__all__ = ["chain", "graph"]

MIB = 1024 * 1024


def chain(
    drawing: str,
    *,
    name: str = "vda",
    directory: str = "/images",
    size_bytes: int = 64 * MIB,
    drive: str = "",
) -> Disk:
    """A disk with the chain that is drawn, base first, the active layer marked by `*`.

    Layer `s1` is the qcow2 file `DIRECTORY/s1.qcow2` with the node name `NAME-s1`; a name with a
    dot in it is the file's name as it is, and raw when it ends in `.raw`.

    Args:
        drawing: "base <- s1 <- s2*".
        name: The disk's name and qdev id.
        directory: Where all files lie.
        size_bytes: What the guest sees.
        drive: Id of the -drive, or "".

    Raises:
        ValueError: When the last layer, and it alone, is not marked active.
    """
    words = [word.strip() for word in drawing.split("<-")]
    if not words[-1].endswith("*") or any(word.endswith("*") for word in words[:-1]):
        raise ValueError(f"the last layer, and it alone, is the active one: {drawing!r}")
    words[-1] = words[-1].removesuffix("*")
    layers: list[Layer] = []
    for word in words:
        below = layers[-1] if layers else None
        layers.append(
            Layer(
                node=f"{name}-{word}",
                file=f"{directory}/{word if '.' in word else f'{word}.qcow2'}",
                format="raw" if word.endswith(".raw") else "qcow2",
                virtual_size=size_bytes,
                allocated=196_616,
                backing=below.file if below else None,
                backing_format=below.format if below else None,
                read_only=word != words[-1],
            )
        )
    layers.reverse()
    return Disk(
        name=name,
        qdev=f"/machine/peripheral/{name}/virtio-backend",
        drive=drive,
        root=layers[0].node,
        layers=tuple(layers),
    )


def graph(*disks: Disk, nodes: tuple[Node, ...] = (), **drawings: str) -> Graph:
    """A graph of the disks, given as such or drawn: `graph(vda="base <- s1*", vdb="data*")`.

    Args:
        disks: Disks as they are.
        nodes: More nodes, which belong to no disk.
        drawings: A drawing for each further disk's name.
    """
    everyone = (*disks, *(chain(drawing, name=name) for name, drawing in drawings.items()))
    known = {
        layer.node: Node(layer.node, layer.format, layer.file, layer.read_only)
        for d in everyone
        for layer in d.layers
    }
    known |= {
        filter_node.node: Node(filter_node.node, filter_node.driver, disk.files[0])
        for disk in everyone
        for filter_node in disk.filters
    }
    known |= {node.name: node for node in nodes}
    return Graph(Frozen({disk.name: disk for disk in everyone}), Frozen(known))
