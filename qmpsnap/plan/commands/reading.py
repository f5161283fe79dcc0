"""Options by which QEMU's tools open images to read them. QAPI: BlockdevOptions (block-core.json).

Every layer is named with its format and its backing file, and a backing file that is not named is none: no
header is followed, and no format is probed.
"""

from __future__ import annotations

from typing import Any

from qmpsnap.model.view import DiskView, ViewLayer


def read_options(view: DiskView) -> dict[str, Any]:
    """The whole chain as the options of one node, as `json:` names and `--blockdev` take them.

    The layer that the guest writes to is opened without a lock (`force-share`): only a snapshot inside it is
    read, whose clusters QEMU does not write to.
    """
    below: dict[str, Any] | None = None
    for layer in reversed(view.layers):
        shared = view.written and layer is view.layers[0]
        below = _image(layer, below, shared=shared)
    assert below is not None  # noqa: S101 - a chain has a layer
    return below


def _image(layer: ViewLayer, below: dict[str, Any] | None, *, shared: bool) -> dict[str, Any]:
    lock = {"force-share": True} if shared else {}
    image = {
        "driver": layer.format,
        "read-only": True,
        **lock,
        "file": {**_file(layer.file, is_device=layer.is_device), **lock},
    }
    if layer.data_file:
        image["data-file"] = _file(layer.data_file)
    return image | {"backing": below} if layer.backed else image


def _file(file: str, *, is_device: bool = False) -> dict[str, Any]:
    return {"driver": "host_device" if is_device else "file", "filename": file, "read-only": True}


def nbd_options(path: str, export: str) -> dict[str, Any]:
    """The options of a node that reads an NBD export on a unix socket."""
    return {
        "driver": "nbd",
        "server": {"type": "unix", "path": path},
        "export": export,
        "read-only": True,
    }
