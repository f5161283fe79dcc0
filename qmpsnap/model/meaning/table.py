"""All meanings together, and how a word is found."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from qmpsnap.errors import NotFound
from qmpsnap.model.frozen import JsonStruct
from qmpsnap.model.meaning.actions import ACTIONS
from qmpsnap.model.meaning.entry import Said
from qmpsnap.model.meaning.errors import ERRORS
from qmpsnap.model.meaning.events import EVENTS
from qmpsnap.model.meaning.findings import FINDINGS
from qmpsnap.model.meaning.replies import EXIT_CODES, QMP_CLASSES
from qmpsnap.model.meaning.states import JOB_STATES, MIGRATION_STATES, RUN_STATES

_NEAR = 5  # words
_SEPARATORS = re.compile(r"[\s_-]+")
_EXIT = re.compile(r"exit(?:code)?(\d+)")


class Meaning(JsonStruct, frozen=True):
    """What a word means where it is a word of this kind; in the texts, commands stand between backticks.

    Attributes:
        word: As it is printed.
        kind: What it is a word for, such as "run state".
        text: What it means.
        advice: What to do about it; "" when there is nothing to do.
    """

    word: str
    kind: str
    text: str
    advice: str = ""


_TABLES: Mapping[str, Mapping[str, Said]] = MappingProxyType(
    {
        "run state": RUN_STATES,
        "job state": {state.value: said for state, said in JOB_STATES.items()},
        "migration state": MIGRATION_STATES,
        "event": EVENTS,
        "error": ERRORS,
        "QMP error class": QMP_CLASSES,
        "exit code": {str(code): said for code, said in EXIT_CODES.items()},
        "action of a plan": ACTIONS,
        "finding": FINDINGS,
    }
)


def _all() -> Iterator[Meaning]:
    for kind, table in _TABLES.items():
        for word, said in table.items():
            yield Meaning(word, kind, said.text, said.advice)


MEANINGS: tuple[Meaning, ...] = tuple(_all())
"""Every meaning, those of one kind together."""


def explain(word: str) -> tuple[Meaning, ...]:
    """Return the meanings of a word, one of each kind that has it.

    Args:
        word: The word; case, dashes, underscores and blanks do not matter. An exit code may be given
            as "exit 3".

    Raises:
        NotFound: When no kind has it; the hint names similar words.
    """
    key = _key(word)
    found = tuple(meaning for meaning in MEANINGS if _key(meaning.word) == key)
    if found:
        return found
    near = _near(key)
    raise NotFound(
        f"{word!r} is not known here as a state, event, error, exit code, action of a plan or finding",
        hint=f"similar words: {', '.join(near)}" if near else "qmpsnap explain lists all words",
    )


def _key(word: str) -> str:
    key = _SEPARATORS.sub("", word).casefold()
    code = _EXIT.fullmatch(key)
    return code[1] if code else key


def _near(key: str) -> list[str]:
    """Similar words: first those that contain it, then those that differ by some letters."""
    words: dict[str, str] = {}
    for meaning in MEANINGS:
        words.setdefault(_key(meaning.word), meaning.word)
    inner = [each for each in words if key and key in each]
    inner += difflib.get_close_matches(key, words, n=_NEAR, cutoff=0.6)
    return [words[each] for each in dict.fromkeys(inner)][:_NEAR]
