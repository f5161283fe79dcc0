"""What a picture consists of: boxes and the edges between them, in panels.

Nothing here is escaped or measured: that is left to the formats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from msgspec import Struct

Kind = Literal["layer", "active", "new", "gone", "bad", "filter", "job", "more"]
"""What a box stands for.

"layer": an image. "active": the image that a guest writes to. "new": an image that an operation adds.
"gone": an image that leaves its chain, or that is not this machine's. "bad": an image that is missing, or no
longer holds its moment. "filter": a filter node. "job": a job. "more": whatever is not drawn one by one.
"""

_MOST = 16  # layers in a row of which each gets its box
_EACH_END = 6  # layers drawn at each end of a longer row
_NAMES = 6  # names that a line lists


class Box(Struct, frozen=True):
    """One box.

    Attributes:
        key: Its name among the boxes of its panel; not shown.
        title: Its first line.
        lines: Further lines.
        kind: What it stands for.
        lane: How far it is indented: 0 for the trunk, 1 for a branch of the trunk, and so on.
        full: The title in full, such as the path of a file.
    """

    key: str
    title: str
    lines: tuple[str, ...] = ()
    kind: Kind = "layer"
    lane: int = 0
    full: str = ""


class Edge(Struct, frozen=True):
    """An arrow from a box to the box by which it is backed, or to which it writes.

    Attributes:
        upper: Key of the box at which it begins.
        lower: Key of the box to which it points.
    """

    upper: str
    lower: str


class Panel(Struct, frozen=True):
    """One part of a picture: a disk, or a tree of images.

    Attributes:
        title: What is written above it.
        boxes: From top to bottom.
        edges: Between `boxes`, and from `aside` to `boxes`.
        aside: Boxes to the right of the others: jobs, and the files to which they copy.
        follows: Whether it shows what becomes of the panel before it.
    """

    title: str
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...] = ()
    aside: tuple[Box, ...] = ()
    follows: bool = False

    def shortened(self) -> Panel:
        """The same panel, with one box in place of the middle of each long row of plain layers."""
        hidden = {box.key: number for run in self._runs() for number, box in enumerate(_middle(run))}
        if not hidden:
            return self
        boxes: list[Box] = []
        places: dict[str, str] = {}
        for box in self.boxes:
            if hidden.get(box.key) == 0:
                count = _count(self.boxes, box, hidden)
                title = f"{count} layers not shown"
                boxes.append(Box(f"more {box.key}", title, kind="more", lane=box.lane))
            if box.key in hidden:
                places[box.key] = boxes[-1].key
            else:
                boxes.append(box)
        edges = (
            Edge(places.get(edge.upper, edge.upper), places.get(edge.lower, edge.lower))
            for edge in self.edges
        )
        kept = tuple(dict.fromkeys(edge for edge in edges if edge.upper != edge.lower))
        return Panel(self.title, tuple(boxes), kept, self.aside, self.follows)

    def _runs(self) -> Iterator[list[Box]]:
        """Rows of layers of which each is backed by the next, and by which nothing else is backed."""
        above: dict[str, list[str]] = {}
        for edge in self.edges:
            above.setdefault(edge.lower, []).append(edge.upper)
        run: list[Box] = []
        for box in self.boxes:
            goes_on = run and above.get(box.key) == [run[-1].key] and box.lane == run[-1].lane
            if not goes_on:
                yield run
                run = []
            if box.kind == "layer":
                run.append(box)
            else:
                yield run
                run = []
        yield run


def _middle(run: Sequence[Box]) -> Sequence[Box]:
    return run[_EACH_END:-_EACH_END] if len(run) > _MOST else ()


def _count(boxes: Sequence[Box], first: Box, hidden: dict[str, int]) -> int:
    """How many boxes, from `first` on, are hidden in one row."""
    start = boxes.index(first)
    end = start + 1
    while end < len(boxes) and hidden.get(boxes[end].key, 0) > 0:
        end += 1
    return end - start


def stacked(boxes: Iterable[Box]) -> tuple[Edge, ...]:
    """The edges of boxes of which each points to the next."""
    return tuple(Edge(upper.key, lower.key) for upper, lower in itertools.pairwise(boxes))


def named(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """A line that lists names, the first ones if there are many; no line if there are none."""
    if not names:
        return ()
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return (f"{what}: {', '.join(names[:_NAMES])}{more}",)


def base_name(file: str) -> str:
    """The last part of a path, or the whole text where that is empty."""
    return file.rpartition("/")[2] or file
