from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.machine import Status
from tests.plan.diagnosis.look import S2, codes, facts, left, only

STOPPED = Status("io-error", running=False)


def test_no_space_is_said_with_what_is_free() -> None:
    seen = facts(status=STOPPED, io_status=Frozen(vda="nospace"), room=Frozen({S2: 0}))
    found = only(seen)
    assert (found.code, found.subject, found.remedy) == ("disk-full", "vda", ())
    assert found.cause == (
        "the guest is paused: a write to vda found no space for /images/s2.qcow2, and 0 B are free there"
    )
    assert found.advice.startswith("free some space in /images")
    found = only(replace(seen, room=Frozen({S2: 1 << 30})))
    assert (found.code, found.remedy) == ("disk-full", ("qmpsnap", "cont"))


def test_another_error_is_no_lack_of_space() -> None:
    found = only(facts(status=STOPPED, io_status=Frozen(vda="failed")))
    assert (found.code, found.subject, found.remedy) == ("io-error", "vda", ("qmpsnap", "cont"))


def test_an_error_of_a_disk_that_is_gone_is_the_guest_s() -> None:
    assert codes(facts(status=STOPPED)) == [("io-error", "the guest")]
    assert codes(facts(status=STOPPED, io_status=Frozen(unplugged="failed"))) == [("io-error", "the guest")]


@pytest.mark.parametrize("state", ["internal-error", "guest-panicked"])
def test_a_guest_that_can_only_be_reset_is(state: str) -> None:
    found = only(facts(status=Status(state, running=False)))
    assert (found.code, found.remedy) == ("guest-failed", ("qmpsnap", "qmp", "system_reset"))


@pytest.mark.parametrize(
    "state", ["paused", "suspended", "prelaunch", "inmigrate", "postmigrate", "shutdown"]
)
def test_a_guest_that_somebody_stopped_is_healthy(state: str) -> None:
    assert codes(facts(status=Status(state, running=False))) == []


def test_a_failed_load_is_left_to_the_operation_that_did_it() -> None:
    seen = facts(status=Status("restore-vm", running=False))
    found = only(seen)
    assert (found.code, found.remedy) == ("load-failed", ("qmpsnap", "qmp", "system_reset"))
    assert codes(replace(seen, operations=(left(),)))[0][0] == "operation-left"


def test_a_disk_that_can_grow_needs_room() -> None:
    assert codes(facts(room=Frozen({S2: 1 << 20}))) == [("space-low", "vda")]
    assert codes(facts(room=Frozen({S2: 1 << 30}))) == []
    assert codes(facts(room=Frozen({S2: 0}), status=STOPPED)) == [("io-error", "the guest")]


def test_a_frozen_guest_is_thawed() -> None:
    assert codes(facts(frozen=False, agent="/run/a")) == []
    found = only(facts(frozen=True, agent="/run/a"))
    assert (found.code, found.remedy) == ("guest-frozen", ("qmpsnap", "thaw", "/run/a"))


def test_an_agent_that_does_not_answer_is_a_limit() -> None:
    found = only(facts(agent="/run/a"))
    assert (found.code, found.is_trouble, found.remedy) == ("agent-silent", False, ())


def test_a_device_that_keeps_the_memory_from_being_saved_is_a_limit() -> None:
    found = only(facts(blocked=("the device x is in the way.",)))
    assert (found.code, found.is_trouble, found.remedy) == ("device-in-way", False, ())
    assert found.cause == "QEMU cannot save its memory: the device x is in the way"
