from __future__ import annotations

import pytest

from qmpsnap.model.step import Inside, Step
from qmpsnap.plan.commands.jobs import job_dismiss
from qmpsnap.plan.commands.state import (
    adopt,
    cont,
    delvm,
    loadvm,
    quoted,
    savevm,
    snapshot_delete,
    snapshot_load,
    snapshot_save,
    stop,
    stop_for_load,
    system_reset,
)
from tests.each import each
from tests.plan.commands.flags import flags

BOTH, STORE = (("vda", "n1"), ("vdb", "n2")), (("", "store"),)
DISKS = ("vda", "vdb")


@each(
    ("step", "command", "set_flags", "undo"),
    [
        (stop(), "stop", "pauses", (cont(),)),
        (stop(ran=False), "stop", "pauses", ()),
        (cont(), "cont", "", ()),
        (system_reset(), "system_reset", "loads", ()),
    ],
)
def test_what_is_said_to_the_guest_is_a_command_without_arguments(
    step: Step, command: str, set_flags: str, undo: tuple[Step, ...]
) -> None:
    assert (step.on, step.command, step.way, step.arguments) == ("qmp", command, command, {})
    assert (flags(step), step.undo, step.effect) == (set_flags, undo, None)


@each(
    ("step", "way", "line", "set_flags", "effect"),
    [
        (savevm("c1", DISKS), "savevm", 'savevm "c1"', "final writes pauses", Inside(DISKS, "c1")),
        (loadvm("c1"), "loadvm", 'loadvm "c1"', "final writes pauses loads unseen", None),
        (delvm("c1", DISKS), "delvm", 'delvm "c1"', "final writes", Inside(DISKS, "c1", gone=True)),
        (
            delvm('a"\\\n', ()),
            "delvm",
            'delvm "a\\"\\\\\\n"',
            "final writes",
            Inside((), 'a"\\\n', gone=True),
        ),
    ],
)
def test_a_checkpoint_by_the_human_monitor_is_one_line(
    step: Step, way: str, line: str, set_flags: str, effect: Inside | None
) -> None:
    assert (step.on, step.command, step.way) == ("qmp", "human-monitor-command", way)
    assert step.arguments == {"command-line": line}
    assert (flags(step), step.undo, step.effect) == (set_flags, (), effect)
    assert not step.on_state


def test_stop_for_load_is_a_load_of_what_is_not_there() -> None:
    step = stop_for_load("qmpsnap/none/1")
    assert (step.on, step.command, step.way) == ("qmp", "human-monitor-command", "stop-for-load")
    assert step.arguments == {"command-line": 'loadvm "qmpsnap/none/1"'}
    assert (flags(step), step.undo, step.effect) == ("pauses", (cont(),), None)


def test_a_load_that_moved_nothing_lets_a_guest_run_on_that_ran() -> None:
    assert loadvm("c1").on_failure == ()
    assert loadvm("c1", running=True).on_failure == (cont(),)


def test_a_word_for_the_human_monitor_is_quoted() -> None:
    assert quoted("a b;c") == '"a b;c"'


@each(
    ("step", "command", "arguments", "set_flags", "effect"),
    [
        (
            snapshot_save("j", "c1", BOTH),
            "snapshot-save",
            {"vmstate": "n1", "devices": ["n1", "n2"]},
            "final writes pauses",
            Inside(DISKS, "c1"),
        ),
        (
            snapshot_save("j", "c1", STORE),
            "snapshot-save",
            {"vmstate": "store", "devices": ["store"]},
            "final pauses",
            None,
        ),
        (
            snapshot_load("j", "c1", BOTH, "n2"),
            "snapshot-load",
            {"vmstate": "n2", "devices": ["n1", "n2"]},
            "final writes pauses loads unseen restores",
            None,
        ),
        (
            snapshot_delete("j", "c1", BOTH),
            "snapshot-delete",
            {"devices": ["n1", "n2"]},
            "final writes",
            Inside(DISKS, "c1", gone=True),
        ),
    ],
)
def test_a_job_on_vm_state_is_dismissed_and_nothing_more_is_rolled_back(
    step: Step, command: str, arguments: dict[str, object], set_flags: str, effect: Inside | None
) -> None:
    assert (step.on, step.command) == ("qmp", command)
    assert step.arguments == {"job-id": "j", "tag": "c1", **arguments}
    assert (flags(step), step.undo, step.effect) == (set_flags, (job_dismiss("j"),), effect)
    assert (step.on_state, step.job_id) == (True, "j")
    assert step.detail == {"disks": DISKS if "n1" in str(arguments) else ()}


def test_a_load_by_a_job_that_is_rolled_back_lets_a_guest_run_on_that_ran() -> None:
    step = snapshot_load("j", "c1", BOTH, "n2", running=True)
    assert step.undo == (cont(), job_dismiss("j"))


@pytest.mark.parametrize(
    ("step", "arguments", "set_flags", "undo"),
    [
        (
            adopt("snapshot-load", "j", name="c1", disks=DISKS, running=True),
            {"job-id": "j", "tag": "c1"},
            "final writes pauses loads unseen restores",
            (cont(), job_dismiss("j")),
        ),
        (
            adopt("snapshot-save", "j"),
            {"job-id": "j", "tag": ""},
            "final pauses",
            (job_dismiss("j"),),
        ),
    ],
)
def test_a_job_on_vm_state_that_was_taken_over_is_rolled_back_as_one_that_was_started(
    step: Step, arguments: dict[str, object], set_flags: str, undo: tuple[Step, ...]
) -> None:
    assert (step.on, step.arguments, step.effect) == ("wait", arguments, None)
    assert (flags(step), step.undo, step.on_state, step.job_id) == (set_flags, undo, True, "j")
