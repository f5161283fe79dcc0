"""Splits a typed QMP command into its words: COMMAND KEY=VALUE ..., where a value may be JSON.

shlex would take the quotes out of JSON, and does not say where a word is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from msgspec import Struct

from qmpsnap.errors import BadArgument

_BLANK = re.compile(r"\s*")
_KEY = re.compile(r"([^\s=\"'{}\[\]]+)=")
# Pieces of a value: in ' as they are; in " or bare, \ before a character means the character.
_PIECE = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)|([^\s'"\\]+)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_JSON = json.JSONDecoder()


class Text(Struct, frozen=True):
    """A value that was typed as text, without its quotes; `quoted`: whether it had any."""

    text: str
    quoted: bool = False


class Json(Struct, frozen=True):
    """A value that was typed as JSON."""

    value: object


class Pair(Struct, frozen=True):
    """One KEY=VALUE.

    Attributes:
        key: The key, with its dots.
        value: The value.
        end: Where it ends in the line, as an offset in characters.
    """

    key: str
    value: Text | Json
    end: int


def split_command(line: str) -> tuple[str, int]:
    """The first word of a line, and the offset of what follows; "" if the line is blank or a comment (#)."""
    start = _skip(line, 0)
    word = re.compile(r"[^\s{]*").match(line, start)
    command = word[0] if word else ""
    return ("", start) if command.startswith("#") else (command, start + len(command))


def pairs(line: str, start: int) -> Iterator[Pair]:
    """Yield each KEY=VALUE from an offset on.

    Raises:
        BadArgument: At a word that is none; those before it have been yielded.
    """
    position = _skip(line, start)
    while position < len(line):
        key = _KEY.match(line, position)
        if key is None:
            word = line[position:].split(maxsplit=1)[0]
            raise bad(
                f"{word!r} is not KEY=VALUE",
                hint="give arguments as KEY=VALUE, or all of them as one JSON object",
            )
        value, position = _value(line, key.end(), key[1])
        if position < len(line) and not line[position].isspace():
            raise bad(
                f"the value of {key[1]!r} goes on after it has ended", hint="put the whole value in quotes"
            )
        yield Pair(key[1], value, position)
        position = _skip(line, position)


def read_json(text: str, what: str) -> object:
    """Parse JSON.

    Raises:
        BadArgument: When it is not JSON.
    """
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError) as error:
        raise bad(f"{what} is not JSON: {error}") from None


def bad(message: str, hint: str = "") -> BadArgument:
    """The error for a line that cannot be sent."""
    return BadArgument(message, parameter="line", value=None, hint=hint)


def _value(line: str, start: int, key: str) -> tuple[Text | Json, int]:
    if line[start : start + 1] in {"{", "["}:
        try:
            value, end = _JSON.raw_decode(line, start)
        except (ValueError, RecursionError) as error:
            raise bad(f"the value of {key!r} is not JSON: {error}", hint="put a text in quotes") from None
        return Json(value), end
    text, quoted, end = "", False, start
    while piece := _PIECE.match(line, end):
        single, double, escaped, bare = piece.groups()
        quoted |= bare is None
        if double is not None:
            double = _ESCAPE.sub(r"\1", double)
        text += next(part for part in (single, double, escaped, bare) if part is not None)
        end = piece.end()
    if line[end : end + 1] in {"'", '"'}:
        raise bad(f"the quotes in the value of {key!r} are not closed")
    return Text(text, quoted), end


def _skip(line: str, start: int) -> int:
    blank = _BLANK.match(line, start)
    return blank.end() if blank else start
