from __future__ import annotations

from pathlib import Path

import pytest

from qmpsnap.plan.intent import Checkpoint, MakeStore
from qmpsnap.run.outcome import Done

REVERTS_IN_A_NEW = (
    "only a new QEMU can revert to it: qmpsnap -s /old revert c1 --prepare prints the files to start it from"
)


def test_checkpoint_has_the_promised_defaults(intent):
    assert intent("checkpoint", "c1") == Checkpoint("c1", "stop", "")


@pytest.mark.parametrize("mode", ["stop", "background", "in-place"])
def test_checkpoint_asks_for_the_mode_and_the_file(intent, mode):
    asked = intent("checkpoint", "c1", "--mode", mode, "--memory", "m")
    assert asked == Checkpoint("c1", mode, f"{Path.cwd()}/m")


def test_checkpoint_in_the_background_gets_a_store_where_a_launcher_is_given(intent):
    words = ("checkpoint", "c1", "--launcher", "start-vm")
    assert intent(*words, "--mode", "background") == Checkpoint("c1", "background", store=True)
    assert intent(*words, "--mode", "in-place") == Checkpoint("c1", "in-place")


def test_checkpoint_that_exists_is_converted(intent):
    assert intent("checkpoint", "--convert", "c1", "--launcher", "start-vm") == MakeStore("c1")


@pytest.mark.parametrize(
    ("mode", "last"),
    [
        (
            "stop",
            REVERTS_IN_A_NEW,
        ),
        ("in-place", "checkpoint: done in 500 ms"),
    ],
)
def test_checkpoint_says_when_only_a_new_qemu_can_revert_to_it(printed, mode, last):
    done = Done(op="checkpoint", chains={}, elapsed_s=0.5)
    assert printed(done, "checkpoint", "c1", "--mode", mode).out.splitlines()[-1] == last


def test_checkpoint_internal_is_an_intent_of_its_own(intent):
    words = ("--mode", "internal", "--leave", "vdb", "--leave", "vdc", "--via", "jobs")
    assert intent("checkpoint", "c1", *words) == Checkpoint(
        "c1", "internal", leave=("vdb", "vdc"), via="jobs"
    )
    assert intent("checkpoint", "c1", "--mode", "internal") == Checkpoint("c1", "internal")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--mode", "internal", "--memory", "m"), "omit --memory"),
        (("--leave", "vdb"), "--leave and --via go with --mode internal"),
        (
            ("--mode", "in-place", "--via", "hmp"),
            "--leave and --via go with --mode internal, not with in-place",
        ),
        (("--mode", "live"), "'live' is not one of"),
        (("--convert",), "--convert starts another QEMU: give --launcher COMMAND"),
        (("--convert", "--mode", "stop"), "--convert is for a checkpoint that exists: omit --mode"),
        (("--convert", "--memory", "m", "--launcher", "x"), "--convert is for a checkpoint that exists"),
    ],
)
def test_checkpoint_refuses_options_of_another_mode(qmpsnap, words, expected):
    ended = qmpsnap("-s", "/none", "checkpoint", "c1", *words)
    assert (ended.code, ended.out) == (2, "")
    assert expected in ended.err


@pytest.mark.parametrize("mode", ["stop", "background", "in-place", "internal"])
def test_checkpoint_tells_the_price_of_each_mode(qmpsnap, mode):
    lines = qmpsnap("checkpoint", "--help").out.splitlines()
    assert any(line.startswith(f"  {mode}  ") for line in lines)
