from __future__ import annotations

import pytest

from qmpsnap.plan.state_steps import DeleteState, LoadState, SaveState, StateJobStep

BOTH, STORE = (("vda", "n1"), ("vdb", "n2")), (("", "store"),)


@pytest.mark.parametrize(
    ("step", "command", "arguments"),
    [
        (SaveState("j", "c1", BOTH), "snapshot-save", {"vmstate": "n1", "devices": ["n1", "n2"]}),
        (SaveState("j", "c1", STORE), "snapshot-save", {"vmstate": "store", "devices": ["store"]}),
        (LoadState("j", "c1", BOTH, "n2"), "snapshot-load", {"vmstate": "n2", "devices": ["n1", "n2"]}),
        (DeleteState("j", "c1", BOTH), "snapshot-delete", {"devices": ["n1", "n2"]}),
    ],
)
def test_state_job_says_word_for_word_what_is_sent(
    step: StateJobStep, command: str, arguments: dict[str, object]
) -> None:
    assert (step.on, step.command) == ("qmp", command)
    assert step.arguments == {"job-id": "j", "tag": "c1", **arguments}


def test_state_job_is_on_its_disks_and_on_none_for_a_store() -> None:
    assert SaveState("j", "c1", BOTH).disks == ("vda", "vdb")
    assert SaveState("j", "c1", STORE).disks == ()
