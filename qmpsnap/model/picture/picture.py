"""A picture of chains or of a tree of images, and its formats."""

from __future__ import annotations

from typing import Literal, assert_never

from msgspec import Struct

from qmpsnap.model.picture.boxes import Panel
from qmpsnap.model.picture.dot import dot
from qmpsnap.model.picture.mermaid import mermaid
from qmpsnap.model.picture.svg import svg

PictureFormat = Literal["dot", "mermaid", "svg"]
"""A format of a picture: the language of graphviz, that of mermaid, or SVG."""


class Picture(Struct, frozen=True):
    """A picture: overlays above the images by which they are backed, and an arrow from each to the next.

    A notebook shows it as SVG. Of a long row of layers only the two ends are drawn, and a box between them
    says how many layers are not shown.

    Attributes:
        title: What it shows, in words.
        rows: Rows of panels, from top to bottom.
    """

    title: str
    rows: tuple[tuple[Panel, ...], ...]

    def render(self, format: PictureFormat) -> str:  # noqa: A002 - the word for it
        """The picture in a format, as text; every name in it is escaped.

        Args:
            format: "svg" is readable on light and dark screens. "dot" is the language of graphviz, "mermaid"
                that of diagrams in Markdown.
        """
        rows = tuple(tuple(panel.shortened() for panel in row) for row in self.rows)
        match format:
            case "svg":
                return svg(self.title, rows)
            case "dot":
                return dot(self.title, rows)
            case "mermaid":
                return mermaid(self.title, rows)
            case _:
                assert_never(format)

    def _repr_svg_(self) -> str:
        return self.render("svg")
