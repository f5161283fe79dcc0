from __future__ import annotations

import errno
import os
import stat
import threading

import pytest

from qmpsnap.cli.shell_history import ShellHistory, history_file
from qmpsnap.model.qmp_line import read_line
from tests.each import each
from tests.model.schemas import SCHEMA


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "qmpsnap" / "shell-history"


def remember(file, *lines):
    history = ShellHistory(file)
    for line in lines:
        request = read_line(line, SCHEMA)
        assert request is not None
        history.remember(line, request)
    history.close()


def loaded(file):
    history = ShellHistory(file)
    lines = list(history.load_history_strings())
    history.close()
    return lines


def test_history_gives_earlier_lines_the_newest_first_and_nobody_else_can_read_it(file):
    remember(file, "quit", "  block-commit   device=vda ")
    remember(file, "query-status")
    assert loaded(file) == ["query-status", "block-commit device=vda", "quit"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_history_of_others_eyes_is_closed_to_them(file):
    remember(file, "quit")
    file.chmod(0o644)
    remember(file, "quit")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@each(
    ("line", "kept"),
    [
        (
            '{"execute": "object-add", "arguments": {"qom-type": "secret", "id": "s", "data": "hunter2"}}',
            'object-add {"qom-type": "secret", "id": "s", "data": "***"}',
        ),
        (
            "human-monitor-command command-line='set_password vnc hunter2'",
            'human-monitor-command {"command-line": "set_password ***"}',
        ),
        (
            '{"execute": "change-vnc-password", "arguments": {"password": "hunter2"}}',
            'change-vnc-password {"password": "***"}',
        ),
    ],
)
def test_history_masks_secrets(file, line, kept):
    file.unlink(missing_ok=True)
    remember(file, line)
    assert loaded(file) == [kept]


def test_history_does_not_keep_what_was_only_typed(file):
    history = ShellHistory(file)
    history.append_string("set_password pasword=hunter2")
    assert history.get_strings() == ["set_password pasword=hunter2"]
    history.close()
    assert loaded(file) == []


def test_a_history_that_has_become_long_is_cut_to_its_newest_lines(file):
    remember(file, "quit")
    file.write_text("".join(f"query-status # {number:0300}\n" for number in range(2000)))
    assert loaded(file)[0].endswith("1999")
    assert file.stat().st_size < 256 * 1024
    assert loaded(file)[0].endswith("1999")


def test_the_newest_lines_of_a_very_long_history_are_kept(file):
    remember(file, "quit")
    file.write_text("".join(f"query-status # {number:03000}\n" for number in range(600)))
    lines = loaded(file)
    assert lines[0].endswith("0599")
    assert {len(line) for line in lines} == {len(f"query-status # {0:03000}")}
    assert loaded(file)[0].endswith("0599")


def test_a_line_that_another_shell_sends_while_the_history_is_cut_is_not_lost(file, monkeypatch):
    remember(file, "quit")
    file.write_text("".join(f"query-status # {number:0300}\n" for number in range(2000)))
    others = []

    def cut(descriptor, size):
        others.append(threading.Thread(target=remember, args=(file, "query-status")))
        others[0].start()
        others[0].join(0.2)  # it waits; if it did not, its line would be there now, and then cut off
        truncate(descriptor, size)

    truncate = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", cut)
    loaded(file)
    others[0].join()
    assert loaded(file)[:2] == ["query-status", f"query-status # {1999:0300}"]


def test_a_history_that_cannot_be_read_is_said_once_and_kept_no_more(file, monkeypatch, capsys):
    remember(file, "quit")

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    history = ShellHistory(file)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", failing)
        assert list(history.load_history_strings()) == []
    request = read_line("quit", SCHEMA)
    assert request is not None
    history.remember("quit", request)
    assert list(history.load_history_strings()) == []
    text = f"qmpsnap: the history is not kept any more: {file}: Input/output error\n"
    assert capsys.readouterr().err == text
    assert loaded(file) == ["quit"]


def test_a_history_that_cannot_be_used_is_said_once(file, capsys):
    file.parent.mkdir(parents=True)
    file.symlink_to("elsewhere")
    remember(file, "quit", "quit")
    assert loaded(file) == []
    assert capsys.readouterr().err.count("the history is not kept") == 2
    file.unlink()
    os.mkfifo(file)
    remember(file, "quit")
    assert "it is not a file of yours" in capsys.readouterr().err


def test_history_is_in_the_directory_of_states(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert str(history_file()) == "/s/qmpsnap/shell-history"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/h")
    assert str(history_file()) == "/h/.local/state/qmpsnap/shell-history"
