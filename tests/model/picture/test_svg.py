"""What a reader of the picture sees: the places of boxes and texts in the parsed document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

import pytest

from qmpsnap.model.picture.boxes import Box, Edge, Panel
from qmpsnap.model.picture.svg import svg
from tests.each import each

from .hostile import NAMES, picture

if TYPE_CHECKING:
    from collections.abc import Sequence

NS = "{http://www.w3.org/2000/svg}"
DISK = Panel(
    "vda",
    (Box("thr", "thr", ("throttle",), "filter"), Box("s1", "s1.qcow2", ("active layer", "qcow2"), "active"),
     Box("base", "base.qcow2")),
    (Edge("thr", "s1"), Edge("s1", "base"), Edge("job", "base"), Edge("copy", "target")),
    (Box("job", "commit, 54%", kind="job"), Box("copy", "mirror", kind="job"), Box("target", "copy.qcow2")),
)  # fmt: skip
TREE = Panel(
    "vdb",
    (Box("now", "now", lane=0), Box("b", "b", lane=1), Box("c", "c", lane=2), Box("a", "a", lane=1),
     Box("base", "base")),
    (Edge("now", "base"), Edge("b", "a"), Edge("c", "a"), Edge("a", "base")),
)  # fmt: skip
PANELS: dict[str, Sequence[Sequence[Panel]]] = {
    "one": [[DISK]],
    "side by side": [[DISK, TREE]],
    "broken": [[DISK, TREE, DISK, TREE, DISK]],
    "before and after": [[DISK, Panel("vda after", DISK.boxes[1:], DISK.edges[1:2], follows=True)], [TREE]],
    "empty": [[Panel("cd0", (Box("", "(empty)", kind="more"),))]],
    "none": [[]],
    "hostile": picture(),
}


class Rect(NamedTuple):
    """A rectangle of the picture."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Rect) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def contains(self, other: Rect) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and self.x + self.width >= other.x + other.width
            and self.y + self.height >= other.y + other.height
        )


def rectangle(element: ET.Element, x: float = 0, y: float = 0) -> Rect:
    found = {name: float(element.get(name, 0)) for name in ("x", "y", "width", "height")}
    return Rect(found["x"] + x, found["y"] + y, found["width"], found["height"])


def boxes(document: ET.Element) -> list[tuple[Rect, list[tuple[Rect, str]]]]:
    """Each box, with its texts; the width of a text is what a common monospace font takes."""
    drawn = []
    for panel in document.findall(f"{NS}g"):
        x, y = map(float, re.findall(r"[\d.]+", panel.get("transform", "")))
        for group in panel.findall(f"{NS}g"):
            (rect,) = group.findall(f"{NS}rect")
            texts = []
            for text in group.findall(f"{NS}text"):
                size = 11 if text.get("class") == "qs-small" else 13
                content = text.text or ""
                place = rectangle(text, x, y)._replace(
                    width=len(content) * 0.602 * size if content.isascii() else 0
                )
                texts.append((place, content))
            drawn.append((rectangle(rect, x, y), texts))
    return drawn


@pytest.mark.parametrize("name", PANELS)
def test_svg_draws_boxes_that_do_not_overlap_with_their_texts_inside_them(name):
    document = ET.fromstring(svg(name, PANELS[name]))
    page = rectangle(document)
    drawn = boxes(document)
    assert len(drawn) == sum(len(panel.boxes) + len(panel.aside) for row in PANELS[name] for panel in row)
    for index, (box, texts) in enumerate(drawn):
        assert page.contains(box)
        assert not any(box.overlaps(other) for other, _ in drawn[index + 1 :])
        assert all(box.contains(place) for place, _ in texts)


@pytest.mark.parametrize("name", PANELS)
def test_svg_breaks_a_row_that_is_too_wide(name):
    width = rectangle(ET.fromstring(svg(name, PANELS[name]))).width
    assert width <= 1032


def test_svg_has_one_arrow_for_each_edge_and_one_between_before_and_after():
    text = svg("", PANELS["before and after"])
    assert text.count('class="qs-edge"') == 4 + 1 + 4
    assert text.count('class="qs-head"') == 4 + 1 + 4 + 1


def test_svg_shows_whatever_a_name_contains_and_obeys_none_of_it():
    text = svg("\n".join(NAMES), picture())
    document = ET.fromstring(text.encode())  # also proves that it can be encoded
    assert {element.tag.removeprefix(NS) for element in document.iter()} == {
        "svg", "style", "rect", "g", "text", "title", "path",
    }  # fmt: skip
    assert all(line.isprintable() for line in text.splitlines())
    titles = [element.text for element in document.iter(f"{NS}title")][::2]
    shown = [
        'a"b', "a'b", "a<b>c</text><script>alert(1)</script>", "a&amp;b&lt;", "a\\nb\\", "a\\nb", "a\\x1b[2J",
        "a\\u202eb", "\\udcff", "\\ufffe",
    ]  # fmt: skip
    assert [(title or "").split("\n")[0] for title in titles[: len(shown)]] == shown


@each(
    ("name", "drawn"),
    [
        ("x" * 60, "x" * 60),
        ("a" * 40 + "b" * 40, "a" * 29 + "\N{HORIZONTAL ELLIPSIS}" + "b" * 29),
        ("日" * 31, "日" * 14 + "\N{HORIZONTAL ELLIPSIS}" + "日" * 14),
    ],
)
def test_svg_draws_both_ends_of_a_long_name_and_tells_it_in_full(name: str, drawn: str) -> None:
    document = ET.fromstring(svg("", [[Panel("", (Box("1", name),))]]))
    assert [text.text for text in document.iter(f"{NS}text")][1] == drawn
    assert [title.text for title in document.iter(f"{NS}title")] == [name]


def test_svg_has_colours_for_light_and_for_dark_screens():
    style = ET.fromstring(svg("", [[DISK]])).find(f"{NS}style")
    assert style is not None
    light, dark = (style.text or "").split("@media(prefers-color-scheme:dark)")
    for rule in (
        ".qs-page",
        ".qs text",
        ".qs-edge",
        ".qs-head",
        ".qs-active rect",
        ".qs-bad rect",
        ".qs-job rect",
    ):
        (day,) = re.findall(re.escape(rule) + r"\{([^}]*(?:fill|stroke):#[^}]*)\}", light)
        (night,) = re.findall(re.escape(rule) + r"\{([^}]*(?:fill|stroke):#[^}]*)\}", dark)
        assert day != night


def test_svg_says_what_it_shows():
    document = ET.fromstring(svg("vda: 2 layers", [[DISK]]))
    assert (document.get("role"), document.get("aria-label")) == ("img", "vda: 2 layers")
