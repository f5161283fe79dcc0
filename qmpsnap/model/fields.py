"""Typed access to JSON that somebody may have changed: a wrong shape is a ValueError that names the field."""

# What is wrong is the file, and never the caller:
# ruff: noqa: TRY004

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Fields"]


class Fields:
    """The fields of one JSON object.

    Args:
        body: The object as read.
        what: What it is, for people.

    Raises:
        ValueError: When it is no object.
    """

    def __init__(self, body: object, *, what: str = "it") -> None:
        if not isinstance(body, dict):
            raise ValueError(f"{what} is no object")
        self._body: Mapping[str, object] = body

    def has(self, key: str) -> bool:
        """Whether the field is there, and not null."""
        return self._body.get(key) is not None

    def value(self, key: str) -> object:
        """What the field holds, whatever it is; None when it is missing."""
        return self._body.get(key)

    def within(self, key: str) -> Fields:
        """The object that the field holds."""
        return Fields(self._body.get(key), what=repr(key))

    def items(self, key: str) -> dict[str, object]:
        """The object that the field holds, as it is."""
        value = self._body.get(key)
        if not isinstance(value, dict):
            raise ValueError(f"{key!r} is no object")
        return value

    def list(self, key: str) -> list[object]:
        """The list that the field holds."""
        return _list(key, self._body.get(key))

    def text(self, key: str) -> str:
        """A text without a NUL."""
        return _text(key, self._body.get(key))

    def number(self, key: str) -> int:
        """A whole number, not negative."""
        return _number(key, self._body.get(key))

    def flag(self, key: str) -> bool:
        """True or false."""
        return _flag(key, self._body.get(key))

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """One of these texts."""
        value = self.text(key)
        if value not in choices:
            raise ValueError(f"{key!r} is {value!r}, none of {', '.join(map(repr, choices))}")
        return value

    def path(self, key: str) -> str:
        """An absolute path."""
        return _path(key, self.text(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        return _texts(key, self._body.get(key))

    def paths(self, key: str) -> tuple[str, ...]:
        """A list of absolute paths."""
        return tuple(_path(key, text) for text in self.texts(key))

    def chains(self, key: str) -> dict[str, tuple[str, ...]]:
        """Of each name a list of texts."""
        return {name: _texts(key, value) for name, value in self.items(key).items()}

    def text_by_key(self, key: str) -> dict[str, str]:
        """Of each name a text."""
        return {name: _text(key, value) for name, value in self.items(key).items()}

    def path_by_key(self, key: str) -> dict[str, str]:
        """Of each name an absolute path."""
        return {name: _path(key, text) for name, text in self.text_by_key(key).items()}

    def number_by_key(self, key: str) -> dict[str, int]:
        """Of each name a whole number, not negative."""
        return {name: _number(key, value) for name, value in self.items(key).items()}

    def flag_by_key(self, key: str) -> dict[str, bool]:
        """Of each name true or false."""
        return {name: _flag(key, value) for name, value in self.items(key).items()}


def _list(key: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{key!r} is no list")
    return value


def _texts(key: str, value: object) -> tuple[str, ...]:
    return tuple(_text(key, item) for item in _list(key, value))


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{key!r} holds {value!r}, which is no text")
    return value


def _number(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key!r} holds {value!r}, which is no number of anything")
    return value


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key!r} is {value!r}, not true or false")
    return value


def _path(key: str, text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{key!r} holds {text!r}, which is not an absolute path")
    return text
