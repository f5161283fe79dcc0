"""Opens the images of a machine that is off. QAPI: block-core.json."""

from __future__ import annotations

from typing import Any

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.image_chain import ImageLayer
from qmpsnap.model.names import image_nodes
from qmpsnap.model.step import AddNode, Step


def open_layer(disk: str, layer: ImageLayer, *, below: str | None, active: bool) -> Step:
    """Open one layer by its own format, on the node beneath; nothing is taken from its header.

    A layer below the active one is read-only, but its file can be opened for writing once a job fills it
    (docs/explanation/qemu.md).

    Args:
        disk: The disk's name.
        layer: The layer, which was checked.
        below: node-name of the layer that it is backed by; None: it has no backing file.
        active: Whether it is the active layer.

    QAPI: blockdev-add.
    """
    node, file_node, data_node = image_nodes(disk, layer.file)
    options: dict[str, Any] = {
        "driver": layer.format,
        "node-name": node,
        "read-only": not active,
        "file": _file(layer.file, file_node),
    }
    if layer.format == "qcow2":
        options["backing"] = below
    if layer.data_file is not None:
        options["data-file"] = _file(layer.data_file, data_node)
    return Step(
        on="qmp",
        command="blockdev-add",
        arguments=Frozen(options),
        effect=AddNode(node, layer.format, layer.file),
    )


def _file(path: str, node: str) -> dict[str, object]:
    return {"driver": "file", "filename": path, "auto-read-only": True, "node-name": node}
