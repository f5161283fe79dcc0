from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    AmbiguousName,
    BadName,
    Busy,
    InvalidTarget,
    MachineDiffers,
    NotFound,
    NotInChain,
    Refused,
    Unsupported,
)
from qmpsnap.model.graph import Graph, InternalSnapshot
from qmpsnap.model.names import check_name
from qmpsnap.model.record import Settings
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.steps import (
    AddStore,
    CheckRoots,
    ContinueGuest,
    DeleteNode,
    FinishRecord,
    KeepBranch,
    LoadState,
    LoadVm,
    ResetGuest,
    RetireFile,
    SetDrive,
    StopForLoad,
    StopGuest,
)
from qmpsnap.plan.vmstate.branch import NOT_TOLD
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake_machine import a_machine
from tests.plan.moments import BASE, ID, O1, O2, S1, STORE, TWO, covered_by_us, files_of, kept, kinds
from tests.plan.scenes import STATE, job, planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.plan.plan import Plan
    from qmpsnap.testing.fake_files import FakeFiles

BACK = Revert("c1")


def test_revert_of_disks_resets_the_guest_on_new_roots() -> None:
    plan = planned(BACK, TWO, files=files_of(""))
    make, go, tidy = plan.stages
    assert kinds(*make.steps) == [
        *("WriteRecord", "CreateOverlay", "CreateOverlay", "AddNode", "AddNode"),
    ]
    assert kinds(*go.steps) == [
        *("StopGuest", "SetDrive", "SetDrive", "CheckRoots", "ResetGuest", "ContinueGuest"),
    ]
    assert kinds(*tidy.steps) == ["KeepBranch", "FinishRecord"]
    assert (go.verify, tidy.tidy) == (True, True)
    assert plan.notes == (
        "the guest is reset, because its memory does not match the reverted disks",
        NOT_TOLD,
    )
    assert plan.moves == ("vda", "vdb")
    for files in plan.chains_after.values():
        assert files[0].startswith(("/images/base.c1-", "/images/data.c1-"))
    assert plan.chains_after["vda"][1:] == (S1, BASE)


def test_revert_in_place_loads_the_store_instead() -> None:
    plan = planned(BACK, TWO, files=files_of("in-place"))
    _, go, tidy = plan.stages
    assert kinds(*go.steps) == [
        *("StopGuest", "SetDrive", "SetDrive", "CheckRoots"),
        *("LoadState", "AwaitJob", "DismissJob", "ContinueGuest"),
    ]
    store = next(step for step in plan.steps if isinstance(step, AddStore))
    load = next(step for step in plan.steps if isinstance(step, LoadState))
    assert (store.file, load.name, load.nodes) == (STORE, "qmpsnap-00000001", (("", store.node),))
    assert tidy.steps[0] == DeleteNode(store.node)
    assert plan.notes == (NOT_TOLD,)


def test_revert_reads_back_the_root_of_each_device() -> None:
    plan = planned(BACK, TWO, files=files_of(""))
    roots = tuple(
        (step.root.disk, TWO.disks[step.root.disk].qdev, step.root.node)
        for step in plan.steps
        if isinstance(step, SetDrive)
    )
    assert [step for step in plan.steps if isinstance(step, CheckRoots)] == [CheckRoots(roots)]


def test_revert_writes_down_what_it_does_and_keeps_the_branch() -> None:
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=a_machine(TWO, process="1-2"))
    assert plan.record is not None
    record = plan.record.record
    new = {step.root.disk: step.root.file for step in plan.steps if isinstance(step, SetDrive)}
    assert (plan.record.directory, record.op, record.name) == (STATE, "revert", "c1")
    assert (dict(record.overlays), dict(record.after)) == (new, dict(plan.chains_after))
    assert (record.state, record.was) == (kept("in-place").state, Settings(True, process="1-2"))
    assert [step for step in plan.steps if isinstance(step, KeepBranch)] == [KeepBranch(STATE, ID, new)]
    assert plan.steps[-1] == FinishRecord(STATE, (record.id,))


@pytest.mark.parametrize("mode", ["", "in-place"])
def test_revert_of_a_paused_guest_lets_nothing_run(mode: str) -> None:
    plan = planned(BACK, TWO, files=files_of(mode), machine=a_machine(TWO, running=False))
    assert [step for step in plan.steps if isinstance(step, StopGuest | ContinueGuest)] == [
        StopGuest(ran=False)
    ]
    assert plan.run_state == "paused"


def stops(plan: Plan) -> list[StopGuest | StopForLoad]:
    return [step for step in plan.steps if isinstance(step, StopGuest | StopForLoad)]


