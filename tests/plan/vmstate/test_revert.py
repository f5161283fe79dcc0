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
from qmpsnap.model.record import Origin
from qmpsnap.plan.commands.block import blockdev_del, check_roots, open_store_to_read
from qmpsnap.plan.commands.files import Proof, retire_file
from qmpsnap.plan.commands.records import finish_record, keep_branch, write_record
from qmpsnap.plan.commands.state import cont, loadvm, snapshot_load, stop, system_reset
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.vmstate.branch import NOT_TOLD
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.moments import BASE, DATA, ID, O1, O2, S1, STORE, TWO, covered_by_us, files_of, kept, kinds
from tests.plan.scenes import STATE, job, planned, root_of, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.step import Step
    from qmpsnap.plan.plan import Plan
    from qmpsnap.testing.fake_files import FakeFiles

BACK = Revert("c1")
KEPT = tuple(
    f"what was written to {disk} until now stays in {file}" for disk, file in (("vda", O1), ("vdb", O2))
)


def test_revert_of_disks_resets_the_guest_on_new_roots() -> None:
    plan = planned(BACK, TWO, files=files_of(""))
    make, go, tidy = plan.stages
    assert kinds(*make.steps) == [
        *("write-record", "create-overlay", "create-overlay", "blockdev-add", "blockdev-add"),
    ]
    assert kinds(*go.steps) == [
        *("stop", "qom-set", "qom-set", "check-roots", "system_reset", "cont"),
    ]
    assert kinds(*tidy.steps) == ["keep-branch", "finish-record"]
    assert (go.verify, tidy.tidy) == (True, True)
    assert plan.notes == (
        "the guest is reset, because its memory does not match the reverted disks",
        *KEPT,
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
        *("stop", "qom-set", "qom-set", "check-roots"),
        *("snapshot-load", "await-job", "job-dismiss", "cont"),
    ]
    store = plan.stages[0].steps[-1]
    load = next(step for step in plan.steps if step.command == "snapshot-load")
    node = store.arguments["node-name"]
    assert store == open_store_to_read(node, STORE)
    assert load == snapshot_load(load.job_id, "qmpsnap-00000001", (("", node),), node)
    assert tidy.steps[0] == blockdev_del(node)
    assert plan.notes == (*KEPT, NOT_TOLD)


def test_revert_reads_back_the_root_of_each_device() -> None:
    plan = planned(BACK, TWO, files=files_of(""))
    roots = tuple(
        (root.disk, TWO.disks[root.disk].qdev, root.node)
        for root in (root_of(step) for step in plan.steps if step.command == "qom-set")
    )
    assert [step for step in plan.steps if step.command == "check-roots"] == [check_roots(roots)]


def test_revert_writes_down_what_it_does_and_keeps_the_branch() -> None:
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=a_machine(TWO, process="1-2"))
    assert plan.record is not None
    record = plan.record
    new = {root_of(step).disk: root_of(step).file for step in plan.steps if step.command == "qom-set"}
    assert plan.steps[0] == write_record(STATE, record)
    assert (record.op, record.name) == ("revert", "c1")
    assert (dict(record.overlays), dict(record.after)) == (new, dict(plan.chains_after))
    assert (record.state, record.origin) == (kept("in-place").state, Origin(True, process="1-2"))
    assert [step for step in plan.steps if step.command == "keep-branch"] == [keep_branch(STATE, ID, new)]
    assert plan.steps[-1] == finish_record(STATE, (record.id,))


@each("mode", ["", "in-place"])
def test_revert_of_a_paused_guest_lets_nothing_run(mode: str) -> None:
    plan = planned(BACK, TWO, files=files_of(mode), machine=a_machine(TWO, running=False))
    assert [step for step in plan.steps if step.command in {"stop", "cont"}] == [stop(ran=False)]
    assert plan.run_state == "paused"


@each("iothreads", [False, True])
def test_revert_to_a_branch_left_aside_comes_into_the_thread_of_the_disk(*, iothreads: bool) -> None:
    """The second layer of vda is not in the chain any more: it is opened, and connected once all is still."""
    now = covered_by_us(graph(chain("base <- x*"), TWO.disks["vdb"]))
    files = files_of("", now)
    files.follow(TWO)
    plan = planned(BACK, now, files=files, machine=a_machine(now, iothreads=iothreads))
    make, go, _ = plan.stages
    adds = [step for step in make.steps if step.command == "blockdev-add"]
    if not iothreads:
        assert [step.arguments.get("backing") for step in adds] == [None, "vdb-data.raw"]
        assert "blockdev-reopen" not in kinds(*go.steps)
        return
    layer, root, other = adds
    assert (layer.arguments["file"]["filename"], layer.arguments["read-only"]) == (S1, True)
    assert (root.arguments["backing"], other.arguments["backing"]) == ("vda-base", "vdb-data.raw")
    assert kinds(*go.steps)[:3] == ["stop", "blockdev-reopen", "qom-set"]
    assert go.steps[1].arguments["options"] == [{**root.arguments, "backing": layer.arguments["node-name"]}]


