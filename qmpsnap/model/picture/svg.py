"""A picture as SVG, drawn without another program.

It has a background of its own, and neither scripts, links nor ids: it looks the same alone and within a page,
and a page can contain several. All text is monospaced, so that its width is known without the font.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qmpsnap.model.picture.boxes import Box, Edge, Kind, Panel
from qmpsnap.model.printable import printable

# Lengths in pixels.
_WIDEST = 1000  # of a row of panels; one that is wider is broken between two panels
_MARGIN = 16
_BETWEEN = 56  # two panels in a row
_TITLE, _LINE = 13, 11  # font sizes
_ADVANCE = 0.61  # of a character, in font sizes: that of the widest common monospace font
_TITLE_HEIGHT, _LINE_HEIGHT = 18, 15
_PAD = 10
_GAP = 20  # between two boxes; an arrow fits in
_INDENT = 28  # of each lane
_TRUNK = 14  # where an arrow runs in its lane
_ASIDE = 44  # between the boxes and those aside
_HEAD = 4  # half the width of an arrow's head

_MOST_CELLS = 60  # of a line; a longer one loses its middle, and its box tells it in full

# Page, text and small text or arrows, on light and on dark screens.
_PAGE = ("#ffffff", "#1f2328", "#59636e", "#0d1117", "#f0f6fc", "#9198a1")
# Box and its frame, on light and on dark screens.
_COLOURS: Mapping[Kind, tuple[str, str, str, str]] = MappingProxyType(
    {
        "layer": ("#f6f8fa", "#8c959f", "#161b22", "#7d8590"),
        "active": ("#ddf4ff", "#0969da", "#0c2238", "#4493f8"),
        "new": ("#dafbe1", "#1a7f37", "#0f2a1a", "#3fb950"),
        "gone": ("#ffffff", "#8c959f", "#0d1117", "#7d8590"),
        "bad": ("#ffebe9", "#cf222e", "#331418", "#f85149"),
        "filter": ("#fbefff", "#8250df", "#221a33", "#ab7df8"),
        "job": ("#fff8c5", "#9a6700", "#2b220d", "#d29922"),
        "more": ("#ffffff", "#8c959f", "#0d1117", "#7d8590"),
    }
)
_DASHED = ".qs-gone rect{stroke-dasharray:6 4}.qs-more rect{stroke-dasharray:2 3}"


@dataclass(frozen=True, slots=True)
class _Placed:
    """A box with its place in its panel."""

    box: Box
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class _Laid:
    """A panel with its boxes in place."""

    panel: Panel
    placed: Mapping[str, _Placed]
    width: float
    height: float


def svg(title: str, rows: Sequence[Sequence[Panel]]) -> str:
    """The picture as an SVG document, in the size at which its text is 11 and 13 pixels high.

    Args:
        title: What it shows, for those who cannot see it.
        rows: Its panels.
    """
    lines: list[str] = []
    y, widest = float(_MARGIN), 0.0
    for row in rows:
        x, height = float(_MARGIN), 0.0
        for laid in map(_lay, row):
            if x > _MARGIN and x + laid.width > _WIDEST:
                x, y, height = float(_MARGIN), y + height + _BETWEEN / 2, 0.0
            if laid.panel.follows and x > _MARGIN:
                lines += _becomes(x - _BETWEEN / 2, y + laid.height / 2)
            lines += _panel(laid, x, y)
            x += laid.width + _BETWEEN
            widest, height = max(widest, x - _BETWEEN), max(height, laid.height)
        y += height + _BETWEEN / 2
    width, height = widest + _MARGIN, y - _BETWEEN / 2 + _MARGIN
    said = escaped(title)
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{said}" class="qs">'
    page = f'<rect class="qs-page" width="{width:.0f}" height="{height:.0f}" rx="8"/>'
    return "\n".join((head, f"<style>{_style()}</style>", page, *lines, "</svg>", ""))


def _style() -> str:
    light = _scheme(*_PAGE[:3], {kind: colours[:2] for kind, colours in _COLOURS.items()})
    dark = _scheme(*_PAGE[3:], {kind: colours[2:] for kind, colours in _COLOURS.items()})
    font = (
        ".qs text{font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"font-size:{_TITLE}px;"
        "white-space:pre;unicode-bidi:isolate-override;direction:ltr}"
        f".qs .qs-small{{font-size:{_LINE}px}}.qs .qs-bold{{font-weight:bold}}"
        ".qs rect{stroke-width:1.5}.qs .qs-page{stroke:none}.qs-edge{fill:none;stroke-width:1.5}"
    )
    return f"{font}{light}{_DASHED}@media(prefers-color-scheme:dark){{{dark}}}"


def _scheme(page: str, text: str, faint: str, boxes: Mapping[Kind, tuple[str, ...]]) -> str:
    """The colours of a light or a dark screen."""
    return (
        f".qs-page{{fill:{page}}}.qs text{{fill:{text}}}.qs .qs-small{{fill:{faint}}}"
        f".qs-edge{{stroke:{faint}}}.qs-head{{fill:{faint}}}"
        + "".join(f".qs-{kind} rect{{fill:{fill};stroke:{edge}}}" for kind, (fill, edge) in boxes.items())
    )


def escaped(text: str) -> str:
    """Make any text safe in XML, in an attribute's value as well; control characters are made visible."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&quot;").replace("'", "&#39;")


