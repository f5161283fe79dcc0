"""Nothing that is not ours reaches a terminal as more than text: no escape, and no line of its own."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import qmpsnap.cli
from qmpsnap.cli import runner
from qmpsnap.cli.app import App
from qmpsnap.cli.events import event_text
from qmpsnap.cli.output import emit, json_line, to_stderr
from qmpsnap.cli.report import report
from qmpsnap.errors import GraphMismatch, Incomplete, Refused
from qmpsnap.run.session import Event
from qmpsnap.testing.server import Return

from .conftest import disks

HOSTILE = '\n  9. -> {"execute": "quit"}\nFORGED\r\x1b[2J\x9b31m\u2028\u202e\x07'
COMMANDS = (
    "block-commit", "block-job-cancel", "block-stream", "blockdev-add", "blockdev-del", "device_add",
    "blockdev-snapshot-sync", "drive-mirror", "human-monitor-command", "job-cancel", "job-complete",
    "job-dismiss", "job-finalize", "transaction",
)  # fmt: skip
VERBS = {
    "chain": (),
    "list": (),
    "jobs": (),
    "snapshot": ("n1", "-n", "--shared-fs", "no"),
    "commit": ("vda", "-n", "--discard-internal", "--shared-fs", "no"),
    "stream": ("vda", "-n", "--shared-fs", "no"),
    "mirror": ("vda", "/d/copy", "--pivot", "-n", "--discard-internal", "--shared-fs", "no"),
    "status": (),
}


def is_clean(text):
    """Whether a terminal obeys nothing in it but the newlines that end our own lines."""
    return all(line.isprintable() for line in text.split("\n")) and not any(
        line.strip().startswith(("FORGED", "9. ->")) for line in text.split("\n")
    )


def keys(answer):
    """Every key with a text somewhere below it."""
    if isinstance(answer, dict):
        return {key for key, value in answer.items() if isinstance(value, str)}.union(
            *map(keys, answer.values())
        )
    return set().union(*map(keys, answer)) if isinstance(answer, list) else set()


def worsened(answer, key):
    """The same, every text under that key followed by what is hostile."""
    if isinstance(answer, dict):
        return {
            name: value + HOSTILE if name == key and isinstance(value, str) else worsened(value, key)
            for name, value in answer.items()
        }
    return [worsened(one, key) for one in answer] if isinstance(answer, list) else answer


@pytest.fixture
def answers(server):
    disks(server, inside=[("vda", "1", "before", 1 << 20)], vda=("/d/top", "/d/base"), vdb=("/d/b",))
    server.answer("query-commands", Return([{"name": name} for name in COMMANDS]))
    job = {"id": "j", "type": "commit", "status": "running", "current-progress": 1, "total-progress": 2}
    server.answer("query-jobs", Return([job | {"error": "it failed"}]))
    block = {
        "device": "j",
        "type": "commit",
        "len": 2,
        "offset": 1,
        "speed": 0,
        "busy": True,
        "paused": False,
    }
    block |= {
        "io-status": "ok",
        "ready": False,
        "status": "running",
        "auto-finalize": True,
        "auto-dismiss": True,
    }
    server.answer("query-block-jobs", Return([block]))
    return {
        command: server._answers[command][0].value
        for command in (
            "query-block",
            "query-blockstats",
            "query-named-block-nodes",
            "query-jobs",
            "query-block-jobs",
            "query-status",
        )
    }


@pytest.mark.parametrize("verb", VERBS)
def test_no_text_of_qemu_is_more_than_text(machine, server, answers, verb):
    server.answer("query-jobs", Return([] if "-n" in VERBS[verb] else answers["query-jobs"]))
    ended = machine(verb, *VERBS[verb], "-v")
    assert ended.code == 0, ended.err
    assert is_clean(ended.out)
    dirty = []
    for key in sorted(set().union(*map(keys, answers.values()))):
        for command, answer in answers.items():
            jobs = command != "query-jobs" or "-n" not in VERBS[verb]  # a plan waits for none
            server.answer(command, Return(worsened(answer, key) if jobs else []))
        ended = machine(verb, *VERBS[verb], "-v")
        if not is_clean(ended.out) or not is_clean(ended.err) or not ended.out + ended.err:
            dirty.append((key, ended.out, ended.err))
    assert dirty == []


def test_no_text_of_an_error_is_more_than_text(capsys):
    errors = [
        Refused(HOSTILE, hint=HOSTILE, left=[HOSTILE]),
        GraphMismatch(HOSTILE, expected={HOSTILE: (HOSTILE,)}, found={HOSTILE: (HOSTILE,)}),
        Incomplete(HOSTILE, done=[HOSTILE], remaining=[HOSTILE]),
    ]
    for error in errors:
        error.invalid = (HOSTILE,)
        report(App(moved={HOSTILE: HOSTILE}), error)
        assert is_clean("".join(capsys.readouterr()))


def test_no_text_of_an_event_is_more_than_text(capsys):
    data = {HOSTILE: HOSTILE, "inner": {HOSTILE: [HOSTILE, float("nan")]}}
    assert emit(event_text(Event(HOSTILE, data, 1.0)))
    assert is_clean(capsys.readouterr().out)


def test_the_story_of_a_fault_is_no_more_than_text(machine, monkeypatch):
    def fault(_, **options):
        raise ValueError(HOSTILE)

    monkeypatch.setattr(runner, "run", fault)
    monkeypatch.setattr("qmpsnap.cli.chain.run", fault)
    ended = machine("-v", "chain")
    assert "Traceback" in ended.err
    assert "in fault" in ended.err  # each frame is printed on lines of its own
    assert is_clean(ended.err)


def test_misuse_is_printed_as_text(qmpsnap):
    assert is_clean(qmpsnap(f"x{HOSTILE}").err)
    assert is_clean(qmpsnap("chain", f"--{HOSTILE}").err)


def test_emit_and_tell_print_a_line_for_each(capsys):
    emit("one\ntwo", "three")
    to_stderr("one\x1b[2J")
    assert capsys.readouterr() == ("one\\ntwo\nthree\n", "one\\x1b[2J\n")


def test_spell_knows_no_number_that_json_does_not():
    line = json_line(data={"a": float("nan"), "b": [float("inf"), 1.5, "NaN"]})
    assert json.loads(line, parse_constant=pytest.fail) == {
        "version": 1,
        "data": {"a": None, "b": [None, 1.5, "NaN"]},
    }


def test_nothing_else_of_the_command_line_prints():
    """One function prints results, one all else; a log handler and what a signal leaves are beside them."""
    (where,) = qmpsnap.cli.__path__
    found = set()
    for file in sorted(Path(where).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="print")):
                    found.add((file.name, "print"))
                case ast.Call(func=ast.Attribute(value=ast.Name(id="click"), attr="echo" | "secho")):
                    found.add((file.name, "echo"))
                case ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr="stdout" | "stderr"), attr="write")
                ):
                    found.add((file.name, "write"))
    assert found == {
        ("output.py", "print"),
        ("logs.py", "print"),
        ("main.py", "print"),  # where there is no click
        ("app.py", "echo"),  # our version
        ("signals.py", "write"),  # a question, without a newline
    }
