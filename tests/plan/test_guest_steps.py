from __future__ import annotations

import pytest

from qmpsnap.plan.guest_steps import ContinueGuest, GuestStep, ResetGuest, StopForLoad, StopGuest


@pytest.mark.parametrize(
    ("step", "command"), [(StopGuest(), "stop"), (ContinueGuest(), "cont"), (ResetGuest(), "system_reset")]
)
def test_guest_step_says_word_for_word_what_is_sent(step: GuestStep, command: str) -> None:
    assert (step.on, step.command, step.arguments) == ("qmp", command, {})


def test_stop_for_load_is_a_load_of_what_is_not_there() -> None:
    step = StopForLoad("qmpsnap/none/1")
    line = {"command-line": 'loadvm "qmpsnap/none/1"'}
    assert (step.on, step.command, step.arguments) == ("qmp", "human-monitor-command", line)
