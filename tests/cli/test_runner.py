from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from qmpsnap.cli import runner
from qmpsnap.cli.app import App, cli
from qmpsnap.cli.signals import Signals
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream


def test_snapshot_without_a_name_is_named_by_the_time(intent):
    assert re.fullmatch(r"snap-\d{8}T\d{6}", intent("snapshot").name)


def test_snapshot_splits_disk_at_the_first_equals_and_makes_files_absolute(intent):
    here = Path.cwd()
    asked = intent(
        "snapshot", "n", "--disk", "vda", "--disk", "vdb=a=b.qcow2", "--disk", "vdc=/x/y", "--use-existing"
    )
    assert asked == Snapshot(
        "n", ("vda", "vdb", "vdc"), {"vdb": f"{here}/a=b.qcow2", "vdc": "/x/y"}, use_existing=True
    )


@pytest.mark.parametrize("word", ["=f", "vda="])
def test_snapshot_refuses_half_a_disk(qmpsnap, word):
    assert qmpsnap("-s", "/none", "snapshot", "--disk", word).code == 2


def test_stream_says_all_that_can_be_said(intent):
    asked = intent("stream", "vda", "--base", "b", "--into", "i", "--on-error", "stop", "--speed", "2M")
    assert asked == Stream("vda", "b", "i", "stop", 2 << 20)


def test_stream_has_the_promised_defaults(intent):
    assert intent("blockpull", "vda") == Stream("vda")


def test_commit_says_all_that_can_be_said(intent):
    words = (
        "--top",
        "t",
        "--base",
        "b",
        "--keep-overlay",
        "--look-in",
        "/l",
        "--invalidate",
        "/i",
        "--folded",
        "keep",
    )
    asked = intent("commit", "vda", *words, "--discard-internal", "--on-error", "ignore", "--speed", "5")
    assert asked == Commit(
        "vda", "t", "b", keep_overlay=True, look_in=("/l",), invalidate=("/i",), folded="keep",
        discard_internal=True, on_error="ignore", speed=5,
    )  # fmt: skip


def test_commit_has_the_promised_defaults(intent):
    assert intent("blockcommit", "vda") == Commit("vda")


def test_mirror_says_all_that_can_be_said(intent):
    words = ("--finish", "--sync", "top", "--format", "raw", "--use-existing", "--discard-internal")
    assert intent("mirror", "vda", "/t", *words) == Mirror(
        "vda", "/t", "finish", sync="top", format="raw", use_existing=True, discard_internal=True
    )


def test_mirror_has_the_promised_defaults(intent):
    assert intent("blockcopy", "vda", "t", "--pivot") == Mirror("vda", f"{Path.cwd()}/t", "pivot")


@pytest.mark.parametrize("words", [(), ("--pivot", "--finish")])
def test_mirror_refuses_no_ending_and_two(qmpsnap, words):
    assert qmpsnap("-s", "/none", "mirror", "vda", "t", *words).code == 2


def test_a_relative_file_names_a_disk_from_the_callers_directory(intent, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert intent("stream", "vm/vda.qcow2").disk == f"{tmp_path}/vm/vda.qcow2"
    assert intent("stream", "vda").disk == "vda"


@pytest.mark.parametrize(
    "words",
    [
        ("snapshot", "n"),
        ("snapshot", "n", "--internal"),
        ("stream", "vda"),
        ("commit", "vda"),
        ("mirror", "vda", "copy", "--finish"),
        ("checkpoint", "c"),
        ("checkpoint", "c", "--mode", "internal"),
        ("save", "m"),
        ("restore", "m"),
        ("revert", "c"),
        ("revert", "c", "--prepare"),
        ("revert", "c", "--into-incoming"),
        ("delete", "c"),
    ],
)
def test_every_verb_waits_for_jobs_only_with_wait(qmpsnap, monkeypatch, words):
    """The work is given a VM that records which of its methods is called."""

    class Called(Exception):
        pass

    class Machine:
        def plan(self, intent):
            raise Called("plan")

        def when_idle(self, intent):
            raise Called("when_idle")

    calls = []

    def run(work):
        try:
            work(Machine(), None).send(None)
        except Called as called:
            calls.append(str(called))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", run)
    qmpsnap(*words)
    qmpsnap(*words, "--wait")
    assert calls == ["plan", "when_idle"]


async def test_roots_that_are_back_where_they_began_have_not_moved():
    app = App()
    with click.Context(cli, obj=app):
        told = runner.hooks(Signals(app), None, {"vda": "a", "vdb": "b"}).on_pivot
        assert told is not None
        told({"vda": "a.new", "vdb": "b.new"})
        assert app.moved == {"vda": "a.new", "vdb": "b.new"}
        told({"vda": "a"})
        assert app.moved == {"vdb": "b.new"}
        told({"vdb": "b"})
        assert app.moved == {}
