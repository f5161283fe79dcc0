"""Empty images beside the layers of a template, by which other operations see that the layers are needed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from qmpsnap.errors import Changed, InvalidTarget
from qmpsnap.model.template import keeper_files
from qmpsnap.model.view import DiskView
from qmpsnap.run.images import Images


async def create_keepers(
    views: Iterable[DiskView], name: str, made: dict[str, str], *, synced: bool
) -> tuple[str, ...]:
    """Create an empty image that is based on each layer; return the layers for which that failed.

    Args:
        views: How each disk is read.
        name: The template's name.
        made: Receives each image with its layer.
        synced: Whether they are synced to the disk.
    """
    images, token, unkept = Images(), secrets.token_hex(4), []
    layers = {layer.file: (layer, view) for view in views for layer in view.layers if not layer.is_device}
    for file, keeper in keeper_files(layers, name, token).items():
        layer, view = layers[file]
        made[keeper] = file
        try:
            await images.create_image(
                keeper,
                size_bytes=view.virtual_size,
                format="qcow2",
                like=file,
                backing=file,
                backing_format=layer.format,
                synced=synced,
            )
        except InvalidTarget as error:
            del made[keeper]
            unkept.append(f"{file}: {error.message}")
    return tuple(unkept)


async def remove_keepers(keepers: Mapping[str, str]) -> int:
    """Remove such images, each given with its layer; return how many there were.

    Raises:
        InvalidTarget: When one is in use, has data, or cannot be removed; the others are removed.
    """
    images, removed = Images(), 0
    failure: InvalidTarget | None = None
    for file, layer in keepers.items():
        try:
            removed += await images.remove_orphan(file, layer)
        except InvalidTarget as error:
            failure = failure or error
    if failure is not None:
        failure.changed = Changed.YES if removed else Changed.NO
        raise failure
    return removed
