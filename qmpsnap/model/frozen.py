"""A mapping that does not change and that travels: by pickle, by copy, by dataclasses.asdict, as JSON.

`types.MappingProxyType` does none of these.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

__all__ = ["Frozen"]

K = TypeVar("K")
V = TypeVar("V")


class Frozen(dict[K, V]):
    """A dict that refuses every change; equal to a dict with the same items.

    A copy is the same object, a deep copy another one, frozen too; `dict(it)` gives one that can be changed.
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
        """The same, for nothing can change it."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (dict(self),)
