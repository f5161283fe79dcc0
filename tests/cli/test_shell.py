from __future__ import annotations

import io
import json

import pytest

from qmpsnap.testing.server import Fail, Hangup, Return
from tests.model.schemas import REPLY


@pytest.fixture
def shell(machine, server, monkeypatch):
    """Run the shell on lines of stdin."""
    server.answer("query-qmp-schema", Return(REPLY))

    def call(lines, *words):
        typed = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
        return machine("shell", *words)

    return call


def answers(ended):
    return [(line["command"], line["return"]) for line in map(json.loads, ended.out.splitlines())]


def test_shell_sends_each_line_and_prints_each_answer_as_a_line_of_json(shell, server):
    server.answer("block-commit", Return({}))
    server.answer("human-monitor-command", Return("a\r\nb"))
    ended = shell(
        "# how to\n\nquery-status\nblock-commit device=vda speed=1K\n"
        'human-monitor-command {"command-line": "info x"}\n{"execute": "query-status"}'
    )
    status = {"status": "running", "running": True}
    assert (ended.code, ended.err) == (0, "")
    assert answers(ended) == [
        ("query-status", status),
        ("block-commit", {}),
        ("human-monitor-command", "a\r\nb"),
        ("query-status", status),
    ]
    assert server.received[-3]["arguments"] == {"device": "vda", "speed": 1024}


def test_shell_stops_at_the_first_failure_with_its_exit_code(shell, server):
    server.answer("job-cancel", Fail("no such job"))
    ended = shell("query-status\njob-cancel id=x\nquit-not\n")
    assert ended.code == 4
    assert len(answers(ended)) == 1
    assert "line 2: QEMU refused 'job-cancel': no such job\n  nothing was changed\n" in ended.err


def test_shell_says_that_lines_before_the_failing_one_may_have_changed_something(shell, server):
    server.answer("job-cancel", Return({}))
    ended = shell("job-cancel id=x\nnonsense\n", "--json")
    failed = json.loads(ended.out.splitlines()[-1])["error"]
    assert (ended.code, failed["type"], failed["changed"]) == (3, "BadArgument", "unknown")
    assert failed["message"] == "line 2: this QEMU has no command 'nonsense'"


def test_shell_dry_sends_only_what_is_known_to_change_nothing(shell, server):
    ended = shell("query-status\nblock-commit device=vda\n", "--dry")
    assert ended.code == 3
    assert "line 2: block-commit may change something, and --dry was given" in ended.err
    assert '{"execute": "block-commit", "arguments": {"device": "vda"}}' in ended.err
    assert "block-commit" not in server.commands


def test_shell_does_not_take_quit_for_its_own_end(shell, server):
    ended = shell("quit\n")
    assert ended.code == 3
    assert "quit ends QEMU, and not this shell" in ended.err
    assert "quit" not in server.commands


def test_shell_ends_at_exit(shell, server):
    ended = shell("query-status\nexit\nquery-nothing\n")
    assert (ended.code, len(answers(ended))) == (0, 1)


def test_shell_sends_a_quit_that_is_spelled_out(shell, server):
    server.answer("quit", Return({}), Hangup())
    ended = shell('{"execute": "quit"}\n')
    assert (ended.code, answers(ended)) == (0, [("quit", {})])


def test_shell_exits_5_when_qemu_goes_in_the_middle_of_a_command(shell, server):
    server.answer("block-commit", Hangup())
    ended = shell("block-commit device=vda\nquery-status\n")
    assert ended.code == 5
    assert "line 1: " in ended.err
    assert "it is not known whether anything was changed" in ended.err


def test_shell_refuses_a_line_that_is_no_text(shell):
    ended = shell(b"query-status\n\xff\n")
    assert ended.code == 3
    assert "line 2: not UTF-8" in ended.err


def test_shell_sends_any_command_to_a_qemu_that_gives_no_schema(shell, server):
    server.answer("query-qmp-schema", Fail("no", "CommandNotFound"))
    server.answer("any", Return(1))
    ended = shell("any x=1\n")
    assert (ended.code, answers(ended)) == (0, [("any", 1)])
    assert "QEMU does not give its schema" in ended.err


def test_shell_needs_a_running_qemu(qmpsnap, tmp_path):
    ended = qmpsnap("-i", f"vda={tmp_path}/x.qcow2", "shell")
    assert ended.code == 3
    assert "shell needs a running QEMU" in ended.err
