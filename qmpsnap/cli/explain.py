"""`qmpsnap explain`: what a state, an event, an error or an exit code means."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

import click

from qmpsnap.cli.app import App, verb
from qmpsnap.cli.output import columns, emit, json_line
from qmpsnap.model.meaning.table import MEANINGS, Meaning
from qmpsnap.model.meaning.table import explain as explained

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_COMMAND = re.compile(r"`([^`]*)`")
_GLUE = "\N{NO-BREAK SPACE}"


class _Word(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A word that has a meaning; completed with all of them."""

    name = "word"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete the word, in any case."""
        del ctx, param
        words = dict.fromkeys(meaning.word for meaning in MEANINGS)
        fitting = (word for word in words if word.casefold().startswith(incomplete.casefold()))
        return [click.shell_completion.CompletionItem(word) for word in fitting]


@verb(
    "explain",
    example="qmpsnap explain io-error",
    short_help="Explain a state, event, error, finding or exit code.",
)
@click.argument("word", type=_Word(), required=False)
@click.pass_obj
def explain(app: App, word: str | None) -> None:
    """Explain what WORD means, and what to do about it; without WORD, list all words. Needs no machine.

    WORD is a run state, a state of a job or of a migration, an event, an error or its class, an exit code,
    an action of a plan, or what the doctor finds. Case and dashes do not matter.
    """
    meanings = MEANINGS if word is None else explained(word)
    if app.json:
        emit(json_line(meanings=[meaning.to_json() for meaning in meanings]))
    elif word is None:
        emit(*_list(meanings))
    else:
        emit(*(line for meaning in meanings for line in _paragraph(meaning)))


def _list(meanings: Iterable[Meaning]) -> list[str]:
    lines = []
    for kind, members in groupby(meanings, lambda meaning: meaning.kind):
        lines += [f"{kind}:", *_wrap(", ".join(member.word for member in members), "  ")]
    return lines


def _paragraph(meaning: Meaning) -> list[str]:
    lines = _wrap(f"{meaning.word} ({meaning.kind}): {meaning.text}", "", "  ")
    return lines + (_wrap(f"next: {meaning.advice}", "  ", "    ") if meaning.advice else [])


def _wrap(text: str, first: str, further: str | None = None) -> list[str]:
    """Wrap between words; a command between backticks stays on one line, and loses them."""
    glued = _COMMAND.sub(lambda match: match[1].replace(" ", _GLUE), text)
    lines = textwrap.wrap(
        glued,
        columns(),
        initial_indent=first,
        subsequent_indent=first if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_GLUE, " ") for line in lines]
