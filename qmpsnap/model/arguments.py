"""Checks the caller's arguments before anything is sent: words, names, paths and numbers.

The types of an intent's fields alone say what is valid: a `Literal` is a closed choice;
`Text`, `AbsolutePath`, `NewName` and `Speed` are a str or an int with a further check.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from qmpsnap.errors import BadArgument
from qmpsnap.model.names import check_name

_INT64 = 1 << 63
_SPELLED: dict[object, str] = {str: "a str", int: "an int", bool: "True or False"}


def refuse(parameter: str, value: object, wanted: str, *, hint: str = "") -> NoReturn:
    """Raise the error that names the parameter, its value, and what is valid."""
    raise BadArgument(f"{parameter} is {value!r}: {wanted}", parameter=parameter, value=value, hint=hint)


def check_fields(intent: object) -> None:
    """Check every field of a dataclass by its type, when it is created.

    Raises:
        BadArgument: When a value is not valid for its field.
        BadName: When a new name is outside the grammar.
    """
    for name, hint in _hints(type(intent)).items():  # type: ignore[arg-type]  # classes can be hashed
        check(name, getattr(intent, name), hint)


@functools.cache
def _hints(kind: object) -> Mapping[str, object]:
    return get_type_hints(kind, include_extras=True)


def check(parameter: str, value: object, hint: object) -> None:
    """Check one value by a type: str, int, bool, Literal, Annotated, a tuple or mapping of them, or None.

    Raises:
        BadArgument: When the value does not have that type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        _word(parameter, value, inner)
    elif origin is Annotated:
        check(parameter, value, inner[0])
        inner[1](parameter, value)
    elif origin in {Union, UnionType}:
        if value is not None:
            check(parameter, value, next(kind for kind in inner if kind is not NoneType))
    elif origin is tuple:
        if not isinstance(value, tuple):
            refuse(parameter, value, "give a tuple")
        for item in value:
            check(parameter, item, inner[0])
    elif origin is Mapping:
        if not isinstance(value, Mapping):
            refuse(parameter, value, "give a mapping")
        for key, item in value.items():
            check(parameter, key, inner[0])
            check(parameter, item, inner[1])
    elif type(value) is not hint and (hint is not str or not isinstance(value, str)):
        spelled = _SPELLED.get(hint) or f"a {getattr(hint, '__name__', hint)}"
        refuse(parameter, value, f"give {spelled}")


def _word(parameter: str, value: object, words: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in words:
        allowed = ", ".join(map(repr, words[:-1])) + f" or {words[-1]!r}"
        raise BadArgument(
            f"{parameter} is {value!r}: give {allowed}", parameter=parameter, value=value, allowed=words
        )


def _text(parameter: str, value: str) -> None:
    if not value:
        refuse(parameter, value, "it must not be empty")
    _any_text(parameter, value)


def _any_text(parameter: str, value: str) -> None:
    if "\0" in value:
        refuse(parameter, value, "it must not contain a NUL character")
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        refuse(parameter, value, "it cannot be encoded")


def _absolute(parameter: str, value: str) -> None:
    _text(parameter, value)
    if not value.startswith("/"):
        refuse(parameter, value, "give an absolute path", hint="QEMU may have another working directory")


def _optional_path(parameter: str, value: str) -> None:
    if value:
        _absolute(parameter, value)


def _new_name(parameter: str, value: str) -> None:
    del parameter
    check_name(value)


def _speed(parameter: str, value: int) -> None:
    if not 0 <= value < _INT64:
        refuse(parameter, value, "give bytes per second, or 0 for no limit")


def _at_least_one(parameter: str, value: int) -> None:
    if value < 1:
        refuse(parameter, value, "give a number of at least 1")


AtLeastOne = Annotated[int, _at_least_one]
"""A number of things, 1 or more."""

Text = Annotated[str, _text]
"""The name of something that exists, in any spelling."""

Word = Annotated[str, _any_text]
"""A word of a command line; may be empty."""

AbsolutePath = Annotated[str, _absolute]
"""An absolute path."""

OptionalPath = Annotated[str, _optional_path]
"""An absolute path, or "" for none."""

NewName = Annotated[str, _new_name]
"""The name of a new moment."""

Speed = Annotated[int, _speed]
"""Bytes a second; 0: no limit."""


def texts(parameter: str, values: Iterable[str]) -> tuple[str, ...]:
    """Return several names as a tuple; a single str is refused, because its letters would be used as names.

    Raises:
        BadArgument: When it is not a sequence of names.
    """
    if isinstance(values, str):
        refuse(parameter, values, "give several names", hint=f"{parameter}=[{values!r}]")
    if isinstance(values, bytes | bytearray | Mapping) or not hasattr(values, "__iter__"):
        refuse(parameter, values, "give several names")
    names = tuple(values)
    check(parameter, names, tuple[Text, ...])
    return names


def path_text(parameter: str, value: object) -> str:
    """Return a path as a str.

    Raises:
        BadArgument: When it is not a path (bytes, for instance), or is empty.
    """
    fspath: Callable[[], object] | None = getattr(value, "__fspath__", None)
    text = fspath() if fspath is not None and not isinstance(value, type) else value
    if not isinstance(text, str):
        refuse(parameter, value, "give a path, as a str or a pathlib.Path")
    _text(parameter, text)
    return text


def number(parameter: str, value: object, *, zero: bool = False) -> float:
    """A number of seconds.

    Raises:
        BadArgument: When it is not a number, or not above 0.
    """
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not (value >= 0 if zero else value > 0):  # type: ignore[operator]  # NaN is neither
        refuse(parameter, value, f"give seconds, {'0 or more' if zero else 'more than 0'}")
    return value  # type: ignore[return-value]
