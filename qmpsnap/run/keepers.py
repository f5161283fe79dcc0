"""Empty images beside the layers of a template, by which other operations see that the layers are needed."""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Literal

from qmpsnap.errors import Changed, InvalidTarget
from qmpsnap.model.files import Ask
from qmpsnap.model.keeper import keeper_files, owner_text
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.run.disk import in_thread, made_in_thread
from qmpsnap.run.images import Images
from qmpsnap.run.keeper_state import claim, is_claimed
from qmpsnap.run.log import get_logger
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.survey import look

_log = get_logger("qmpsnap.template")
_ATTEMPTS: Final = 5


class Keepers:
    """The images of one owner, as they are created, and locked by this process until `release`.

    Attributes:
        made: Each image with its layer.
        unkept: Layers beside which none could be created, each as "FILE: REASON".
    """

    def __init__(self, kind: Literal["template", "clone", "fork"], directory: str) -> None:
        """Create none yet; the arguments are those of `KeptFor`."""
        self.made: dict[str, str] = {}
        self.unkept: tuple[str, ...] = ()
        self._kind = kind
        self._directory = directory
        self._claims: list[int] = []

    async def create(self, views: Iterable[DiskView], name: str, *, synced: bool) -> None:
        """Create an empty image that is based on each layer, as far as that is possible.

        Args:
            views: How each disk is read.
            name: The template's name.
            synced: Whether they are synced to the disk.
        """
        layers = {layer.file: (layer, view) for view in views for layer in view.layers if not layer.is_device}
        files = keeper_files(layers, name, secrets.token_hex(4))
        owner = owner_text(self._kind, self._directory, files.values())
        for file, keeper in files.items():
            self.made[keeper] = file
            try:
                await self._create(keeper, *layers[file], owner=owner, synced=synced)
            except InvalidTarget as error:
                del self.made[keeper]
                self.unkept += (f"{file}: {error.message}",)

    async def _create(
        self, keeper: str, layer: ViewLayer, view: DiskView, *, owner: bytes, synced: bool
    ) -> None:
        for _ in range(_ATTEMPTS):
            await Images().create_image(
                keeper,
                size_bytes=view.virtual_size,
                format="qcow2",
                like=layer.file,
                backing=layer.file,
                backing_format=layer.format,
                synced=synced,
                owner=owner,
            )
            try:
                lock = await made_in_thread(partial(claim, keeper), _close)
            except OSError as error:
                raise unusable(keeper, error, "lock") from error
            if lock is not None:
                self._claims.append(lock)
                return
        raise InvalidTarget(f"another process removes {keeper!r} again and again", file=keeper)

    def release(self) -> None:
        """Unlock them; from then on the owner itself has to be there."""
        while self._claims:
            os.close(self._claims.pop())

    async def remove(self) -> int:
        """Unlock and remove them; as `remove_keepers`."""
        self.release()
        return await remove_keepers(self.made)


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


async def keepers_of(directory: str, keepers: Mapping[str, str]) -> dict[str, str]:
    """Return those of a template's keepers that are its own.

    The record in a copy of a template's directory names the keepers of the original.

    Args:
        directory: The template's directory; absolute.
        keepers: The keepers that its record names, each with its layer.
    """
    places = tuple({posixpath.dirname(file) for file in keepers})
    found = (await in_thread(partial(look, Ask(files=tuple(keepers), survey=places)))).keepers
    owners = {
        name: keeper.owner.directory
        for name, keeper in found.items()
        if keeper.owner.kind == "template" and keeper.state == "needed"
    }
    others = await in_thread(partial(_others, directory, owners))
    return {file: layer for file, layer in keepers.items() if os.path.realpath(file) not in others}


def _others(directory: str, owners: Mapping[str, str]) -> set[str]:
    """Return the keepers whose owner is not in this directory."""
    others = set()
    for keeper, owner in owners.items():
        try:
            if not Path(owner).samefile(directory):
                others.add(keeper)
        except OSError:  # one of the two is gone
            continue
    return others


async def remove_left(directory: str, layers: Iterable[str]) -> None:
    """Remove the images that a killed process has left that was making the template of this directory.

    Call it while the caller makes a template there, and before it creates images: those that no process has
    locked are left.

    Args:
        directory: The template's directory; absolute.
        layers: Files of layers, beside which such images are searched for. One that cannot be removed stays.
    """
    places = tuple({posixpath.dirname(layer) for layer in layers})
    found = (await in_thread(partial(look, Ask(survey=places)))).keepers
    there = {
        file: keeper.layer
        for file, keeper in found.items()
        if keeper.layer and (keeper.owner.kind, keeper.owner.directory) == ("template", directory)
    }
    left = await in_thread(lambda: {file: layer for file, layer in there.items() if not is_claimed(file)})
    try:
        await remove_keepers(left)
    except InvalidTarget as error:
        _log.warning("images.left", directory=directory, reason=str(error))


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