def test_revert_stops_a_guest_as_for_a_load_where_qemu_translates_its_code() -> None:
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=a_machine(TWO, emulated=True))
    (stop,) = stops(plan)
    assert plan.stages[1].steps[0] == stop
    assert isinstance(stop, StopForLoad)
    assert stop.name.startswith("qmpsnap/none/")
    with pytest.raises(BadName):
        check_name(stop.name)
    assert plan.notes == (NOT_TOLD,)
    theirs = with_layer(TWO.disks["vda"], 0, snapshots=(InternalSnapshot("1", stop.name),))
    taken = graph(theirs, TWO.disks["vdb"])
    (other,) = stops(
        planned(BACK, taken, files=files_of("in-place"), machine=a_machine(taken, emulated=True))
    )
    assert isinstance(other, StopForLoad)
    assert other.name != stop.name


def test_revert_of_disks_alone_stops_an_emulated_guest_as_any_other() -> None:
    plan = planned(BACK, TWO, files=files_of(""), machine=a_machine(TWO, emulated=True))
    assert stops(plan) == [StopGuest()]


@pytest.mark.parametrize(("status", "stale"), [("paused", True), ("prelaunch", True), ("restore-vm", False)])
def test_revert_says_that_an_emulated_guest_that_stands_may_run_stale_code(
    status: str, *, stale: bool
) -> None:
    machine = a_machine(TWO, running=False, status=status, emulated=True)
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=machine)
    assert stops(plan) == [StopGuest(ran=False)]
    assert any("stale code" in note for note in plan.notes) is stale
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=replace(machine, emulated=False))
    assert plan.notes == (NOT_TOLD,)


def test_revert_removes_what_was_written_since_only_when_it_is_given_up() -> None:
    given_up = planned(Revert("c1", discard=True), covered_by_us(TWO), files=files_of(""))
    removed = [step for step in given_up.steps if isinstance(step, RetireFile)]
    assert removed == [RetireFile(O1, "remove", ""), RetireFile(O2, "remove", "")]
    assert given_up.stages[-1].steps[1:3] == tuple(removed)
    assert not [step for step in planned(BACK, TWO, files=files_of("")).steps if isinstance(step, RetireFile)]


def test_revert_removes_no_file_that_a_node_of_somebody_else_keeps_open() -> None:
    plan = planned(Revert("c1", discard=True), TWO, files=files_of(""))
    assert not [step for step in plan.steps if isinstance(step, RetireFile)]
    assert [note for note in plan.notes if O1 in note and 'blockdev-del \'{"node-name": "vda-o1"}\'' in note]


def test_revert_of_disks_resets_a_guest_that_was_shut_down() -> None:
    off = a_machine(TWO, running=False, status="shutdown")
    assert ResetGuest() in planned(BACK, TWO, files=files_of(""), machine=off).steps


THREE = graph(*TWO.disks.values(), chain("n*", name="vdn"))


def test_revert_leaves_a_disk_alone_that_is_named_and_only_then() -> None:
    with pytest.raises(NotInChain, match="vdn is writable but not part") as caught:
        planned(BACK, THREE, files=files_of("", THREE))
    assert "--leave vdn" in caught.value.hint
    plan = planned(Revert("c1", leave=("vdn",)), THREE, files=files_of("", THREE))
    assert plan.disks == ("vda", "vdb")
    assert "not reverted: vdn" in plan.notes
    assert planned(Revert("c1", leave=("vdn", "vdb")), THREE, files=files_of("", THREE)).disks == ("vda",)


def test_revert_to_a_moment_inside_the_images_is_planned_as_that() -> None:
    inside = graph(with_layer(chain("base <- s1*"), 0, snapshots=(InternalSnapshot("1", "in", 4096),)))
    plan = planned(Revert("in"), inside)
    assert [step for step in plan.steps if isinstance(step, LoadVm)] == [LoadVm("in")]
    with pytest.raises(Unsupported, match="always lost"):
        planned(Revert("in", discard=True), inside)


def store(**changes: object) -> FakeFiles:
    files = files_of("in-place")
    fact = files.facts[STORE]
    assert fact.header is not None
    files.facts[STORE] = replace(fact, header=replace(fact.header, **changes))
    return files


def without(path: str, mode: str) -> FakeFiles:
    files = files_of(mode)
    files.facts.pop(path)
    files.memories.pop(path, None)
    return files


