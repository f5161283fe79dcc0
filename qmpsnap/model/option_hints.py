"""Hints that name options: as data, so that each caller shows them in its own words.

The text of an error's hint has the usual words (`QmpsnapError.hint`); `given_hint` is the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from qmpsnap.errors import QmpsnapError
from qmpsnap.model.frozen import Frozen

OptionName = Literal["memory", "plain", "format", "image", "launcher"]
"""What a caller can give: a file for the memory, leave to store data unencrypted, a disk's format, its image,
a function that starts another QEMU.
"""

USUAL: Final[Mapping[OptionName, str]] = Frozen(
    {
        "memory": "--memory FILE",
        "plain": "--plain",
        "format": "--format {0}={1}",
        "image": "name an image for it in Start.disks",
        "launcher": "give launcher=",
    }
)
"""How the command line and the library spell the options; {0} and so on are their values."""


@dataclass(frozen=True, slots=True)
class Named:
    """An option in a hint.

    Attributes:
        option: The option.
        values: Its values; of `format`: the disk, quoted for a shell; the format; and the disk.
    """

    option: OptionName
    values: tuple[str, ...] = ()


class Hint(str):
    """A hint; as text it has the usual words.

    Attributes:
        parts: Its text, and the options in it.
        words: How these are spelled, by option.
    """

    __slots__ = ("parts", "words")
    parts: tuple[str | Named, ...]
    words: Mapping[OptionName, str]

    def __new__(cls, *parts: str | Named, words: Mapping[OptionName, str] = USUAL) -> Self:
        """Put the parts together."""
        text = (part if isinstance(part, str) else words[part.option].format(*part.values) for part in parts)
        hint = super().__new__(cls, "".join(text))
        hint.parts, hint.words = parts, words
        return hint

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.parts, {"words": self.words}


def names(error: QmpsnapError, option: OptionName) -> bool:
    """Whether the hint of an error names that option."""
    hint = error.given_hint
    return isinstance(hint, Hint) and any(
        isinstance(part, Named) and part.option == option for part in hint.parts
    )


def reword(error: QmpsnapError, words: Mapping[OptionName, str]) -> None:
    """Let the hint of an error spell options as its caller does; what is in no words stays as it is."""
    hint = error.given_hint
    if isinstance(hint, Hint) and error.hint == hint:
        error.given_hint = Hint(*hint.parts, words={**hint.words, **words})
        error.hint = str(error.given_hint)
