from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.intent import Checkpoint, FileMode, Save
from tests.each import each
from tests.plan.scenes import planned
from tests.plan.test_resume_guest import ONE, files_of, rested


@each("status", ["running", "shutdown", "guest-panicked", "io-error"])
def test_resume_of_a_save_leaves_a_guest_alone_that_the_save_has_not_paused(status: str) -> None:
    """A migration is running, another client's perhaps; QEMU would refuse `cont` after a shutdown."""
    plan = planned(Save("/images/vm.state"), ONE)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    rest = rested(record, ONE, files_of(record, ONE), status=status, migration="active")
    assert [step.command for step in rest.steps if step.on == "qmp"][:2] == ["migrate_cancel", "remove-fd"]
    assert cont() not in rest.steps


@each(
    ("mode", "partial", "migration", "waits"),
    [
        ("stop", True, "active", False),
        ("stop", False, "setup", False),
        ("stop", False, "active", True),
        ("background", False, "cancelling", True),
        ("in-place", True, "active", True),
    ],
)
def test_resume_waits_for_the_end_of_another_clients_migration(
    mode: FileMode, migration: str, *, partial: bool, waits: bool
) -> None:
    """One of ours writes to the file of the checkpoint."""
    plan = planned(Checkpoint("c1", mode), ONE)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    files = files_of(record, ONE, partial=partial)
    if waits:
        with pytest.raises(Busy, match="a migration is running"):
            rested(record, ONE, files, migration=migration)
    else:
        assert rested(record, ONE, files, migration=migration).steps[0].command == "migrate_cancel"


@each("mode", ["stop", "background"])
def test_resume_stops_a_background_snapshot_as_one(mode: FileMode) -> None:
    plan = planned(Checkpoint("c1", mode), ONE)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    rest = rested(record, ONE, files_of(record, ONE, partial=True), migration="active")
    (cancel,) = (step for step in rest.steps if step.command == "migrate_cancel")
    assert cancel.detail["ending"] == ("cancel-later" if mode == "background" else "cancel")


@each(
    ("mode", "partial", "resumed"),
    [("stop", True, True), ("stop", False, False), ("background", True, False), ("in-place", True, False)],
)
def test_resume_leaves_a_guest_where_it_is_that_another_client_has_migrated_away(
    mode: FileMode, *, partial: bool, resumed: bool
) -> None:
    """Only the migration of a checkpoint with --mode stop ends so, once it has written its file."""
    plan = planned(Checkpoint("c1", mode), ONE)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    files = files_of(record, ONE, partial=partial)
    rest = rested(record, ONE, files, status="postmigrate", migration="completed")
    assert (cont() in rest.steps) is resumed
    assert any("the guest stays in postmigrate" in note for note in rest.notes) is not resumed
    again = rested(record, ONE, files, status="postmigrate", migration="completed", process="2:2")
    assert cont() not in again.steps
    assert not any("postmigrate" in note for note in again.notes)
