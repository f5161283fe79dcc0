from __future__ import annotations

import click
import pytest

from qmpsnap.cli.app import _VERBS, App, cli


def test_help_names_every_verb_and_the_exit_codes(qmpsnap):
    ended = qmpsnap("--help")
    assert ended.code == 0
    assert all(f"  {name} " in ended.out for name in _VERBS)
    assert "130 interrupted" in ended.out
    assert "..." not in ended.out.replace("VERB ...", "")  # no line is cut short


def test_no_arguments_print_the_help_on_stderr(qmpsnap):
    ended = qmpsnap()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: qmpsnap")


@pytest.mark.parametrize(
    "name",
    [*(name for name in _VERBS if name not in {"job", "backup"}), "blockpull", "blockcommit", "blockcopy"],
)
def test_help_of_a_verb_has_an_example(qmpsnap, name):
    ended = qmpsnap(name, "--help")
    assert ended.code == 0
    assert "\nExample:\n  qmpsnap " in ended.out


@pytest.mark.parametrize("name", ["pause", "resume", "cancel", "speed", "wait"])
def test_help_of_a_job_verb_has_an_example_and_a_dry_run(qmpsnap, name):
    ended = qmpsnap("job", name, "--help")
    assert f"Example:\n  qmpsnap -s /run/vm1/qmp.sock job {name} " in ended.out
    assert "--dry-run" in ended.out


@pytest.mark.parametrize("name", ["run", "list", "verify", "restore"])
def test_help_of_a_backup_verb_has_an_example(qmpsnap, name):
    assert f" backup {name} /backups/vm1" in qmpsnap("backup", name, "--help").out.split("\nExample:\n")[1]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("frob", "the verbs are cancel, pause, resume, speed, wait"), ("canel", "did you mean cancel?")],
)
def test_a_verb_of_job_that_does_not_exist_is_answered_like_any_other(qmpsnap, typed, meant):
    ended = qmpsnap("job", typed, "x")
    assert ended.code == 2
    assert ended.err.splitlines()[0] == f"qmpsnap: there is no verb {typed!r}; {meant}"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--after", "--after-migration"), ("--st", "--state-dir or --storage-daemon"), ("--dry", "--dry-run")],
)
def test_an_option_that_is_cut_short_is_answered_by_those_that_begin_so(qmpsnap, typed, meant):
    ended = qmpsnap("cont", typed)
    assert ended.code == 2
    assert ended.err.splitlines()[0] == f"qmpsnap: No such option {typed!r}; did you mean {meant}?"


def test_a_verb_that_does_not_exist_is_answered_by_those_that_do(qmpsnap):
    ended = qmpsnap("merge")
    assert ended.code == 2
    assert "there is no verb 'merge'; the verbs are chain, snapshot" in ended.err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("snap", "snapshot"), ("chian", "chain"), ("check", "checkpoint"), ("st", "stream or status or stop")],
)
def test_a_verb_that_is_misspelled_or_cut_short_is_answered_by_similar_ones(qmpsnap, typed, meant):
    ended = qmpsnap(typed)
    assert ended.code == 2
    assert ended.err.splitlines()[0] == f"qmpsnap: there is no verb {typed!r}; did you mean {meant}?"


@pytest.mark.parametrize(
    ("group", "commands"),
    [("job", "cancel, pause, resume, speed, wait"), ("backup", "list, restore, run, verify")],
)
def test_a_group_alone_names_its_commands(qmpsnap, group, commands):
    ended = qmpsnap(group)
    assert ended.code == 2
    assert ended.err.splitlines()[0] == f"qmpsnap: give one of {commands}"


def test_a_missing_word_is_answered_by_the_choices_on_one_line(qmpsnap):
    ended = qmpsnap("completion")
    assert ended.code == 2
    assert ended.err.splitlines()[0].endswith("Choose from: bash, zsh, fish")


def test_no_socket_is_a_usage_error_that_says_how_to_give_one(qmpsnap):
    ended = qmpsnap("chain")
    assert ended.code == 2
    assert "-s PATH" in ended.err
    assert "QMPSNAP_SOCKET" in ended.err


def test_socket_comes_from_the_environment(qmpsnap, server, monkeypatch):
    monkeypatch.setenv("QMPSNAP_SOCKET", server.path)
    assert qmpsnap("chain").out == "no disks\n"


def test_socket_of_the_command_line_goes_before_the_environment(qmpsnap, server, monkeypatch):
    monkeypatch.setenv("QMPSNAP_SOCKET", "/none")
    assert qmpsnap("-s", server.path, "chain").code == 0


def test_shared_options_may_come_after_the_verb(qmpsnap, server):
    ended = qmpsnap("chain", "-s", server.path, "--json")
    assert ended.json == {"version": 1, "disks": [], "warnings": []}


def test_nobody_there_exits_4(qmpsnap, tmp_path):
    ended = qmpsnap("-s", tmp_path / "none", "--json", "jobs")
    error = ended.json["error"]
    assert (ended.code, ended.err, error["type"], error["changed"]) == (4, "", "ConnectFailed", "no")


def _verbs():
    context = click.Context(cli, obj=App())
    for name in cli.list_commands(context):
        found = cli.get_command(context, name)
        yield (name,)
        if isinstance(found, click.Group):
            yield from ((name, one) for one in found.commands)


@pytest.mark.parametrize("words", [(), *_verbs()], ids=" ".join)
def test_help_fits_80_columns_and_breaks_no_word(qmpsnap, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    narrow = qmpsnap(*words, "--help").out
    assert [line for line in narrow.splitlines() if len(line) > 80] == []
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setitem(cli.context_settings, "max_content_width", 300)
    wide = qmpsnap(*words, "--help").out
    assert [word for word in narrow.split() if word != "\\"] == [
        word for word in wide.split() if word != "\\"
    ]


def test_list_has_one_word_for_what_it_lists(qmpsnap, machine):
    assert "List snapshots and checkpoints" in qmpsnap("--help").out
    assert "List the snapshots and checkpoints" in qmpsnap("list", "--help").out
    assert "moment" not in qmpsnap("list", "--help").out
    assert machine("--shared-fs", "yes", "list").out == "no snapshots or checkpoints\n"