def _lay(panel: Panel) -> _Laid:
    width = max((box.lane * _INDENT + _width(box) for box in panel.boxes), default=0.0)
    placed: dict[str, _Placed] = {}
    y = float(_TITLE_HEIGHT + _PAD)
    for box in panel.boxes:
        x = float(box.lane * _INDENT)
        placed[box.key] = _Placed(box, x, y, width - x, _height(box))
        y += _height(box) + _GAP
    height, right = y - _GAP, width
    targets = {edge.upper: edge.lower for edge in panel.edges}
    lowest = float(_TITLE_HEIGHT + _PAD)
    beside = max(map(_width, panel.aside), default=0.0)
    for box in panel.aside:
        target = placed.get(targets.get(box.key, ""))
        y = max(lowest, target.y) if target is not None else lowest
        placed[box.key] = _Placed(box, width + _ASIDE, y, beside, _height(box))
        lowest = y + _height(box) + _GAP
        right, height = width + _ASIDE + beside, max(height, lowest - _GAP)
    return _Laid(panel, placed, max(right, _text_width(panel.title, _TITLE)), height)


def _width(box: Box) -> float:
    return (
        max(_text_width(box.title, _TITLE), *(_text_width(line, _LINE) for line in box.lines), 60.0)
        + 2 * _PAD
    )


def _height(box: Box) -> float:
    return _TITLE_HEIGHT + _LINE_HEIGHT * len(box.lines) + _PAD


def _text_width(text: str, size: float) -> float:
    return _cells(_fitting(text)) * _ADVANCE * size


def _cells(text: str) -> int:
    """Columns of a text in a monospace font."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def _fitting(text: str) -> str:
    """The text as it is drawn: printable, without its middle if it is too long."""
    shown = printable(text)
    if _cells(shown) <= _MOST_CELLS:
        return shown
    half = _MOST_CELLS // 2
    while _cells(shown[:half] + shown[-half:]) >= _MOST_CELLS:
        half -= 1
    return f"{shown[:half]}\N{HORIZONTAL ELLIPSIS}{shown[-half:]}"


def _panel(laid: _Laid, x: float, y: float) -> Iterator[str]:
    yield f'<g transform="translate({x:.1f} {y:.1f})">'
    yield _text(laid.panel.title, 0, _TITLE_HEIGHT - 4, "qs-bold")
    for edge in laid.panel.edges:
        yield from _arrow(laid.placed, edge, {box.key for box in laid.panel.aside})
    for placed in laid.placed.values():
        yield from _box(placed)
    yield "</g>"


def _box(placed: _Placed) -> Iterator[str]:
    box = placed.box
    full = "\n".join(escaped(line) for line in (box.full or box.title, *box.lines))
    yield f'<g class="qs-{box.kind}"><title>{full}</title>'
    size = f'width="{placed.width:.1f}" height="{placed.height:.1f}"'
    yield f'<rect x="{placed.x:.1f}" y="{placed.y:.1f}" {size} rx="5"/>'
    x, y = placed.x + _PAD, placed.y + _PAD / 2 + _TITLE_HEIGHT - 5
    yield _text(box.title, x, y, "qs-bold" if box.kind not in {"more", "gone"} else "")
    for number, line in enumerate(box.lines, 1):
        yield _text(line, x, y + number * _LINE_HEIGHT, "qs-small")
    yield "</g>"


def _text(text: str, x: float, y: float, style: str) -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}>{escaped(_fitting(text))}</text>'


def _arrow(placed: Mapping[str, _Placed], edge: Edge, aside: set[str]) -> Iterator[str]:
    """An arrow: down within a lane, from a branch to the lane of its trunk, or from a box aside."""
    upper, lower = placed[edge.upper], placed[edge.lower]
    if edge.upper in aside and edge.lower in aside:
        yield from _down(f"M{upper.x + _TRUNK:.1f} {upper.y + upper.height:.1f}", upper.x + _TRUNK, lower.y)
    elif edge.upper in aside:
        start, end = upper.x, lower.x + lower.width
        y, to = upper.y + upper.height / 2, lower.y + lower.height / 2
        middle = start - _ASIDE / 2
        yield f'<path class="qs-edge" d="M{start:.1f} {y:.1f}H{middle:.1f}V{to:.1f}H{end + _HEAD:.1f}"/>'
        yield f'<path class="qs-head" d="M{end:.1f} {to:.1f}l{2 * _HEAD} {-_HEAD}v{2 * _HEAD}z"/>'
    elif upper.box.lane == lower.box.lane:
        yield from _down(f"M{upper.x + _TRUNK:.1f} {upper.y + upper.height:.1f}", upper.x + _TRUNK, lower.y)
    else:
        trunk = lower.x + _TRUNK
        yield from _down(f"M{upper.x:.1f} {upper.y + upper.height / 2:.1f}H{trunk:.1f}", trunk, lower.y)


def _down(start: str, x: float, y: float) -> Iterator[str]:
    yield f'<path class="qs-edge" d="{start}V{y - _HEAD:.1f}"/>'
    yield f'<path class="qs-head" d="M{x:.1f} {y:.1f}l{-_HEAD} {-2 * _HEAD}h{2 * _HEAD}z"/>'


def _becomes(x: float, y: float) -> Iterator[str]:
    """The broad arrow between what was and what becomes of it."""
    yield f'<path class="qs-head" d="M{x - 14:.1f} {y - 4:.1f}h14v-7l14 11l-14 11v-7h-14z"/>'
