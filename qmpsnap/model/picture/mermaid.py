"""A picture in mermaid's language, which Markdown pages of several hosts show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from qmpsnap.model.picture.boxes import Box, Kind, Panel
from qmpsnap.model.printable import printable

_STYLES: Mapping[Kind, str] = MappingProxyType(
    {
        "active": "stroke:#0969da,stroke-width:3px",
        "new": "stroke:#1a7f37,stroke-width:3px",
        "gone": "stroke-dasharray:5 4",
        "bad": "stroke:#cf222e,stroke-width:3px",
        "filter": "stroke:#8250df",
        "job": "stroke:#9a6700",
        "more": "stroke-dasharray:2 3",
    }
)
# Left and right of a label: what gives the box its shape.
_SHAPES: Mapping[Kind, tuple[str, str]] = MappingProxyType({"filter": ("{{", "}}"), "job": (">", "]")})

# Mermaid reads directives, entities, HTML and Markdown within quotes as well. An underscore inside a word is
# none of these.
_READ = re.compile(r"[^\w ./:,()-]|(?<![^\W_])_|_(?![^\W_])|(?<=\d)\.(?= )|^-")


def mermaid(title: str, rows: Sequence[Sequence[Panel]]) -> str:
    """The picture as a flowchart.

    Args:
        title: What it shows; a comment of the text.
        rows: Its panels.
    """
    panels = [panel for row in rows for panel in row]
    kinds = {box.kind for panel in panels for box in (*panel.boxes, *panel.aside)}
    lines = [
        "flowchart TB",
        f"  %% {_escaped(title)}",
        *(line for number, panel in enumerate(panels) for line in _panel(number, panel)),
        *(f"  classDef {kind} {style}" for kind, style in _STYLES.items() if kind in kinds),
    ]
    return "\n".join(lines) + "\n"


def _panel(number: int, panel: Panel) -> Iterator[str]:
    names = {box.key: f"p{number}_{index}" for index, box in enumerate((*panel.boxes, *panel.aside))}
    yield f'  subgraph p{number}["{_escaped(panel.title)}"]'
    for box in (*panel.boxes, *panel.aside):
        left, right = _SHAPES.get(box.kind, ("[", "]"))
        style = f":::{box.kind}" if box.kind in _STYLES else ""
        yield f'    {names[box.key]}{left}"{_label(box)}"{right}{style}'
    for edge in panel.edges:
        yield f"    {names[edge.upper]} --> {names[edge.lower]}"
    yield "  end"


def _label(box: Box) -> str:
    return "<br/>".join(map(_escaped, (box.title, *box.lines)))


def _escaped(text: str) -> str:
    """Write as a number what mermaid could take for more than text."""
    return _READ.sub(lambda match: f"#{ord(match[0])};", printable(text))