OTHER = a_machine(graph(vda="base <- s1 <- o1*"))
BOTH_KINDS = graph(
    with_layer(TWO.disks["vda"], 0, snapshots=(InternalSnapshot("1", "c1"),)), TWO.disks["vdb"]
)
REFUSED: dict[str, tuple[Revert, Graph, dict[str, Any], type[Refused], str]] = {
    "no such": (Revert("no"), TWO, {"files": files_of("")}, NotFound, "no snapshot 'no'"),
    "two": (BACK, BOTH_KINDS, {"files": files_of("")}, AmbiguousName, "the name of 2 snapshots"),
    "stop": (BACK, TWO, {"files": files_of("stop")}, Unsupported, "only a new QEMU can load it"),
    "background": (BACK, TWO, {"files": files_of("background")}, Unsupported, "--mode background"),
    "via": (
        Revert("c1", via="jobs"),
        TWO,
        {"files": files_of("")},
        Unsupported,
        "is not an internal checkpoint",
    ),
    "job": (BACK, TWO, {"files": files_of(""), "jobs": (job("theirs"),)}, Busy, "'theirs'"),
    "migrating": (
        BACK,
        TWO,
        {"files": files_of(""), "machine": a_machine(TWO, migration="setup")},
        Busy,
        "setup",
    ),
    "waiting": (
        BACK,
        TWO,
        {"files": files_of(""), "machine": a_machine(TWO, status="inmigrate")},
        Unsupported,
        "inmigrate",
    ),
    "given up": (
        BACK,
        TWO,
        {"files": files_of(""), "machine": a_machine(TWO, status="postmigrate")},
        Unsupported,
        "deactivated its images",
    ),
    "shut down": (
        BACK,
        TWO,
        {"files": files_of("in-place"), "machine": a_machine(TWO, running=False, status="shutdown")},
        Unsupported,
        "only after a reset",
    ),
    "other machine": (
        BACK,
        TWO,
        {"files": files_of("in-place"), "machine": OTHER},
        MachineDiffers,
        "another machine: it lacks the device vdb",
    ),
    "no store": (BACK, TWO, {"files": without(STORE, "in-place")}, InvalidTarget, "gone or broken"),
    "empty store": (BACK, TWO, {"files": store(snapshot_count=0)}, InvalidTarget, "not a VM state store"),
    "odd store": (BACK, TWO, {"files": store(backing="/x")}, InvalidTarget, "not a VM state store"),
    "store elsewhere": (BACK, TWO, {"files": store(data_file="/x")}, InvalidTarget, "not a VM state store"),
    "raw store": (BACK, TWO, {"files": store(format="raw")}, InvalidTarget, "gone or broken"),
    "all left": (
        Revert("c1", leave=("vda", "vdb")),
        TWO,
        {"files": files_of("")},
        NotFound,
        "there is no disk",
    ),
    "disk gone": (
        BACK,
        graph(TWO.disks["vda"]),
        {"files": files_of("")},
        NotFound,
        "no disk 'vdb', which is part of 'c1'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_revert_refuses_what_cannot_be(case: str) -> None:
    intent, drawn, around, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(intent, drawn, **around)
    assert type(caught.value) is error


# -- for a new QEMU --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "way"),
    [
        ("", "revert c1 --prepare"),
        ("in-place", """qmpsnap qmp block_resize '{"node-name": "vda-o1", "size": 67108864}'"""),
    ],
)
def test_revert_in_place_says_the_way_out_when_a_disk_was_resized(mode: str, way: str) -> None:
    grown = graph(with_layer(TWO.disks["vda"], 0, virtual_size=128 * MIB), TWO.disks["vdb"])
    with pytest.raises(Unsupported, match="134217728 bytes, it had 67108864") as caught:
        planned(BACK, grown, files=files_of(mode, grown))
    assert way in caught.value.hint


def test_revert_asks_nothing_of_a_disk_that_is_left() -> None:
    device = graph(TWO.disks["vda"], with_layer(TWO.disks["vdb"], 0, file="/dev/sdx"))
    plan = planned(Revert("c1", leave=("vdb",)), device, files=files_of("", device))
    assert plan.disks == ("vda",)


def test_revert_resets_no_guest_whose_memory_comes_back() -> None:
    steps = planned(BACK, TWO, files=files_of("in-place")).steps
    assert not [step for step in steps if isinstance(step, ResetGuest)]


def test_revert_of_disks_alone_lets_a_guest_run_that_slept() -> None:
    asleep = a_machine(TWO, running=False, status="suspended")
    steps = planned(Revert("c1"), TWO, files=files_of(""), machine=asleep).steps
    assert [step for step in steps if isinstance(step, StopGuest)] == [StopGuest(ran=True)]
    assert [step for step in steps if isinstance(step, ContinueGuest)] == [ContinueGuest()]
    with pytest.raises(Unsupported, match="the guest is suspended"):
        planned(Revert("c1"), TWO, files=files_of("in-place"), machine=asleep)
