"""How the text of a help is broken into lines."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

_HYPHEN = "\N{NON-BREAKING HYPHEN}"
_NARROW = 80  # columns
_WORD = re.compile(r"(?:'[^']*'|[^ '])+")


class _Formatter(click.HelpFormatter):
    """Breaks lines only between words: an option, or a name with a hyphen, is one word."""

    def write_text(self, text: str) -> None:
        """Write a paragraph without breaking it at hyphens."""
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write a list of terms, each with its text."""
        glued = [(term, text.replace("-", _HYPHEN)) for term, text in rows]
        super().write_dl(glued, col_max, col_spacing)

    def getvalue(self) -> str:
        """Return the help, with its hyphens restored."""
        return super().getvalue().replace(_HYPHEN, "-")


class HelpContext(click.Context):
    """A context whose help is broken so."""

    formatter_class = _Formatter


def example_lines(example: str) -> list[str]:
    """Break a long command line into lines with backslashes."""
    lines = [" "]
    for word in _WORD.findall(example):
        if len(lines[-1]) + len(word) + 3 > _NARROW:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return lines
