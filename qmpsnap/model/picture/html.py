"""Pictures and text as HTML, for a notebook."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence

from qmpsnap.model.picture.picture import Picture
from qmpsnap.model.picture.svg import escaped


def image(picture: Picture) -> str:
    """The picture as an image of the page: nothing of the page's style reaches it."""
    data = b64encode(picture.render("svg").encode()).decode()
    return f'<img alt="{escaped(picture.title)}" src="data:image/svg+xml;base64,{data}">'


def text(content: str) -> str:
    """Lines of text, as they are."""
    lines = "\n".join(map(escaped, content.split("\n")))
    return f"<pre>{lines}</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
