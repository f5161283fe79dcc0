from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, InvalidTarget, Refused, TargetExists, Unsupported
from qmpsnap.model.features import Features
from qmpsnap.model.files import Ask, DirFact, Files
from qmpsnap.model.record import IntentRecord, Origin
from qmpsnap.plan.commands.files import reserve_memory
from qmpsnap.plan.commands.migration import (
    await_migration,
    pass_file,
    release_file,
    set_capabilities,
    set_parameters,
)
from qmpsnap.plan.intent import Checkpoint, Save, Snapshot
from qmpsnap.plan.scene import GuestScene
from qmpsnap.plan.vmstate.common import (
    Passage,
    file_number,
    refuse_memory_place,
    refuse_state,
    refuse_unsavable,
    state_file,
)
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.model.records import stages
from tests.plan.scenes import NOW, planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.job import Job
    from qmpsnap.model.machine import Machine
    from qmpsnap.plan.intent import Intent

ONE = graph(vda="base <- s1*")
OLD = MappingProxyType({"events": False, "background-snapshot": False, "xbzrle": True})


def scene(files: FakeFiles, *, jobs: tuple[Job, ...] = (), machine: Machine | None = None) -> GuestScene:
    asked = Ask(files=("/images/m",), directories=("/images",))
    return GuestScene(
        ONE, files.look(asked), jobs, Features(frozenset()), NOW, machine=machine or a_machine(ONE)
    )


def passage(**more: Any) -> Passage:
    return Passage(a_machine(ONE), "/images/m.partial", 7, **more)


def old(**more: Any) -> Passage:
    return Passage(a_machine(ONE, capabilities=OLD), "/images/m.partial", 7, **more)


def occupying(given: Passage, size_bytes: int | None) -> Passage:
    machine = replace(given.machine, occupied_bytes=size_bytes, process="7.8")
    return dataclasses.replace(given, machine=machine)


def test_file_number_fits_in_what_qemu_takes() -> None:
    assert file_number("00000007") == 7
    assert file_number("ffffffff") == 2**31 - 1


@each("status", ["inmigrate", "restore-vm", "save-vm", "colo", "preconfig"])
def test_refuse_state_of_a_machine_that_has_none_to_be_kept(status: str) -> None:
    machine = a_machine(ONE, status=status)
    with pytest.raises(Unsupported, match=status):
        refuse_state(machine)
    for migrates in (True, False):
        with pytest.raises(Unsupported, match=status):
            refuse_unsavable(scene(FakeFiles(ONE), machine=machine), migrates=migrates)


@each("migration", ["device", "completed"])
def test_refuse_state_while_a_migration_ends(migration: str) -> None:
    with pytest.raises(Busy, match="finish-migrate"):
        refuse_state(a_machine(ONE, status="finish-migrate", migration=migration))


def test_refuse_state_does_not_mind_what_a_failed_load_has_left_where_memory_is_loaded() -> None:
    refuse_state(a_machine(ONE, status="restore-vm"), loads=True)
    with pytest.raises(Unsupported):
        refuse_state(a_machine(ONE, status="inmigrate"), loads=True)


@pytest.mark.parametrize("status", ["running", "paused", "prelaunch", "io-error", "shutdown"])
def test_refuse_unsavable_accepts_a_machine_that_is_paused_or_runs(status: str) -> None:
    refuse_unsavable(scene(FakeFiles(ONE), machine=a_machine(ONE, status=status)), migrates=True)


def test_refuse_state_while_a_migration_is_under_way() -> None:
    with pytest.raises(Busy, match="active"):
        refuse_state(a_machine(ONE, migration="active"))


@pytest.mark.parametrize("changes", [{"status": "postmigrate"}, {"passes_files": False}], ids=str)
def test_refuse_unsavable_only_where_a_migration_is_wanted(changes: dict[str, Any]) -> None:
    looked = scene(FakeFiles(ONE), machine=a_machine(ONE, **changes))
    refuse_unsavable(looked, migrates=False)
    with pytest.raises(Unsupported):
        refuse_unsavable(looked, migrates=True)


@each(
    "intent",
    [
        Checkpoint("c1", "stop"),
        Checkpoint("c1", "background"),
        Checkpoint("c1", "in-place"),
        Checkpoint("c1", "internal"),
        Save("/images/m"),
    ],
)
def test_no_state_is_kept_of_a_machine_that_cannot_be_migrated(intent: Intent) -> None:
    blocked = a_machine(ONE, blocked=("non-migratable device: x", "mounted"))
    with pytest.raises(Unsupported, match="this machine: non-migratable device: x; mounted") as caught:
        planned(intent, ONE, machine=blocked)
    assert caught.value.hint.endswith("take a snapshot of the disks only: qmpsnap snapshot")
    assert planned(Snapshot("n1"), ONE, machine=blocked).steps


def test_no_state_is_kept_of_a_guest_that_sleeps() -> None:
    asleep = a_machine(ONE, running=False, status="suspended")
    for intent in (
        Checkpoint("c1", "stop"),
        Checkpoint("c1", "background"),
        Checkpoint("c1", "in-place"),
        Checkpoint("c1", "internal"),
        Save("/images/m"),
    ):
        with pytest.raises(Unsupported, match="the guest is suspended") as caught:
            planned(intent, ONE, machine=asleep)
        assert caught.value.hint == "wake it first: qmpsnap qmp system_wakeup"


def test_state_file_is_beside_the_active_layer_and_named_after_the_base() -> None:
    moved = with_layer(chain("base <- s1*"), 0, file="/fast/s1.qcow2")
    assert state_file(moved, "c1", "memory") == "/fast/base.c1.memory"


