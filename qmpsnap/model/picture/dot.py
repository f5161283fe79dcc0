"""A picture in graphviz's language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from qmpsnap.model.picture.boxes import Box, Kind, Panel
from qmpsnap.model.printable import printable

_LOOKS: Mapping[Kind, str] = MappingProxyType(
    {
        "layer": "",
        "active": ', color="#0969da", penwidth=2',
        "new": ', color="#1a7f37", penwidth=2',
        "gone": ', style="rounded,dashed"',
        "bad": ', color="#cf222e", penwidth=2',
        "filter": ', shape=hexagon, color="#8250df", style=""',
        "job": ', shape=note, color="#9a6700", style=""',
        "more": ', style="rounded,dotted"',
    }
)


def dot(title: str, rows: Sequence[Sequence[Panel]]) -> str:
    """The picture in the DOT language.

    Args:
        title: What it shows.
        rows: Its panels.
    """
    panels = [panel for row in rows for panel in row]
    lines = [
        "digraph qmpsnap {",
        f"  tooltip={_quoted(title)}; fontname=monospace;",
        "  node [shape=box, style=rounded, fontname=monospace, fontsize=11];",
        *(line for number, panel in enumerate(panels) for line in _panel(number, panel)),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _panel(number: int, panel: Panel) -> Iterator[str]:
    names = {box.key: f"p{number}_{index}" for index, box in enumerate((*panel.boxes, *panel.aside))}
    yield f"  subgraph cluster_{number} {{"
    yield f"    label={_quoted(panel.title)};"
    for box in (*panel.boxes, *panel.aside):
        tooltip = _quoted(box.full or box.title)
        yield f"    {names[box.key]} [label={_label(box)}, tooltip={tooltip}{_LOOKS[box.kind]}];"
    for edge in panel.edges:
        yield f"    {names[edge.upper]} -> {names[edge.lower]};"
    yield "  }"


def _label(box: Box) -> str:
    # \n centres the lines; graphviz itself reads it, so it is added after the names are escaped.
    return '"' + r"\n".join(map(_escaped, (box.title, *box.lines))) + '"'


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """Escape what graphviz reads in a quoted string: quotes, backslashes, and HTML's entities."""
    return printable(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
