"""The tree of a machine's images, and its drawing; `tree_growth` builds it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from qmpsnap.model.frozen import JsonStruct
from qmpsnap.model.names import is_invalid_name
from qmpsnap.model.picture.boxes import Box, Edge, Kind, Panel, base_name, named
from qmpsnap.model.picture.picture import Picture
from qmpsnap.model.units import size

Owner = Literal["machine", "other", "unknown"]
"""Owner of an image.

"machine": this machine; its chains or records lead to the image. "other": only records name the image to
which no layer of this machine leads; it belongs to another machine, or another program has removed the layers
that led to it. "unknown": no record names the image.
"""


class TreeImage(JsonStruct, frozen=True):
    """One image of the tree.

    Attributes:
        file: Its path, as the graph or a record spells it, else its canonical path.
        backing: `file` of the image by which it is backed; if that is not a file, what the header records;
            None for a base image.
        disks: Disks of this machine in whose chain it is, or was.
        owner: The owner.
        format: QEMU's name of the format; if QEMU does not have the image open, "qcow2", or "" without a
            qcow2 header.
        virtual_size: Size of the disk in bytes; None if it is not known.
        allocated: Bytes on the host; None if they are not known.
        active: Whether this machine's guest writes to it.
        in_chain: Whether it is in the chain of one of this machine's disks.
        missing: Whether the file does not exist.
        invalid: Whether a commit has written into it, or has left it behind as FILE.invalid.
        holds: Names of the external snapshots that are read from it, but not of those lost by a commit.
        began: Names of the external snapshots at which it began, or from which it continues.
        inside: Names of the internal snapshots that the machine has in it.
        holds_other: Names of snapshots in records to which no layer of this machine leads.
        holds_deleted: Names of deleted snapshots that it still holds, because others are based on it.
        shows: Why the layer below it is needed, if it is an image that only shows that; else "".
    """

    file: str
    backing: str | None = None
    disks: tuple[str, ...] = ()
    owner: Owner = "unknown"
    format: str = ""
    virtual_size: int | None = None
    allocated: int | None = None
    active: bool = False
    in_chain: bool = False
    missing: bool = False
    invalid: bool = False
    holds: tuple[str, ...] = ()
    began: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    holds_other: tuple[str, ...] = ()
    holds_deleted: tuple[str, ...] = ()
    shows: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """What `list` says of it beside its name: MISSING, INVALID, snapshots inside it, whose it is."""
        return tuple(self._marks())

    def _marks(self) -> Iterator[str]:
        if self.missing:
            yield "MISSING"
        if self.invalid:
            yield "INVALID"
        if self.inside:
            yield f"inside: {', '.join(self.inside)}"
        if self.holds_deleted:
            yield f"deleted: {', '.join(self.holds_deleted)}"
        if self.shows:
            yield self.shows
        elif self.owner == "other":
            names = f": {', '.join(self.holds_other)}" if self.holds_other else ""
            yield f"another machine's, or left{names}"
        elif self.owner == "unknown" and not self.invalid:
            yield "in no record"

    def box(self, lane: int) -> Box:
        """The image in a picture.

        Args:
            lane: How far it is indented.
        """
        size_known = self.virtual_size is not None and self.format
        lines = (
            *((f"active layer of {', '.join(self.disks)}",) if self.active else ()),
            *named("holds", self.holds),
            *(
                (f"{self.format}, {size(self.virtual_size)}, {size(self.allocated)} allocated",)
                if size_known
                else ()
            ),
            *self.marks,
        )
        bad = self.missing or self.invalid
        kind: Kind = (
            "bad" if bad else "active" if self.active else "layer" if self.owner == "machine" else "gone"
        )
        return Box(self.file, base_name(self.file), lines, kind, lane, self.file)


class TreeLine(JsonStruct, frozen=True):
    """One line of a drawn tree.

    Attributes:
        stem: What is drawn before the image; ends in "*" if a guest writes to the image, else in "o".
        image: The image; None for a line that stands for several images.
        hidden: Number of images for which such a line stands; their owner is "other".
    """

    stem: str
    image: TreeImage | None
    hidden: int = 0


class Tree(JsonStruct, frozen=True, dict=True):
    """The images of a machine, and all other images that share a backing file with them.

    Attributes:
        images: Each image after the one by which it is backed; the trees of the disks in the disks' order.
    """

    images: tuple[TreeImage, ...] = ()

    @cached_property
    def _by_file(self) -> dict[str, TreeImage]:
        return {image.file: image for image in self.images}

    @cached_property
    def _overlays(self) -> dict[str, tuple[TreeImage, ...]]:
        overlays: dict[str, list[TreeImage]] = {}
        for image in self.images:
            if image.backing is not None:
                overlays.setdefault(image.backing, []).append(image)
        return {file: tuple(images) for file, images in overlays.items()}

    def at(self, file: str) -> TreeImage | None:
        """The image in that file, or None."""
        return self._by_file.get(file)

    def on(self, file: str) -> tuple[TreeImage, ...]:
        """The images that are directly backed by `file`, without any FILE.invalid that a commit has left."""
        return tuple(image for image in self._overlays.get(file, ()) if not is_invalid_name(image.file))

    def above(self, file: str) -> tuple[TreeImage, ...]:
        """The images that are backed by `file`, directly or through others (without `file` itself)."""
        backed: list[TreeImage] = []
        pending = [*self.on(file)]
        while pending:
            image = pending.pop(0)
            backed.append(image)
            pending += self.on(image.file)
        return tuple(backed)

    def moments_reading(self, file: str) -> tuple[str, ...]:
        """Names of the external snapshots of this machine that are read from `file`, sorted."""
        own = self.at(file)
        images = (*((own,) if own is not None else ()), *self.above(file))
        return tuple(sorted({name for image in images for name in image.holds}))

    def picture(self) -> Picture:
        """The trees side by side, each with its base image at the bottom; branches are indented."""
        panels: list[Panel] = []
        boxes: list[Box] = []
        edges: list[Edge] = []
        for line in (*self.drawn(), None):
            image = line.image if line is not None else None
            root = line is None or (image is not None and image.backing not in self._by_file)
            if root and boxes:
                disks = self._by_file[boxes[0].key].disks
                panels.append(
                    Panel(", ".join(disks) or "images", tuple(reversed(boxes)), tuple(reversed(edges)))
                )
                boxes, edges = [], []
            if line is None:
                break
            lane = line.stem.count("|")
            if image is not None:
                boxes.append(image.box(lane))
                edges += [Edge(image.file, image.backing or "")] if not root else []
            else:
                below = next(box.key for box in reversed(boxes) if box.lane == lane - 1)
                more = Box(
                    f"more {below}", f"{line.hidden} more of other machines, or left", (), "more", lane
                )
                boxes.append(more)
                edges.append(Edge(more.key, below))
        return Picture(f"tree of {len(self.images)} images", (tuple(panels),))

    def _repr_svg_(self) -> str:
        return self.picture().render("svg")

    def drawn(self, *, others: int = 3) -> tuple[TreeLine, ...]:
        """The lines of the tree, in ASCII: the base image first, and the active layer straight below it.

        Every other branch is indented by two columns. If no branch leads to an active layer, the largest
        branch goes straight down, so that an image among n is indented at most log2(n) + 1 times.

        Args:
            others: How many branches on one image to draw whose owner is "other"; the rest is counted.
        """
        weight: dict[str, int] = {}
        leading: set[str] = set()
        for image in reversed(self.images):  # an overlay comes before its backing image
            weight[image.file] = weight.get(image.file, 0) + 1
            if image.active:
                leading.add(image.file)
            if image.backing in self._by_file:
                weight[image.backing] = weight.get(image.backing, 0) + weight[image.file]
                if image.file in leading:
                    leading.add(image.backing)

        def draw(image: TreeImage, first: str, further: str) -> Iterator[TreeLine]:
            """Draw an image and all images on it; `first` begins its own line, `further` the lines below."""
            while True:
                yield TreeLine(first + ("*" if image.active else "o"), image)
                above = sorted(
                    self._overlays.get(image.file, ()),
                    key=lambda overlay: (overlay.file in leading, weight[overlay.file]),
                )
                if not above:
                    return
                *sides, straight = above
                shown, hidden = 0, 0
                for side in sides:
                    if side.owner == "other" and shown >= others:
                        hidden += weight[side.file]
                        continue
                    shown += side.owner == "other"
                    yield from draw(side, f"{further}|-", f"{further}| ")
                if hidden:
                    yield TreeLine(f"{further}|-", None, hidden)
                image, first = straight, further

        roots = (image for image in self.images if image.backing not in self._by_file)
        return tuple(line for root in roots for line in draw(root, "", ""))