def stops(plan: Plan) -> list[Step]:
    return [step for step in plan.steps if step.way in {"stop-for-load", "stop"}]


def test_revert_stops_a_guest_as_for_a_load_where_qemu_translates_its_code() -> None:
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=a_machine(TWO, emulated=True))
    (stop,) = stops(plan)
    assert plan.stages[1].steps[0] == stop
    assert stop.way == "stop-for-load"
    assert stop.detail["name"].startswith("qmpsnap/none/")
    with pytest.raises(BadName):
        check_name(stop.detail["name"])
    assert plan.notes == (*KEPT, NOT_TOLD)
    theirs = with_layer(TWO.disks["vda"], 0, snapshots=(InternalSnapshot("1", stop.detail["name"]),))
    taken = graph(theirs, TWO.disks["vdb"])
    (other,) = stops(
        planned(BACK, taken, files=files_of("in-place"), machine=a_machine(taken, emulated=True))
    )
    assert other.way == "stop-for-load"
    assert other.detail["name"] != stop.detail["name"]


def test_revert_of_disks_alone_stops_an_emulated_guest_as_any_other() -> None:
    plan = planned(BACK, TWO, files=files_of(""), machine=a_machine(TWO, emulated=True))
    assert stops(plan) == [stop()]


@each(("status", "stale"), [("paused", True), ("prelaunch", True), ("restore-vm", False)])
def test_revert_says_that_an_emulated_guest_that_is_paused_may_run_stale_code(
    status: str, *, stale: bool
) -> None:
    machine = a_machine(TWO, running=False, status=status, emulated=True)
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=machine)
    assert stops(plan) == [stop(ran=False)]
    assert any("stale code" in note for note in plan.notes) is stale
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=replace(machine, emulated=False))
    assert any("stale code" in note for note in plan.notes) is False


def test_revert_with_memory_resumes_a_guest_that_an_earlier_load_left_paused() -> None:
    failed = a_machine(TWO, running=False, status="restore-vm")
    plan = planned(BACK, TWO, files=files_of("in-place"), machine=failed)
    assert plan.stages[1].steps[-1] == cont()
    assert stops(plan) == [stop(ran=False)]  # a failure must not resume it
    resumed = "the guest is resumed: it was running until a load of VM state failed"
    assert plan.notes == (resumed, *KEPT, NOT_TOLD)
    assert cont() not in planned(BACK, TWO, files=files_of(""), machine=failed).steps


def test_revert_removes_what_was_written_since_only_when_it_is_given_up() -> None:
    given_up = planned(Revert("c1", discard=True), covered_by_us(TWO), files=files_of(""))
    removed = [step for step in given_up.steps if step.command == "retire-file"]
    assert removed == [
        retire_file(O1, "remove", "", Proof("qcow2", S1)),
        retire_file(O2, "remove", "", Proof("qcow2", DATA)),
    ]
    assert given_up.stages[-1].steps[1:3] == tuple(removed)
    assert not [
        step for step in planned(BACK, TWO, files=files_of("")).steps if step.command == "retire-file"
    ]


def test_revert_removes_no_file_that_a_node_of_somebody_else_keeps_open() -> None:
    plan = planned(Revert("c1", discard=True), TWO, files=files_of(""))
    assert not [step for step in plan.steps if step.command == "retire-file"]
    assert not any("stays in" in note for note in plan.notes)
    assert [note for note in plan.notes if O1 in note and 'blockdev-del \'{"node-name": "vda-o1"}\'' in note]


def test_revert_of_disks_resets_a_guest_that_was_shut_down() -> None:
    off = a_machine(TWO, running=False, status="shutdown")
    assert system_reset() in planned(BACK, TWO, files=files_of(""), machine=off).steps


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
    assert [step for step in plan.steps if step.way == "loadvm"] == [loadvm("in", running=True)]
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


@each("case", REFUSED)
def test_revert_refuses_what_cannot_be(case: str) -> None:
    intent, drawn, around, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(intent, drawn, **around)
    assert type(caught.value) is error


def test_revert_says_how_a_qemu_that_waits_for_vm_state_loads_it() -> None:
    waiting = a_machine(TWO, status="inmigrate")
    with pytest.raises(Unsupported, match="only a new QEMU can load it") as caught:
        planned(BACK, TWO, files=files_of("stop"), machine=waiting)
    assert caught.value.hint == "this one waits for VM state: qmpsnap revert c1 --into-incoming"


# -- for a new QEMU --------------------------------------------------------------------------------


@each(
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
    assert not [step for step in steps if step.command == "system_reset"]


def test_revert_of_disks_alone_lets_a_guest_run_that_slept() -> None:
    asleep = a_machine(TWO, running=False, status="suspended")
    steps = planned(Revert("c1"), TWO, files=files_of(""), machine=asleep).steps
    assert [step for step in steps if step.command == "stop"] == [stop(ran=True)]
    assert [step for step in steps if step.command == "cont"] == [cont()]
    with pytest.raises(Unsupported, match="the guest is suspended"):
        planned(Revert("c1"), TWO, files=files_of("in-place"), machine=asleep)
