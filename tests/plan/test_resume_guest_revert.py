from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.model.features import Features
from qmpsnap.model.graph import Filter, Io
from qmpsnap.model.record import Origin
from qmpsnap.plan import resume
from qmpsnap.plan.commands.block import blockdev_add, blockdev_del
from qmpsnap.plan.commands.files import remove_orphan
from qmpsnap.plan.commands.records import finish_record, keep_branch
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.moments import MOMENT, TWO, files_of
from tests.plan.scenes import NOW, planned, root_of, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.record import IntentRecord
    from qmpsnap.plan.plan import Plan
    from qmpsnap.testing.fake_files import FakeFiles

GUEST = {"snapshot-load", "system_reset", "cont"}


def begun(mode: str) -> tuple[IntentRecord, Graph, FakeFiles]:
    """What a revert wrote down, the graph once all disks have moved, and the files."""
    files = files_of(mode)
    plan = planned(Revert("c1"), TWO, files=files)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    for disk, file in record.overlays.items():
        files.put(file, backing=record.after[disk][1])
    files.records.append(record)
    names = [file.removeprefix("/images/") for file in record.overlays.values()]
    return record, graph(vda=f"base <- s1 <- {names[0]}*", vdb=f"data.raw <- {names[1]}*"), files


def rested(
    record: IntentRecord, of: Graph, files: FakeFiles, *, process: str = "1:1", status: str = "paused"
) -> Plan:
    machine = a_machine(of, running=False, process=process, status=status)
    looked = files.look(resume.ask(of, records=(record,)))
    return resume.plan(
        record.id,
        GuestScene(of, looked, (), Features(frozenset({"human-monitor-command"})), NOW, machine=machine),
    )


def tidied(plan: Plan, record: IntentRecord) -> bool:
    """Whether it leaves the guest alone, keeps the branch, and says so."""
    assert not any(step.command in GUEST for step in plan.steps)
    assert keep_branch(MOMENT.directory, MOMENT.id, record.overlays) in plan.steps
    assert plan.steps[-1] == finish_record(record.directory, (record.id,))
    return any("no memory is loaded" in note for note in plan.notes)


@pytest.mark.parametrize("mode", ["", "in-place"])
def test_resume_of_a_revert_goes_on_while_the_guest_has_not_run(mode: str) -> None:
    record, of, files = begun(mode)
    plan = rested(record, of, files)
    sent = [step.command for step in plan.steps if step.command in GUEST]
    assert sent == ["snapshot-load" if mode else "system_reset", "cont"]


@pytest.mark.parametrize("mode", ["", "in-place"])
def test_resume_of_a_revert_loads_nothing_into_a_guest_that_wrote_since(mode: str) -> None:
    record, of, files = begun(mode)
    files.touch(record.overlays["vdb"])
    assert tidied(rested(record, of, files), record)


@pytest.mark.parametrize(("mode", "runs"), [("in-place", True), ("", False)])
def test_resume_of_a_revert_resumes_a_guest_that_an_earlier_load_left_paused(
    mode: str, *, runs: bool
) -> None:
    record, of, files = begun(mode)
    record = replace(record, origin=Origin(running=False, process="1:1"))
    files.records[-1] = record
    assert (cont() in rested(record, of, files, status="restore-vm").steps) is runs
    assert cont() not in rested(record, of, files, status="paused").steps


@pytest.mark.parametrize("process", ["2:2", ""])
def test_resume_of_a_revert_loads_nothing_into_another_qemu(process: str) -> None:
    record, of, files = begun("in-place")
    assert tidied(rested(record, of, files, process=process), record)


def test_resume_of_a_revert_under_a_later_checkpoint_keeps_the_branch_and_loads_nothing() -> None:
    record, of, files = begun("in-place")
    drawn = {
        disk.name: " <- ".join(file.removeprefix("/images/") for file in disk.files[::-1])
        for disk in of.disks.values()
    }
    on = graph(vda=f"{drawn['vda']} <- later*", vdb=f"{drawn['vdb']} <- later2*")
    assert on.disks["vda"].files[1] == record.overlays["vda"]
    plan = rested(record, on, files)
    assert tidied(plan, record)
    assert not plan.expect


def test_resume_of_a_revert_gives_no_disk_a_root_that_is_not_the_empty_overlay_of_its_record() -> None:
    record, of, files = begun("")
    half = graph(of.disks["vda"], TWO.disks["vdb"])
    assert "qom-set" in [step.command for step in rested(record, half, files).steps]
    files.touch(record.overlays["vdb"])
    plan = rested(record, half, files)
    assert tidied(plan, record)
    assert "qom-set" not in [step.command for step in plan.steps]


def test_resume_of_a_revert_leaves_disks_that_have_no_overlay() -> None:
    """As in a record that somebody has changed."""
    record, of, files = begun("")
    file = record.overlays["vdb"]
    vda = tuple(step for step in record.steps if file not in f"{step.effect} {step.makes}")
    record = replace(record, stages=(replace(record.stages[1], steps=vda),))
    files.records[-1] = record
    assert [*record.overlays] == ["vda"]
    assert "qom-set" not in [step.command for step in rested(record, of, files).steps]


