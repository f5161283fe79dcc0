"""Directives that read the code, so that what the pages say of it stays true.

cli-help VERB...     what `qmpsnap VERB... --help` prints
errors               every class of errors.py, its exit code, and when it is raised
job-states           QEMU's states of a job, what may follow each, and what can be asked of it there
meanings KIND        the words of a kind that `qmpsnap explain` knows, their meaning, and what to do
resume-refused       the run states in which `cont` is refused, why, and what to do instead
troubles             what the doctor finds, and whether it is a trouble
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

from click.testing import CliRunner
from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

from qmpsnap import errors
from qmpsnap.cli.app import App, cli
from qmpsnap.model.job import TRANSITIONS, VERBS
from qmpsnap.model.meaning.table import MEANINGS
from qmpsnap.plan.diagnosis.rules import RULES
from qmpsnap.plan.vmstate.guest import RESUME_REFUSED

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class CliHelp(SphinxDirective):
    """What the command line prints about a verb."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Run it, and show its output."""
        words = self.arguments[0].split() if self.arguments else []
        result = CliRunner().invoke(
            cli, [*words, "--help"], prog_name="qmpsnap", obj=App(), terminal_width=96
        )
        if result.exit_code:
            raise self.error(f"qmpsnap {' '.join(words)} --help: {result.output}")
        return [_literal(result.output)]


class Errors(SphinxDirective):
    """The table of all errors."""

    def run(self) -> list[nodes.Node]:
        """Make one row a class, in the order of the file."""
        classes = [
            one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, Exception)
        ]
        rows = [
            [
                nodes.literal(
                    text="\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}" * (len(one.__mro__) - 4) + one.__name__
                ),
                nodes.Text(str(one.exit_code)),
                nodes.Text((one.__doc__ or "").split("\n\n")[0].replace("`", "")),
            ]
            for one in classes
        ]
        names = [one.__name__ for one in classes]
        entries = [("single", f"{name} (error)", self._anchor(name), "", None) for name in names]
        anchors = [nodes.target("", "", ids=[self._anchor(name)]) for name in names]
        return [
            addnodes.index(entries=entries),
            *anchors,
            _table(["class", "exit", "raised when"], rows),
        ]

    @staticmethod
    def _anchor(name: str) -> str:
        return f"error-{name.lower()}"


class JobStates(SphinxDirective):
    """The table of a job's states."""

    def run(self) -> list[nodes.Node]:
        """Make one row a state."""
        rows = [
            [
                nodes.literal(text=state.value),
                nodes.Text(", ".join(one for one in TRANSITIONS if one in following)),
                nodes.Text(", ".join(verb for verb, states in VERBS.items() if state in states)),
            ]
            for state, following in TRANSITIONS.items()
        ]
        return [_table(["state", "may become", "takes"], rows)]


class Meanings(SphinxDirective):
    """The table of the words of one kind."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Make one row a word."""
        rows = [
            [nodes.literal(text=meaning.word), _marked(meaning.text), _marked(meaning.advice)]
            for meaning in MEANINGS
            if meaning.kind == self.arguments[0]
        ]
        if not rows:
            raise self.error(f"no word is of the kind {self.arguments[0]!r}")
        header = ["word", "means", "what to do"]
        if not any(meaning.advice for meaning in MEANINGS if meaning.kind == self.arguments[0]):
            header, rows = header[:2], [row[:2] for row in rows]
        return [_table(header, rows)]


def _marked(text: str) -> nodes.Node:
    """Text with its commands, which stand between backticks, as literals."""
    parts = enumerate(re.split("`", text))
    pieces = [nodes.literal(text=part) if index % 2 else nodes.Text(part) for index, part in parts]
    return nodes.inline("", "", *pieces)


class ResumeRefused(SphinxDirective):
    """The table of the run states in which the guest may not be resumed."""

    def run(self) -> list[nodes.Node]:
        """Make one row a state."""
        rows = [
            [nodes.literal(text=state), nodes.Text(why), nodes.Text(instead)]
            for state, (why, instead) in RESUME_REFUSED.items()
        ]
        return [_table(["run state", "why", "what to do instead"], rows)]


class Troubles(SphinxDirective):
    """The table of everything that the doctor finds."""

    def run(self) -> list[nodes.Node]:
        """Make one row a code, in the order in which they are reported."""
        rows = [
            [
                nodes.reference(text=rule.code, refuri=f"#{rule.code}"),
                nodes.Text(rule.what),
                nodes.Text(rule.severity),
            ]
            for rule in {rule.code: rule for rule in RULES}.values()
        ]
        return [_table(["code", "what it is", ""], rows)]


def _literal(text: str) -> nodes.literal_block:
    block = nodes.literal_block(text, text)
    block["language"] = "text"
    return block


def _table(header: list[str], rows: list[list[nodes.Node]]) -> nodes.table:
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    group += nodes.thead("", _row([nodes.Text(text) for text in header]))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group)


def _row(cells: list[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    """Give Sphinx the directives."""
    app.add_directive("cli-help", CliHelp)
    app.add_directive("errors", Errors)
    app.add_directive("job-states", JobStates)
    app.add_directive("meanings", Meanings)
    app.add_directive("resume-refused", ResumeRefused)
    app.add_directive("troubles", Troubles)
    return {"parallel_read_safe": True}
