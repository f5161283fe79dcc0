"""An empty image beside a layer, which shows other operations that the layer is needed, and by whom.

What needs the layer is written into the image's header, in an extension of ours. It is untrusted.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Final, Literal, assert_never

from msgspec import Struct

from qmpsnap.model.document import AbsolutePath, dump, load, take
from qmpsnap.model.frozen import FrozenStruct
from qmpsnap.model.header import Header
from qmpsnap.model.names import fit_name, stem

ENDING: Final = ".template.qcow2"
_MOST_PLACES: Final = 32  # directories; with them the header is far smaller than a cluster

KeeperState = Literal["needed", "gone", "left"]
"""needed: what needs the layer is there, or is being made.
gone: what needs the layer was not found. It may have been removed, or be out of sight.
left: nothing needs the layer: a process was killed that was making a template, or had forked a machine.
"""


class KeptFor(FrozenStruct, frozen=True):
    """What needs the layers.

    Attributes:
        kind: "template"; "clone": the overlays that a clone keeps; "fork": machines that run now.
        directory: The template's directory, or that of the overlays; of a fork, a temporary one.
        places: Directories in which it has such images.
    """

    kind: Literal["template", "clone", "fork"]
    directory: AbsolutePath
    places: tuple[AbsolutePath, ...] = ()

    def __str__(self) -> str:
        """As in "still needed by the template '/srv/web'"."""
        match self.kind:
            case "template":
                return f"the template {self.directory!r}"
            case "clone":
                return f"the overlays of a clone in {self.directory!r}"
            case "fork":
                return "machines that were forked"
            case _:
                assert_never(self.kind)


class Keeper(Struct, frozen=True):
    """Such an image.

    Attributes:
        owner: What needs the layer.
        state: Whether that is there.
        layer: The layer, by its canonical name; "" if its name is not known.
    """

    owner: KeptFor
    state: KeeperState
    layer: str

    def __str__(self) -> str:
        """What it tells, as in "X is based on it (for the template '/srv/web')"."""
        match self.state:
            case "needed":
                return f"for {self.owner}"
            case "gone":
                return f"for {self.owner}, which is gone"
            case "left":
                return f"left by a {self.owner.kind} whose process was killed"
            case _:
                assert_never(self.state)


def keeper_files(layers: Iterable[str], name: str, token: str) -> dict[str, str]:
    """Return by layer the path of the image that shows that the layer is needed.

    Args:
        layers: Paths of the layers.
        name: The template's name.
        token: Eight hex digits that are unique to the template.
    """
    return {
        layer: posixpath.join(posixpath.dirname(layer), fit_name(stem(layer), f".{name}-{token}{ENDING}"))
        for layer in layers
    }


def ending(file: str) -> str:
    """The part of a keeper's name that all keepers of its owner share: `-TOKEN.template.qcow2`."""
    return "-" + file.rpartition("-")[2]


def owner_text(kind: Literal["template", "clone", "fork"], directory: str, keepers: Iterable[str]) -> bytes:
    """What is written into the header of each of the keepers."""
    places = tuple(dict.fromkeys(map(posixpath.dirname, keepers)))[:_MOST_PLACES]
    return dump(KeptFor(kind, directory, places)).encode("ascii")


def owner_of(file: str, header: Header) -> KeptFor | None:
    """Return what needs the layer by which a keeper is backed; None if the file is no keeper."""
    if not header.owner or header.backing is None or not file.endswith(ENDING):
        return None
    try:
        body = load(header.owner)
        body.pop("version")
        return take(KeptFor, body)
    except ValueError:
        return None
