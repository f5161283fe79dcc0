from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.plan.steps import (
    AwaitClosed,
    AwaitMigration,
    CancelMigration,
    ContinueGuest,
    LoadMemory,
    PassFile,
    ReleaseFile,
    ResetGuest,
    SaveMemory,
    SetCapabilities,
    SetParameters,
    StopForLoad,
    StopGuest,
)
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_machine import FakeMachine, a_machine

if TYPE_CHECKING:
    from qmpsnap.plan.steps import GuestStep, MigrationStep

ONE = graph(vda="base <- s1*")
BACKGROUND = SetCapabilities((("background-snapshot", True),), (("background-snapshot", False),))


def after(*steps: GuestStep | MigrationStep, running: bool = True) -> FakeMachine:
    machine = FakeMachine(a_machine(ONE, running=running))
    for step in steps:
        machine.perform(step)
    return machine


@pytest.mark.parametrize(
    ("steps", "status", "running"),
    [
        ((StopGuest(),), "paused", False),
        ((StopGuest(), ContinueGuest()), "running", True),
        ((StopForLoad("x"),), "restore-vm", False),
        ((StopForLoad("x"), ContinueGuest()), "running", True),
        ((SaveMemory("file:/m"),), "postmigrate", False),
        ((BACKGROUND, SaveMemory("file:/m")), "running", True),
        ((LoadMemory("file:/m"),), "paused", False),
        ((ResetGuest(), AwaitMigration("settled"), AwaitClosed("/m")), "running", True),
    ],
)
def test_fake_machine_stands_as_it_is_told(
    steps: tuple[GuestStep | MigrationStep, ...], status: str, running: bool
) -> None:
    now = after(*steps).now
    assert (now.status, now.running) == (status, running)


def test_fake_machine_keeps_what_it_is_set_to_until_it_is_put_back() -> None:
    speed = SetParameters((("max-bandwidth", 7),), (("max-bandwidth", 134_217_728),))
    before = a_machine(ONE)
    now = after(BACKGROUND, speed).now
    assert (now.capabilities["background-snapshot"], now.parameters) == (True, {"max-bandwidth": 7})
    assert after(BACKGROUND, speed, speed.back(), BACKGROUND.back()).now == before


def test_fake_machine_knows_which_files_it_was_given() -> None:
    a, b = PassFile("/a", 1, "fd", write=True), PassFile("/b", 2, "fdset", write=True)
    assert after(a, b).passed == {1, 2}
    assert after(a, b, ReleaseFile(2, "fdset")).passed == {1}
    assert after(a, b, SaveMemory(a.uri)).passed == {2}
    assert after(a, b, LoadMemory(b.uri)).passed == {1, 2}


def test_fake_machine_says_how_the_last_migration_ended() -> None:
    assert after().now.migration == "none"
    assert after(SaveMemory("file:/m")).now.migration == "completed"
    assert after(SaveMemory("file:/m"), CancelMigration()).now.migration == "completed"
    machine = FakeMachine(a_machine(ONE, migration="active"))
    machine.perform(CancelMigration())
    assert machine.now.migration == "cancelled"


def test_fake_machine_counts_how_long_its_guest_stood_still() -> None:
    assert after().seconds is None
    assert after(StopGuest()).seconds is None
    assert after(StopGuest(), ContinueGuest(), ContinueGuest()).seconds == 0.25
    for running, seconds in ((True, 0.25), (False, None)):
        machine = after(running=running)
        machine.blink()
        assert machine.seconds == seconds


def test_a_machine_has_the_disks_that_are_drawn() -> None:
    machine = a_machine(graph(vda="base*", vdb="data*"), passes_files=False)
    assert set(machine.devices) == set(machine.fingerprint.disks) == {"vda", "vdb"}
    assert not machine.passes_files
