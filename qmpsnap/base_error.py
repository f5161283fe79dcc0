"""What all errors of qmpsnap have in common: facts, and the lines by which a report tells them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import ClassVar, Final, TypedDict

CHAINS_CHANGED: Final = "the chains, or data in their layers, were changed"


class Changed(Enum):
    """Whether anything changed, in the chains or in the bytes of any layer."""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"


class Facts(TypedDict, total=False):
    """Facts that any error may carry besides its message."""

    changed: Changed
    hint: str
    invalid: Sequence[str]
    left: Sequence[str]


class QmpsnapError(Exception):
    """Base of all errors; says whether anything changed and what to do next.

    All of them can be copied and pickled, with every attribute. Below the message a traceback shows
    `details()`, `outcome()` and the hint, as the command line does.

    Attributes:
        changed: Whether the chains, or the layers' bytes, were changed.
        hint: What to do next, or "".
        given_hint: The hint as it was made, which may know the options that it names (model/option_hints.py).
        invalid: Files that no longer hold their moment.
        left: Files, nodes or jobs that stay behind, each with the command that removes it.
        exit_code: Exit code of the command line.
        tells_change: Whether a traceback has the line about what changed.
    """

    exit_code = 1
    tells_change: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        changed: Changed = Changed.NO,
        hint: str = "",
        invalid: Sequence[str] = (),
        left: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.changed = changed
        self.hint = str(hint)
        self.given_hint = hint
        self.invalid = tuple(invalid)
        self.left = tuple(left)

    def details(self) -> tuple[str, ...]:
        """What the error lists, a line for each: invalid files, what is left behind."""
        return (
            *(f"invalid, no longer holds its snapshot: {file}" for file in self.invalid),
            *(f"left behind: {item}" for item in self.left),
        )

    def outcome(self, *, moved: bool | None = None) -> str:
        """Whether anything was changed, as one line.

        Args:
            moved: Whether a disk writes to another file by now; None: it is not known.
        """
        match self.changed:
            case Changed.NO:
                return "nothing was changed"
            case Changed.YES:
                return self._outcome_of_change(moved=moved)
            case Changed.UNKNOWN:
                return "it is not known whether anything was changed"

    def _outcome_of_change(self, *, moved: bool | None) -> str:  # noqa: ARG002 - a subclass looks at it
        if self.invalid:
            return "the guest's data is unchanged, but the layers listed above were written to"
        return CHAINS_CHANGED

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # a plain attribute of Exception
        """The lines that a traceback shows below the message, as the attributes are by now."""
        outcome = (self.outcome(),) if self.tells_change else ()
        return [
            *self.details(),
            *outcome,
            *([_NEXT + self.hint] if self.hint else ()),
            *getattr(self, "_added_notes", ()),
        ]

    def add_note(self, note: str) -> None:
        """Add a line of the caller's."""
        if not isinstance(note, str):
            raise TypeError(f"note must be a str, not {type(note).__name__!r}")
        self._added_notes: tuple[str, ...] = (*getattr(self, "_added_notes", ()), note)

    def to_json(self) -> dict[str, object]:
        """The error as `--json` prints it: its class, the common attributes, and its own."""
        first = {
            "type": type(self).__name__,
            "message": self.message,
            "changed": self.changed.value,
            "hint": self.hint,
            "invalid": list(self.invalid),
            "left": list(self.left),
        }
        more = {
            key: value
            for key, value in vars(self).items()
            if key[0] != "_" and key not in {*first, "given_hint"}
        }
        if not isinstance(more.get("value"), str | int | float | None):
            more["value"] = repr(more["value"])
        return first | more

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls the class with only the message, but most classes take more.
        return _blank, (type(self), *self.args), dict(vars(self))


_NEXT: Final = "next: "


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _blank(kind: type[QmpsnapError], *args: object) -> QmpsnapError:
    """An error without attributes, which pickle and copy then restore."""
    return kind.__new__(kind, *args)
