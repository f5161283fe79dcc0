"""The tree of a machine's images, and how it is drawn; `tree_growth` makes it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from qmpsnap.model.frozen import JsonStruct
from qmpsnap.model.names import is_invalid_name

Owner = Literal["machine", "other", "unknown"]
"""Whose an image is.

"machine": this machine's, by its chains and what its records lead to. "other": named by records to which no
layer of this machine leads: another machine's, or another program has taken the layers away that led there.
"unknown": in no record.
"""


class TreeImage(JsonStruct, frozen=True):
    """One image of the tree.

    Attributes:
        file: Its path, as the graph or a record spells it, else its canonical path.
        backing: `file` of the image that it is backed by; where that is no file, what the header records;
            None for a base image.
        disks: Disks of this machine that it is in the chain of, or was.
        owner: Whose it is.
        format: As QEMU calls it; of an image that it does not have open "qcow2", or "" without such a header.
        virtual_size: Bytes that a guest sees; None where that is not known.
        allocated: Bytes on the host; None where that is not known.
        active: Whether this machine's guest writes to it.
        in_chain: Whether it is in the chain of one of this machine's disks.
        missing: Whether there is no such file.
        invalid: Whether a commit has written into it, or has left it behind as FILE.invalid.
        holds: Names of the external snapshots that are read from here.
        began: Names of those at which it began, or from which it goes on.
        inside: Names of the internal snapshots that the machine has here.
        holds_other: Names of snapshots in records to which no layer of this machine leads.
        holds_deleted: Names of deleted snapshots that it holds, and keeps because others are based on them.
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


class TreeLine(JsonStruct, frozen=True):
    """One line of a drawn tree.

    Attributes:
        stem: What is drawn before the image; it ends in "o", or in an asterisk where a guest writes to it.
        image: The image; None for a line that stands for several.
        hidden: How many images such a line stands for; their owner is "other".
    """

    stem: str
    image: TreeImage | None
    hidden: int = 0


class Tree(JsonStruct, frozen=True, dict=True):
    """The images of a machine, and all that are backed by the same ones.

    Attributes:
        images: Each after the one that it is backed by; the trees of this machine's disks in their order.
    """

    images: tuple[TreeImage, ...] = ()

    @cached_property
    def _by_file(self) -> dict[str, TreeImage]:
        return {image.file: image for image in self.images}

    @cached_property
    def _overlays(self) -> dict[str, tuple[TreeImage, ...]]:
        found: dict[str, list[TreeImage]] = {}
        for image in self.images:
            if image.backing is not None:
                found.setdefault(image.backing, []).append(image)
        return {file: tuple(images) for file, images in found.items()}

    def at(self, file: str) -> TreeImage | None:
        """The image in that file, or None."""
        return self._by_file.get(file)

    def on(self, file: str) -> tuple[TreeImage, ...]:
        """The images that are directly backed by `file`; without what a commit has left behind."""
        return tuple(image for image in self._overlays.get(file, ()) if not is_invalid_name(image.file))

    def above(self, file: str) -> tuple[TreeImage, ...]:
        """The images that are backed by `file`, directly or through others (itself excluded)."""
        found: list[TreeImage] = []
        pending = [*self.on(file)]
        while pending:
            image = pending.pop(0)
            found.append(image)
            pending += self.on(image.file)
        return tuple(found)

    def moments_reading(self, file: str) -> tuple[str, ...]:
        """Names of the external snapshots of this machine that are read from `file`, sorted."""
        own = self.at(file)
        images = (*((own,) if own is not None else ()), *self.above(file))
        return tuple(sorted({name for image in images for name in image.holds}))

    def drawn(self, *, others: int = 3) -> tuple[TreeLine, ...]:
        """The lines of the tree, in ASCII: the base image above, the way to the active layer straight down.

        A branch that is not on this way is indented by two columns. Where neither of two branches is, the
        larger one goes straight down, so that n images are indented at most log2(n) + 1 times.

        Args:
            others: How many branches whose owner is "other" are drawn above one image; the rest is counted.
        """
        weight: dict[str, int] = {}
        leading: set[str] = set()
        for image in reversed(self.images):  # each comes before the one that it is backed by
            weight[image.file] = weight.get(image.file, 0) + 1
            if image.active:
                leading.add(image.file)
            if image.backing in self._by_file:
                weight[image.backing] = weight.get(image.backing, 0) + weight[image.file]
                if image.file in leading:
                    leading.add(image.backing)

        def draw(image: TreeImage, first: str, further: str) -> Iterator[TreeLine]:
            while True:
                yield TreeLine(first + ("*" if image.active else "o"), image)
                above = sorted(
                    self._overlays.get(image.file, ()),
                    key=lambda one: (one.file in leading, weight[one.file]),
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
