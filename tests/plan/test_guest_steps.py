from __future__ import annotations

import pytest

from qmpsnap.plan.guest_steps import ContinueGuest, GuestStep, ResetGuest, StopGuest


@pytest.mark.parametrize(
    ("step", "command"), [(StopGuest(), "stop"), (ContinueGuest(), "cont"), (ResetGuest(), "system_reset")]
)
def test_guest_step_says_word_for_word_what_is_sent(step: GuestStep, command: str) -> None:
    assert (step.on, step.command, step.arguments) == ("qmp", command, {})
