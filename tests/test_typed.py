"""Every command that a text of ours names can be typed: the verb, its options and their words exist.

The texts are those of the source, docstrings excepted: hints, notes, warnings, and what is left to be done.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pytest

import qmpsnap
from qmpsnap import pytest_plugin
from qmpsnap.cli.app import App, cli
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(qmpsnap.__file__).parent
ANY = "X"  # stands for what is filled in

# Commands of QEMU's that a text could tell somebody to send, and that are no English words.
QEMU = (
    r"(?:query|qom|job|block|blockdev|block-job|migrate|snapshot|object|device|netdev|chardev|nbd-server)[-_]"
    r"[a-z][a-z_-]+|system_[a-z]+|cont"
)
# Where one is spoken of, and is not to be sent.
FACTS = re.compile(r"answer to query-|not in query-jobs|by its jobs \(snapshot-save\)")


class Text(NamedTuple):
    """A text of the source."""

    place: str
    text: str


def spelled(node: ast.expr) -> str | None:
    """A string as the source has it; what is filled in is ANY, a command line of ours is spelled out."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(spelled(part) or ANY for part in parts)
        case ast.FormattedValue(value=ast.Call() as call):
            return spelled(call) or ANY
        case ast.Call(func=ast.Name(id="command"), args=words):
            return " ".join(["qmpsnap", *(spelled(word) or ANY for word in words)])
        case ast.Call(func=ast.Name(id="qmp"), args=[name]):
            return f"qmpsnap qmp {spelled(name) or ANY}"
        case ast.Call(func=ast.Name(id="frees")):
            return "qmpsnap qmp blockdev-del"
    return None


def texts() -> Iterator[Text]:
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        rest: list[ast.AST] = [tree]
        while rest:
            node = rest.pop()
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # a docstring
            text = spelled(node) if isinstance(node, ast.Constant | ast.JoinedStr | ast.Call) else None
            if isinstance(node, ast.expr) and text is not None:
                yield Text(f"{file.relative_to(SOURCE)}:{node.lineno}", text)
            elif not isinstance(node, ast.Name | ast.expr_context):
                rest.extend(ast.iter_child_nodes(node))


@pytest.fixture(scope="module")
def all_texts() -> tuple[Text, ...]:
    return tuple(
        text._replace(text=re.sub(r"qmpsnap (?:-s \S+ |--json )+", "qmpsnap ", text.text)) for text in texts()
    )


def lines(text: str) -> list[str]:
    """The command lines in a text: those between backticks if there are any, as in the tables of meanings."""
    marked = re.findall(r"`qmpsnap ([a-z][^`]*)`", text)
    return marked or re.findall(r"\bqmpsnap ([a-z].*?)(?=\bqmpsnap |$)", text, re.DOTALL)


def verb_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The verb that the words begin with, and the words after it.

    Raises:
        LookupError: When there is none.
    """
    context = click.Context(cli, obj=App())
    found, rest = cli.get_command(context, words[0]), words[1:]
    while isinstance(found, click.Group) and rest:
        found, rest = found.get_command(context, rest[0]), rest[1:]
    if found is None:
        raise LookupError(f"no verb {' '.join(words[:2])!r}")
    return found, rest


def faults(line: str) -> list[str]:
    """What is wrong with a command line, the program's name left out; prose may follow it."""
    words = [word.strip("'`\"") for word in re.split(r"[;:,()]|\. |$", line)[0].split()]
    try:
        verb, rest = verb_of(words)
    except LookupError as error:
        return [str(error)]
    options = {name: one for one in verb.params for name in (*one.opts, *one.secondary_opts)}
    wrong = []
    for word, value in zip(rest, (*rest, "")[1:], strict=True):
        option = options.get(word)
        if word.startswith("-") and option is None:
            wrong.append(f"{verb.name} has no option {word}")
        if (
            option is not None
            and isinstance(option.type, click.Choice)
            and value not in (*option.type.choices, ANY)
        ):
            wrong.append(f"{word} of {verb.name} takes no {value!r}")
    return wrong


def test_texts_are_found(all_texts: tuple[Text, ...]) -> None:
    assert len(all_texts) > 1000
    named = [one.text for one in all_texts if "qmpsnap job wait" in one.text]
    assert len(named) > 10


def test_each_command_line_that_a_text_names_can_be_typed(all_texts: tuple[Text, ...]) -> None:
    wrong = [
        f"{one.place}: {fault}: {one.text}"
        for one in all_texts
        for line in lines(one.text)
        for fault in faults(line)
        if not one.text.startswith("qmpsnap, ")  # its version
    ]
    assert wrong == []


def test_each_option_that_a_text_names_is_one_of_a_verb(all_texts: tuple[Text, ...]) -> None:
    context = click.Context(cli, obj=App())
    verbs = [cli.get_command(context, name) for name in cli.list_commands(context)]
    inner = [one for verb in verbs if isinstance(verb, click.Group) for one in verb.commands.values()]
    known = {
        name for verb in (*verbs, *inner, cli) if verb is not None for one in verb.params for name in one.opts
    } | {"--help", "--version", *(f"--qmpsnap-{name}" for name in pytest_plugin._OPTIONS)}
    wrong = [
        f"{one.place}: {option}: {one.text}"
        for one in all_texts
        if " " in one.text
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", one.text)
        if option not in known
    ]
    assert wrong == []


def test_no_text_tells_to_send_a_command_of_qemu_without_saying_how(all_texts: tuple[Text, ...]) -> None:
    bare = re.compile(rf"(?<!qmpsnap )(?<!qmpsnap qmp )(?<![\w/'\"`-])({QEMU})(?![\w/'\"`-])")
    wrong = [
        f"{one.place}: {found[1]}: {one.text}"
        for one in all_texts
        if " " in one.text and not FACTS.search(one.text) and (found := bare.search(one.text))
    ]
    assert wrong == []


@each(
    ("line", "fault"),
    [
        ("jbos shows", "no verb 'jbos shows'"),
        ("job wiat X", "no verb 'job wiat'"),
        ("revert X --back, then", "revert has no option --back"),
        ("checkpoint --mode inplace can", "--mode of checkpoint takes no 'inplace'"),
    ],
)
def test_a_command_line_that_cannot_be_typed_is_found(line: str, fault: str) -> None:
    assert faults(line) == [fault]
