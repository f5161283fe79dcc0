"""When somebody may let the guest run, or stop it."""

from __future__ import annotations

import pytest

from qmpsnap.errors import Busy, Unsupported
from qmpsnap.model.machine import Status
from qmpsnap.model.record import IntentRecord, Origin
from qmpsnap.plan.vmstate.guest import refuse_cont, refuse_stop
from tests.each import each
from tests.plan.scenes import NOW

# Every run state of QEMU's (run-state.json, 11.1): whether `cont` may be sent, or what is said instead.
GOES = ("debug", "io-error", "paused", "prelaunch", "running", "suspended", "watchdog", "guest-panicked")
STAYS = {
    "inmigrate": "qmpsnap restore FILE",
    "internal-error": "qmpsnap qmp system_reset, then qmpsnap cont",
    "postmigrate": "qmpsnap cont --after-migration",
    "restore-vm": "qmpsnap jobs shows what is left",
    "save-vm": "wait until it ends",
    "shutdown": "qmpsnap qmp system_reset, then qmpsnap cont",
    "colo": "end that first",
    "preconfig": "qmpsnap qmp x-exit-preconfig",
}


def left(op: str = "revert", *, live: bool = False, was: bool = True) -> IntentRecord:
    return IntentRecord(
        "qmpsnap-revert-keep-0a1b2c3d",
        op,
        NOW,
        name="c1",
        live=live,
        origin=Origin(running=True) if was else None,
    )


@each("state", GOES)
def test_cont_goes_in_a_run_state_that_qemu_leaves_by_it(state: str) -> None:
    refuse_cont(Status(state, running=state == "running"), (), after_migration=False)


@each(("state", "hint"), STAYS.items())
def test_cont_is_refused_where_a_wreck_or_nothing_would_run(state: str, hint: str) -> None:
    with pytest.raises(Unsupported, match=state) as refused:
        refuse_cont(Status(state, running=False), (), after_migration=False)
    assert hint in refused.value.hint


def test_cont_goes_after_a_migration_when_the_caller_says_so() -> None:
    refuse_cont(Status("postmigrate", running=False, migration="completed"), (), after_migration=True)


@each("migration", ["setup", "active", "device", "cancelling", "pre-switchover"])
def test_cont_is_refused_while_a_migration_is_under_way(migration: str) -> None:
    with pytest.raises(Busy, match=migration) as refused:
        refuse_cont(Status("paused", running=False, migration=migration), (), after_migration=True)
    assert "qmpsnap qmp migrate_cancel" in refused.value.hint


@each("migration", ["device", "completed"])
def test_cont_is_refused_until_a_migration_has_left_the_guest_in_its_last_run_state(migration: str) -> None:
    with pytest.raises(Busy, match="finish-migrate") as refused:
        refuse_cont(Status("finish-migrate", running=False, migration=migration), (), after_migration=True)
    assert "wait until it ends" in refused.value.hint


def test_cont_is_refused_for_a_guest_that_an_operation_left_paused() -> None:
    with pytest.raises(Busy, match="revert 'c1' was interrupted") as refused:
        refuse_cont(Status("paused", running=False), (left(),), after_migration=False)
    assert refused.value.hint == "finish it first: qmpsnap job wait qmpsnap-revert-keep-0a1b2c3d"


def test_cont_is_refused_while_an_operation_holds_the_guest() -> None:
    with pytest.raises(Busy, match="revert 'c1' is running"):
        refuse_cont(Status("paused", running=False), (left(live=True),), after_migration=False)


def test_cont_minds_no_record_that_says_nothing_of_the_guest() -> None:
    refuse_cont(Status("paused", running=False), (left("commit", was=False),), after_migration=False)
    refuse_cont(Status("running", running=True), (left(),), after_migration=False)


def test_stop_is_refused_only_while_an_operation_would_let_the_guest_run_on() -> None:
    refuse_stop((left(), left(live=True, was=False)))
    with pytest.raises(Busy, match="revert 'c1' is running, and resumes the guest itself"):
        refuse_stop((left(live=True),))
