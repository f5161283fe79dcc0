"""Makes foreign text safe to print: file names, and texts of QEMU, guests, images and records."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return the text on one line, with control characters, newlines included, escaped.

    Idempotent.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
