from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.plan.commands.migration import (
    await_closed,
    await_migration,
    migrate,
    migrate_cancel,
    migrate_incoming,
    pass_file,
    release_file,
    set_capabilities,
    set_parameters,
    uri,
)
from qmpsnap.plan.commands.state import cont, stop, stop_for_load, system_reset
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_machine import FakeMachine, a_machine
from tests.each import each

if TYPE_CHECKING:
    from qmpsnap.model.step import Step

ONE = graph(vda="base <- s1*")
BACKGROUND = set_capabilities({"background-snapshot": True}, {"background-snapshot": False})


def after(*steps: Step, running: bool = True) -> FakeMachine:
    machine = FakeMachine(a_machine(ONE, running=running))
    for step in steps:
        machine.perform(step)
    return machine


@each(
    ("steps", "status", "running"),
    [
        ((stop(),), "paused", False),
        ((stop(), cont()), "running", True),
        ((stop_for_load("x"),), "restore-vm", False),
        ((stop_for_load("x"), cont()), "running", True),
        ((migrate("file:/m"),), "postmigrate", False),
        ((BACKGROUND, migrate("file:/m")), "running", True),
        ((migrate_incoming("file:/m"),), "paused", False),
        ((system_reset(), await_migration("settled"), await_closed("/m")), "running", True),
    ],
)
def test_fake_machine_is_in_the_state_that_it_is_given(
    steps: tuple[Step, ...], status: str, running: bool
) -> None:
    now = after(*steps).now
    assert (now.status, now.running) == (status, running)


def test_fake_machine_keeps_what_it_is_set_to_until_it_is_put_back() -> None:
    speed = set_parameters({"max-bandwidth": 7}, {"max-bandwidth": 134_217_728})
    before = a_machine(ONE)
    now = after(BACKGROUND, speed).now
    assert (now.capabilities["background-snapshot"], now.parameters) == (True, {"max-bandwidth": 7})
    assert after(BACKGROUND, speed, *speed.undo, *BACKGROUND.undo).now == before


def test_fake_machine_knows_which_files_it_was_given() -> None:
    a, b = pass_file("/a", 1, "fd", write=True), pass_file("/b", 2, "fdset", write=True)
    assert after(a, b).passed == {1, 2}
    assert after(a, b, release_file(2, "fdset")).passed == {1}
    assert after(a, b, migrate(uri(1, "fd"))).passed == {2}
    assert after(a, b, migrate_incoming(uri(2, "fdset"))).passed == {1, 2}


def test_fake_machine_says_how_the_last_migration_ended() -> None:
    assert after().now.migration == "none"
    assert after(migrate("file:/m")).now.migration == "completed"
    assert after(migrate("file:/m"), migrate_cancel("cancel")).now.migration == "completed"
    machine = FakeMachine(a_machine(ONE, migration="active"))
    machine.perform(migrate_cancel("cancel"))
    assert machine.now.migration == "cancelled"


def test_fake_machine_counts_how_long_its_guest_stood_still() -> None:
    assert after().seconds is None
    assert after(stop()).seconds is None
    assert after(stop(), cont(), cont()).seconds == 0.25
    for running, seconds in ((True, 0.25), (False, None)):
        machine = after(running=running)
        machine.blink()
        assert machine.seconds == seconds


def test_a_machine_has_the_disks_that_are_drawn() -> None:
    machine = a_machine(graph(vda="base*", vdb="data*"), passes_files=False)
    assert set(machine.devices) == set(machine.fingerprint.disks) == {"vda", "vdb"}
    assert not machine.passes_files