def test_resume_of_a_revert_that_went_half_way_before_the_guest_ran_says_so() -> None:
    record, of, files = begun("in-place")
    files.touch(record.overlays["vda"])
    half = graph(of.disks["vda"], TWO.disks["vdb"])
    plan = rested(record, half, files)
    assert tidied(plan, record)
    assert ("vdb was not reverted" in plan.notes[0], plan.ended) == (True, "partial")
    assert (plan.moves, plan.expect, plan.after) == ((), {}, half)


@pytest.mark.parametrize("goes", [True, False])
def test_resume_of_a_revert_frees_the_nodes_that_the_disks_leave_and_no_others(*, goes: bool) -> None:
    owned = "qmpsnap-a-00000000"
    vdb = with_layer(TWO.disks["vdb"], 0, node=owned)
    was = graph(TWO.disks["vda"], replace(vdb, root=owned))
    files = files_of("", was)
    plan = planned(Revert("c1"), was, files=files)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    for disk, file in record.overlays.items():
        files.put(file, backing=record.after[disk][1])
    files.records.append(record)
    if not goes:
        files.touch(record.overlays["vda"])
    root = record.overlays["vda"].removeprefix("/images/")
    plan = rested(record, graph(graph(vda=f"base <- s1 <- {root}*").disks["vda"], was.disks["vdb"]), files)
    assert (blockdev_del(owned) in plan.steps) is goes


def test_resume_of_a_revert_is_no_success_where_it_is_not_known_whether_memory_came_back() -> None:
    record, of, files = begun("in-place")
    assert "revert again" in rested(record, of, files, process="").vanished
    assert rested(record, of, files, process="2:2").vanished == ""
    assert rested(record, of, files).vanished == ""


@pytest.mark.parametrize("above", [(), (Filter("thr", "throttle", "tg", Io(no_flush=True)),)])
def test_resume_of_a_revert_opens_what_is_missing_as_the_disk_is_read_and_written(
    above: tuple[Filter, ...],
) -> None:
    record, of, files = begun("")
    vdb = with_layer(TWO.disks["vdb"], 0, io=Io(direct=True))
    vdb = replace(vdb, filters=above, root="thr" if above else vdb.root)
    plan = rested(record, graph(of.disks["vda"], vdb), files)
    (add,) = [step for step in plan.steps if step.command == "blockdev-add"]
    (move,) = [step for step in plan.steps if step.command in {"qom-set", "blockdev-reopen"}]
    node, file = root_of(move).node, record.overlays["vdb"]
    assert add == blockdev_add(node, file, io=Io(direct=True), unmap=True)
    caches = [options["cache"] for options in move.arguments.get("options", ())]
    assert caches == [{"direct": False, "no-flush": True}] * len(above)


@each(
    ("mode", "ran", "process", "runs"),
    [
        ("in-place", True, "1:1", True),
        ("in-place", False, "1:1", False),
        ("in-place", True, "2:2", False),
        ("in-place", True, "", False),
        ("", True, "1:1", False),
    ],
)
def test_resume_of_a_revert_that_had_only_stopped_the_guest_for_a_load_lets_it_run_on(
    mode: str, process: str, *, ran: bool, runs: bool
) -> None:
    record, _, files = begun(mode)
    record = replace(record, origin=Origin(ran, process="1:1"))
    files.records[-1] = record
    plan = rested(record, TWO, files, process=process, status="restore-vm")
    assert ((cont() in plan.steps), plan.ended) == (runs, "rolled-back")
    assert not any(step.command in {"snapshot-load", "qom-set"} for step in plan.steps)
    assert plan.steps[-1] == finish_record(record.directory, (record.id,))


@pytest.mark.parametrize("kept", [True, False])
def test_resume_of_overlays_for_another_qemu_removes_those_that_the_moment_does_not_know(
    *, kept: bool
) -> None:
    files = files_of("stop")
    plan = planned(Revert("c1", into="new"), TWO, files=files)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    if kept:
        (moment,) = files.records
        files.records[:] = [replace(moment, branches=(record.overlays,))]
    files.records.append(record)
    looked = files.look(resume.ask(TWO, records=(record,)))
    rest = resume.plan(record.id, Scene(TWO, looked, (), Features(frozenset({"human-monitor-command"})), NOW))
    orphans = tuple(remove_orphan(file, MOMENT.covered[disk]) for disk, file in record.overlays.items())
    keep, finish = keep_branch(MOMENT.directory, MOMENT.id, record.overlays), rest.steps[-1]
    assert rest.steps == ((keep, finish) if kept else (*orphans, finish))
    assert finish == finish_record(record.directory, (record.id,))
    assert (rest.prepared, rest.memory) == ((plan.prepared, plan.memory) if kept else ({}, ""))
    assert rest.notes == (f"the overlays for 'c1' are {'there' if kept else 'removed'}",)
