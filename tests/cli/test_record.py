from __future__ import annotations

import json

import pytest
from click.shell_completion import ShellComplete

from qmpsnap.cli.app import App, cli
from qmpsnap.testing.server import Fail, Return


def commands(file):
    """The commands of a record, without those that every session begins with."""
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    sent = [line["message"]["execute"] for line in lines if line["from"] == "client"]
    return [command for command in sent if command.startswith("query-status") or command == "stop"]


@pytest.mark.parametrize("dashes", [("--",), ()])
def test_record_runs_the_command_and_records_its_session(qmpsnap, server, tmp_path, dashes):
    file = tmp_path / "r.jsonl"
    ended = qmpsnap("record", file, *dashes, "-s", server.path, "--json", "status")
    assert (ended.code, ended.json["status"], ended.err) == (0, "running", "")
    assert set(commands(file)) == {"query-status"}


def test_record_takes_options_of_the_machine_before_itself(qmpsnap, server, tmp_path):
    ended = qmpsnap("-s", server.path, "--json", "record", tmp_path / "r", "--", "status")
    assert (ended.code, ended.json["status"]) == (0, "running")
    assert set(commands(tmp_path / "r")) == {"query-status"}


def test_record_leaves_options_of_the_command_alone(machine, server, tmp_path):
    ended = machine("record", tmp_path / "r", "qmp", "stop", "-n")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "nothing was sent (-n)")


def test_record_has_the_exit_code_of_the_command(machine, server, tmp_path):
    server.answer("stop", Fail("no"))
    assert machine("record", tmp_path / "a", "--", "qmp", "stop").code == 4
    assert machine("record", tmp_path / "b", "--", "qmp").code == 2
    assert machine("record", tmp_path / "c", "--", "merge").code == 2
    assert machine("record", tmp_path / "d", "--", "status", "-i", "vda=x.qcow2").code == 2
    server.answer("query-qmp-schema", Return([{"name": "STOP", "meta-type": "event"}]))
    assert machine("record", tmp_path / "e", "--", "events", "STOP", "--timeout", "0.01").code == 0
    assert machine("record", tmp_path / "e", "--", "status").code == 3  # it exists


@pytest.mark.parametrize(
    "words",
    [
        ("--record", "b", "record", "a", "--", "status"),
        ("record", "a", "--", "--record", "b", "status"),
        ("record", "a", "--", "status", "--record", "b"),
        ("record", "a", "--", "record", "b", "--", "status"),
        ("--record", "a", "status", "--record", "b"),
    ],
    ids=" ".join,
)
def test_two_records_of_a_session_are_refused(machine, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = machine(*words)
    assert (ended.code, "two records" in ended.err) == (2, True)
    assert list(tmp_path.glob("[ab]")) == []


@pytest.mark.parametrize("words", [("backup", "list", "/d"), ("replay", "x")], ids=" ".join)
def test_a_record_of_a_command_without_a_session_is_refused(qmpsnap, words, tmp_path):
    ended = qmpsnap("--record", tmp_path / "r", *words)
    assert (ended.code, "nothing to record" in ended.err) == (2, True)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("typed", "incomplete", "expected"),
    [
        (("record", "r", "--"), "sta", ["status"]),
        (("record", "r"), "sta", ["status"]),
        (("record", "r", "--", "commit", "vda"), "--keep-o", ["--keep-overlay"]),
    ],
)
def test_record_completes_the_command_as_alone(typed, incomplete, expected):
    found = ShellComplete(cli, {"obj": App()}, "qmpsnap", "").get_completions(list(typed), incomplete)
    assert [item.value for item in found] == expected
