"""Immutable values that can be pickled, copied and written as JSON.

`types.MappingProxyType` does none of these.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from msgspec import Struct, to_builtins
from msgspec.structs import force_setattr

K = TypeVar("K")
V = TypeVar("V")


class Frozen(dict[K, V]):
    """A dict that refuses every change; equal to a dict with the same items.

    A copy is the same object, a deep copy is another frozen dict; `dict(it)` gives a mutable one.
    """

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:  # noqa: ANN401 - whatever dict's methods take
        raise TypeError("this mapping is read-only; copy it with dict(...)")

    __setitem__ = _refuse
    __delitem__ = _refuse
    __ior__ = _refuse
    clear = _refuse
    pop = _refuse
    popitem = _refuse
    setdefault = _refuse
    update = _refuse

    def __copy__(self) -> Frozen[K, V]:
        return self

    def copy(self) -> Frozen[K, V]:
        """Return the same object, because nothing can change it."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (dict(self),)


class JsonStruct(Struct, frozen=True):
    """A struct whose JSON has its fields, each under its name."""

    def to_json(self) -> dict[str, object]:
        """Every field, in JSON's types."""
        fields: dict[str, object] = to_builtins(self)
        return fields


class FrozenStruct(JsonStruct, frozen=True):
    """A struct that freezes its fields: dicts become Frozen, lists become tuples, at any depth."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, dict | list | tuple):
                force_setattr(self, name, frozen(value))


def frozen(value: object) -> object:
    """The same value, whose dicts are Frozen and whose lists are tuples, at any depth."""
    match value:
        case Frozen():
            return value
        case dict():
            return Frozen({key: frozen(inner) for key, inner in value.items()})
        case list() | tuple():
            return tuple(frozen(inner) for inner in value)
        case _:
            return value