@each("changes", [{"file": "nbd://h/x", "local": False}, {"file": "/dev/vg/x"}])
def test_state_file_has_no_place_beside_what_is_no_file(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidTarget, match="nothing can be created beside it"):
        state_file(with_layer(chain("base <- s1*"), 0, **changes), "c1", "memory")


def directory(**changes: object) -> FakeFiles:
    files = FakeFiles(ONE)
    usual = DirFact("/images", exists=True, writable=True, free_bytes=1 << 40)
    files.directories["/images"] = replace(usual, **changes)
    return files


def test_refuse_memory_place_that_is_taken() -> None:
    files = FakeFiles(ONE)
    refuse_memory_place(scene(files), "/images/m")
    files.put("/images/m", format="raw")
    with pytest.raises(TargetExists) as caught:
        refuse_memory_place(scene(files), "/images/m")
    assert caught.value.file == "/images/m"


NEEDED = (256 << 20) + (1 << 20)


@each(
    ("changes", "text"),
    [
        ({"exists": False}, "does not exist"),
        ({"writable": False, "problem": "read-only file system"}, "read-only file system"),
        ({"free_bytes": NEEDED - 1}, f"{NEEDED - 1} bytes free; the guest's memory may need {NEEDED}"),
    ],
)
def test_refuse_memory_place_in_a_directory_that_cannot_take_it(
    changes: dict[str, object], text: str
) -> None:
    with pytest.raises(InvalidTarget, match=text):
        refuse_memory_place(scene(directory(**changes)), "/images/m")


def test_refuse_memory_place_takes_what_has_just_room_enough() -> None:
    refuse_memory_place(scene(directory(free_bytes=NEEDED)), "/images/m")


def test_refuse_memory_place_that_is_no_absolute_path() -> None:
    with pytest.raises(InvalidTarget, match="not an absolute path"):
        refuse_memory_place(scene(FakeFiles(ONE)), "m")


def test_passage_waits_sets_and_passes_before_the_guest_is_paused() -> None:
    on, off = set_capabilities({"events": True}, {"events": False}), 134_217_728
    fast = set_parameters({"max-bandwidth": 1 << 60}, {"max-bandwidth": off})
    file = pass_file("/images/m.partial", 7, "fdset", write=True)
    assert passage().before == (await_migration("settled"), on, fast, file)
    assert passage().released == (release_file(7, "fdset"),)
    assert passage().after == (*fast.undo, *on.undo)


def test_passage_by_descriptor_has_nothing_to_release_and_switches_off_what_is_on() -> None:
    (step,) = old().capabilities
    assert step == set_capabilities({"events": True, "xbzrle": False}, {"events": False, "xbzrle": True})
    assert (old().passed.command, old().released) == ("getfd", ())


def test_passage_sets_nothing_that_is_so_already() -> None:
    machine = a_machine(ONE, capabilities={"events": True, "xbzrle": False}, parameters={})
    bare = Passage(machine, "/m", 7)
    assert (bare.capabilities, bare.parameters, bare.after) == ((), (), ())


def test_passage_in_the_background_may_not_stop_where_qemu_would_hang_and_reserves_its_room() -> None:
    assert passage(background=True).switched["background-snapshot"] is False
    assert (passage(background=True).may_stop, passage(background=True).reserved) == (True, ())
    assert (old(background=True).may_stop, old().may_stop, old().reserved) == (False, True, ())
    most = (256 + 160) << 20
    file = "/images/m.partial"
    assert old(background=True).reserved == (reserve_memory(file, at_most_bytes=most, process=""),)


def test_passage_reserves_by_what_qemu_has_in_use_where_that_is_known() -> None:
    (step,) = occupying(old(background=True), 9).reserved
    assert step.arguments["process"] == "7.8"


@each(
    ("occupied", "expected", "expected_old"),
    [
        (None, 257 << 20, 416 << 20),
        (100 << 20, (108 << 20) + (257 << 20) // 64, (108 << 20) + (416 << 20) // 64),
        (300 << 20, 257 << 20, (308 << 20) + (416 << 20) // 64),
        (1 << 40, 257 << 20, 416 << 20),
    ],
)
def test_passage_needs_room_for_what_is_in_use_and_not_for_more_than_all(
    occupied: int | None, expected: int, expected_old: int
) -> None:
    for each_passage, need in ((passage(background=True), expected), (old(background=True), expected_old)):
        assert occupying(each_passage, occupied).need_bytes == need


def test_passage_in_the_background_is_refused_by_a_qemu_that_cannot() -> None:
    machine = a_machine(ONE, capabilities={"events": False})
    with pytest.raises(Unsupported) as caught:
        _ = Passage(machine, "/m", 7, background=True).capabilities
    assert isinstance(caught.value, Refused)
    assert caught.value.feature == "background-snapshot"


@pytest.mark.parametrize(("live", "said"), [(True, "is running"), (False, "was interrupted")])
def test_refuse_unsavable_while_the_settings_are_those_of_another_operation(*, live: bool, said: str) -> None:
    was = Origin(running=True, process="1:1")
    set_fast = stages(set_parameters({"max-bandwidth": 1 << 60}, {"max-bandwidth": 7}))
    record = IntentRecord(
        "qmpsnap-save-keep-1", "save", NOW, stages=set_fast, origin=was, directory="/images", live=live
    )
    found = Files(records=(record,))
    looked = dataclasses.replace(scene(FakeFiles(ONE)), files=found)
    with pytest.raises(Busy, match=said) as caught:
        refuse_unsavable(looked, migrates=True)
    refuse_unsavable(looked, migrates=False)
    assert "qmpsnap job wait qmpsnap-save-keep-1" in caught.value.hint
    for other in (replace(record, origin=replace(was, process="2:2")), replace(record, stages=())):
        files = Files(records=(other,))
        refuse_unsavable(dataclasses.replace(looked, files=files), migrates=True)
