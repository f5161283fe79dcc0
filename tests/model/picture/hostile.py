"""Names that a picture must show, and must not obey."""

from __future__ import annotations

from qmpsnap.model.picture.boxes import Box, Edge, Panel

NAMES = (
    'a"b', "a'b", "a<b>c</text><script>alert(1)</script>", "a&amp;b&lt;", "a\\nb\\", "a\nb", "a\x1b[2J",
    "a\u202eb", "\udcff", "\ufffe", "`x` *y* _z_", "%%{init: {}}%%", "#quot;#1;", "]]>", "日本語", "1. a",
    "- a", "-->", "end", "\x00", "x" * 300, "e\u0301" * 40, "",
)  # fmt: skip


def picture() -> tuple[tuple[Panel, ...], ...]:
    """A panel for each name, which is its title, and the title, the line and the path of its boxes."""
    return tuple(
        (Panel(name, (Box("1", name, (name,), "active", full=name), Box("2", name)), (Edge("1", "2"),)),)
        for name in NAMES
    )
