"""JSON documents that we write and read again, perhaps after somebody has changed them.

Python's json reads and writes them, because msgspec's cannot spell file names that are not UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct, ValidationError, convert, to_builtins

T = TypeVar("T")

VERSION = 1

_NO_NUL = r"^[^\0]*$"
_ABSOLUTE = r"^/[^\0]*$"

Text = Annotated[str, Meta(pattern=_NO_NUL)]
"""A text without a NUL."""

AbsolutePath = Annotated[str, Meta(pattern=_ABSOLUTE)]
"""A path that begins at the root."""

Count = Annotated[int, Meta(ge=0)]
"""A whole number, not negative."""


def dump(document: Struct, *, without: Collection[str] = ()) -> str:
    """Return the document as JSON in ASCII, on one line; its fields `without` are left out."""
    body: dict[str, object] = {"version": VERSION, **to_builtins(document)}
    return json.dumps({name: value for name, value in body.items() if name not in without})


def load(text: str | bytes) -> dict[str, Any]:
    """Return the fields of a document that `dump` wrote.

    Raises:
        ValueError: When it is not a JSON object, is nested too deeply, or has another version.
    """
    try:
        body = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(body, dict):
        raise ValueError(f"expected an object, got {type(body).__name__}")  # noqa: TRY004 - the file is wrong
    if body.get("version") != VERSION:
        raise ValueError(f"version {body.get('version')!r}, only {VERSION} is known")
    return body


def take(kind: type[T], body: Mapping[str, object]) -> T:
    """Return the document with these fields.

    Raises:
        ValueError: When a field is missing or invalid; the message names it.
    """
    try:
        return convert(body, kind)
    except ValidationError as error:
        text = str(error)
        for pattern, shape in ((_NO_NUL, "text without NUL"), (_ABSOLUTE, "absolute path")):
            text = text.replace(f"`str` matching regex {pattern!r}", shape)
        raise ValueError(text) from error
