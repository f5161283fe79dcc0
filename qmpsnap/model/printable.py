"""Makes foreign text (of QEMU, guests, images, records) safe to print."""

from __future__ import annotations

import re
import shlex


def printable(text: str) -> str:
    """Return the text on one line, with control characters, newlines included, escaped.

    Idempotent.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


_PATH_MAX = 4096  # bytes, of Linux and of QEMU's names of files
_LINE_MAX = 65_536  # characters; the names of 200 layers have less
_LONG_WORD = re.compile(rf"\S{{{_PATH_MAX + 1},}}")
_ENDS = 200


def shortened(text: str) -> str:
    """A message without the middle of what nobody reads: of a word longer than any path, or of all of it."""
    text = _LONG_WORD.sub(lambda word: _without_middle(word[0], _ENDS), text)
    return text if len(text) <= _LINE_MAX else _without_middle(text, _PATH_MAX)


def _without_middle(text: str, ends: int) -> str:
    return f"{text[:ends]}[... {len(text) - 2 * ends} characters left out ...]{text[-ends:]}"


def shell_word(word: str) -> str:
    """One word of a command line as a shell takes it, on one line: what is not printable is escaped.

    Bash and others read the form $'...'. A name that is not UTF-8 keeps its bytes.
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_ansi, word)) + "'"


def _ansi(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
