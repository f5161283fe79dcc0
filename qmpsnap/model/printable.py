"""How what is not ours is printed: file names, names, texts of QEMU, of a guest, of an image, of a record."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """One line as people can read it: whatever a terminal would obey, a newline too, is spelled out.

    What was made so stays as it is when it is made so again.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
