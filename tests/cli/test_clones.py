from __future__ import annotations

import json

import pytest

import qmpsnap as library
from qmpsnap.cli.clones import _tell_child, _template_lines
from qmpsnap.fork import Child
from qmpsnap.model.graph import draw
from qmpsnap.run.outcome import Done
from qmpsnap.template import Template
from tests.model.test_template import RECORD


@pytest.mark.parametrize("words", [("template", "t1", "/t"), ("clone", "/t"), ("fork", "2")])
def test_verb_without_a_launcher_is_a_usage_error(qmpsnap, words):
    ended = qmpsnap("-s", "/none", *words)
    assert ended.code == 2
    assert f"{words[0]} starts other QEMUs: give --launcher COMMAND, a script that" in ended.err
    assert '$QMPSNAP_DISK_NAME, and with "$@" at its end' in ended.err


def test_launcher_that_no_shell_could_read_is_a_usage_error(qmpsnap):
    ended = qmpsnap("--launcher", "sh -c 'x", "clone", "/t")
    assert (ended.code, "--launcher" in ended.err) == (2, True)


def test_clone_of_what_is_no_template_is_refused(qmpsnap, tmp_path):
    ended = qmpsnap("--launcher", "true", "clone", tmp_path / "none")
    assert (ended.code, "there is no template" in ended.err) == (3, True)


def test_template_that_does_not_exist_is_not_planned_to_be_removed(qmpsnap, tmp_path):
    ended = qmpsnap("template", "--remove", tmp_path / "none", "-n")
    assert (ended.code, "there is no template" in ended.err) == (3, True)
    (tmp_path / ".none.partial").mkdir()  # killed early, a process that makes it leaves that alone
    ended = qmpsnap("template", "--remove", tmp_path / "none", "-n")
    assert (ended.code, f'"files": ["{tmp_path}/.none.partial"]' in ended.out) == (0, True)
    (tmp_path / "image").touch()
    ended = qmpsnap("template", "--remove", tmp_path / "image", "-n")
    assert (ended.code, f'"files": ["{tmp_path}/image"]' in ended.out) == (0, True)
    assert (tmp_path / "image").exists()


def test_usage_of_template_shows_that_name_and_directory_go_together(qmpsnap):
    assert qmpsnap("template", "--help").out.startswith("Usage: qmpsnap template [OPTIONS] [NAME DIR]\n")


def test_template_says_whether_its_checkpoint_was_taken_and_where_the_disks_are():
    made: Template[library.VM] = Template("/t", RECORD, None)
    clone = "to start a clone: qmpsnap --launcher './start me.sh' clone /t"
    head = f"/t: template of {RECORD.name!r}, 64 MiB of memory"
    existed = f"the checkpoint {RECORD.name!r} existed; this machine was not touched"
    assert _template_lines(made, "./start me.sh") == [head, existed, clone]
    chains: dict[str, tuple[str, ...]] = {"vda": ("/d/new.qcow2", "/d/base.qcow2")}
    active = {"vda": "/d/new.qcow2"}
    made.taken = Done("checkpoint", chains, active=active, standstill_s=0.015)
    assert _template_lines(made, "./start me.sh") == [
        head,
        f"the checkpoint {RECORD.name!r} did not exist, and was taken; the guest was paused for 15 ms",
        f"vda: {draw(chains['vda'])}",
        clone,
        "from now on, start vda from /d/new.qcow2",
    ]
    told = made.to_json()
    assert (told["taken"], told["chains"], told["active"]) == (
        True,
        {"vda": ["/d/new.qcow2", "/d/base.qcow2"]},
        active,
    )


def test_child_that_was_not_started_says_why(capsys):
    child: Child[library.VM] = Child(1, error=library.ConnectFailed("no QEMU\x1b today"))
    _tell_child(child, as_json=False)
    text = capsys.readouterr().out
    assert text.startswith("1: not started: no QEMU")
    assert "\x1b" not in text
    _tell_child(child, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "version": 1,
        "number": 1,
        "error": "no QEMU\x1b today",
    }
