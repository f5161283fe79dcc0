from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.model.features import Features
from qmpsnap.model.memory import MemoryFact, MemoryNote
from qmpsnap.model.record import IntentRecord, Origin, moment_of
from qmpsnap.plan import resume
from qmpsnap.plan.commands.files import remove_state
from qmpsnap.plan.commands.records import finish_record, keep_moment, keep_store
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.intent import Checkpoint, FileMode, MakeStore, Save
from qmpsnap.plan.scene import GuestScene
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.moments import ID, MEMORY, TWO
from tests.plan.moments import files_of as moment_files
from tests.plan.moments import kept as moment_kept
from tests.plan.scenes import NOW, STATE, planned

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.plan import Plan

LATER = "2024-05-01T13:00:00.000000+00:00"
ONE = graph(vda="base <- s1*")
REMOVED = "; its files are removed"
MODES: list[FileMode] = ["stop", "in-place"]


def begun(mode: FileMode = "stop", on: Graph = ONE) -> tuple[IntentRecord, Graph]:
    """What a checkpoint wrote down, and the graph with its overlays."""
    plan = planned(Checkpoint("c1", mode), on)
    assert plan.record is not None
    assert plan.after is not None
    return replace(plan.record, directory=plan.steps[0].arguments["directory"]), plan.after


def files_of(record: IntentRecord, of: Graph, *, partial: bool = True, sealed: str = "") -> FakeFiles:
    """The files; `sealed`: id of the operation whose memory has its name."""
    assert record.state is not None
    files = FakeFiles(of)
    files.records.append(record)
    if partial:
        files.put(record.state.partial)
    if sealed:
        file, state = record.state.file, record.state
        files.put(file)
        note = MemoryNote(sealed, "c1", 1, True, state.fingerprint, ())
        tags = (f"qmpsnap-{sealed[-8:]}",) if state.tag else ()
        files.memories[file] = MemoryFact(file, 1, None if state.tag else note, tags=tags)
    return files


def rested(
    record: IntentRecord,
    of: Graph,
    files: FakeFiles,
    *,
    process: str = "1:1",
    status: str = "running",
    migration: str = "none",
) -> Plan:
    machine = a_machine(of, process=process, running=status == "running", status=status, migration=migration)
    looked = files.look(resume.ask(of, records=(record,)))
    return resume.plan(
        record.id,
        GuestScene(of, looked, (), Features(frozenset({"human-monitor-command"})), NOW, machine=machine),
    )


@pytest.mark.parametrize("mode", MODES)
def test_resume_seals_the_memory_of_the_very_qemu_that_wrote_it(mode: FileMode) -> None:
    record, of = begun(mode)
    plan = rested(record, of, files_of(record, of))
    assert any(step.command in {"seal-memory", "seal-store"} for step in plan.steps)
    assert plan.steps[-1] == keep_moment(record.directory, record.id, "c1")


@each("mode", MODES)
@each(("process", "partial"), [("2:2", True), ("", True), ("1:1", False)])
def test_resume_gives_a_memory_up_that_nobody_knows_to_be_whole(
    mode: FileMode, process: str, *, partial: bool
) -> None:
    record, of = begun(mode)
    plan = rested(record, of, files_of(record, of, partial=partial), process=process)
    assert not any(step.command in {"seal-memory", "seal-store", "keep-moment"} for step in plan.steps)
    assert plan.steps[-1] == finish_record(record.directory, (record.id,))
    assert "stays" in plan.notes[1]
    assert plan.ended == "partial"


def test_resume_says_what_folds_an_overlay_so_that_it_can_be_typed() -> None:
    record, of = begun(on=graph(chain("base <- s1*", directory="/my images")))
    plan = rested(record, of, files_of(record, of, partial=False))
    fold = "qmpsnap commit vda --top '/my images/base.c1.qcow2' --base '/my images/s1.qcow2'"
    assert f"to commit it: {fold}" in plan.notes[1]


@pytest.mark.parametrize("mode", MODES)
def test_resume_of_a_checkpoint_whose_moment_is_kept_only_ends_the_record(mode: FileMode) -> None:
    record, _ = begun(mode)
    files = files_of(record, ONE, sealed=record.id, partial=False)
    files.records.append(moment_of(record))
    assert rested(record, ONE, files).steps == (finish_record(record.directory, (record.id,)),)


@each("mode", MODES)
@each("links", [2, 3])
def test_resume_keeps_a_memory_whose_client_was_killed_while_it_was_renamed(
    mode: FileMode, links: int
) -> None:
    """It has both names then; with a third one it may be any file of the host."""
    record, of = begun(mode)
    assert record.state is not None
    files, state = files_of(record, of, sealed=record.id), record.state
    for name in (state.file, state.partial):
        fact = files.memories[state.file]
        files.memories[name] = replace(fact, path=name, inode=7, links=links)
    steps = rested(record, of, files).steps
    kept = keep_moment(record.directory, record.id, "c1")
    assert (kept in steps, remove_state(state.partial, record.id) in steps) == (links == 2, True)


@each("mode", MODES)
@each("there", [True, False])
def test_resume_keeps_a_whole_memory_as_long_as_its_layers_are_there(mode: FileMode, *, there: bool) -> None:
    record, of = begun(mode)
    files = files_of(record, of, sealed=record.id, partial=False)
    if not there:
        del files.facts["/images/s1.qcow2"]
    plan = rested(record, ONE, files, process="2:2")
    kept = keep_moment(record.directory, record.id, "c1")
    assert (plan.steps[-1] == kept) is there
    assert any(step.command == "remove-state" for step in plan.steps) is not there


@pytest.mark.parametrize("mode", MODES)
def test_resume_does_not_touch_the_memory_of_another_under_its_name(mode: FileMode) -> None:
    record, of = begun(mode)
    assert record.state is not None
    plan = rested(record, of, files_of(record, of, sealed="qmpsnap-checkpoint-keep-99999999"))
    removed = [step.arguments["file"] for step in plan.steps if step.command == "remove-state"]
    assert removed == [record.state.partial]
    assert plan.steps[-1] == finish_record(record.directory, (record.id,))


@pytest.mark.parametrize("kept", [True, False])
def test_resume_of_the_first_of_two_attempts_under_one_name_only_ends_the_record(*, kept: bool) -> None:
    record, of = begun()
    later = replace(record, id="qmpsnap-checkpoint-keep-99999999", created=LATER)
    files = files_of(record, of)
    files.records.append(moment_of(later) if kept else later)
    assert rested(record, of, files).steps == (finish_record(record.directory, (record.id,)),)


@pytest.mark.parametrize(("status", "runs"), [("paused", True), ("restore-vm", False)])
def test_resume_lets_no_guest_run_that_is_half_loaded(status: str, *, runs: bool) -> None:
    record, of = begun()
    plan = rested(record, of, files_of(record, of), status=status)
    assert record.origin == Origin(True, "1:1")
    assert (cont() in plan.steps) is runs


@each(("mode", "partial"), [("stop", True), ("stop", False), ("in-place", True), ("in-place", False)])
def test_resume_takes_back_from_qemu_what_it_was_given_and_sets_it_as_it_was(
    mode: FileMode, *, partial: bool
) -> None:
    """Whether the checkpoint is kept or given up; one in place gives QEMU no file, and sets nothing."""
    record, of = begun(mode)
    files = files_of(record, of, partial=partial)
    looked = files.look(resume.ask(of, records=(record,)))
    machine = a_machine(
        of, process="1:1", capabilities={"events": True}, parameters={"max-bandwidth": 1 << 60}
    )
    scene = GuestScene(of, looked, (), Features(frozenset({"human-monitor-command"})), NOW, machine=machine)
    sent = [step.command for step in resume.plan(record.id, scene).steps if step.on == "qmp"]
    back = ["migrate-set-parameters", "migrate-set-capabilities"]
    assert sent == ([] if mode == "in-place" else ["closefd", *back])


@pytest.mark.parametrize("whole", [True, False])
def test_resume_of_a_save_lets_the_guest_run_that_it_did_not_save(*, whole: bool) -> None:
    plan = planned(Save("/images/vm.state"), ONE)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    files = files_of(record, ONE, sealed=record.id if whole else "")
    rest = rested(record, ONE, files, status="paused")
    assert (cont() in rest.steps) is not whole
    assert rest.notes == (
        f"/images/vm.state {'is' if whole else 'was not'} complete" + ("" if whole else REMOVED),
    )
    assert rest.steps[-1] == finish_record(record.directory, (record.id,))


@each(
    ("status", "migration"),
    [("paused", "active"), ("finish-migrate", "device"), ("finish-migrate", "completed")],
)
def test_resume_of_a_save_that_is_being_written_awaits_its_end_and_lets_the_guest_run(
    status: str, migration: str
) -> None:
    """QEMU says "completed" before the guest is in its last run state, and refuses `cont` in between."""
    plan = planned(Save("/images/vm.state"), ONE)
    assert plan.record is not None
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    rest = rested(record, ONE, files_of(record, ONE), status=status, migration=migration)
    sent = [step.command for step in rest.steps if step.on == "qmp"]
    assert sent[:3] == ["migrate_cancel", "remove-fd", "cont"]


@pytest.mark.parametrize("status", ["running", "paused"])
@pytest.mark.parametrize("way", ["nothing", "partial", "whole", "recorded", "deleted", "only a link"])
def test_resume_of_a_store_keeps_it_only_if_it_is_whole_and_leaves_the_guest_alone(
    way: str, status: str
) -> None:
    files = moment_files("background")
    plan = planned(MakeStore("c1"), TWO, files=files)
    assert plan.record is not None
    record = replace(plan.record, directory=STATE)
    assert record.state is not None
    files.records.append(record)
    if way == "partial":
        files.put(record.state.partial)
    if way in {"whole", "recorded"}:
        files.put(record.state.file)
        files.memories[record.state.file] = MemoryFact(record.state.file, 1, tags=(record.state.tag,))
    if way == "recorded":
        files.records[0] = replace(moment_kept("background"), state=record.state)
    if way in {"deleted", "only a link"}:
        files.put(record.state.file)
        files.memories[record.state.file] = MemoryFact(record.state.file, 1, tags=(record.state.tag,))
        link = replace(moment_kept("background"), state=None, deleted=True)
        files.records[:1] = [] if way == "deleted" else [link]
    rest = rested(record, TWO, files, status=status)
    finish = finish_record(STATE, (record.id,))
    if way in {"deleted", "only a link"}:
        removed = remove_state(record.state.file, record.id, record.state.tag)
        assert rest.steps == (remove_state(record.state.partial, record.id), removed, finish)
    elif way in {"whole", "recorded"}:
        keep = keep_store(STATE, ID, by=record.id, instead_of=MEMORY)
        assert rest.steps == (keep, finish)
        assert rest.notes == ("the store of 'c1' is complete",)
    else:
        assert rest.steps == (remove_state(record.state.partial, record.id), finish)
        assert rest.notes == ("the store of 'c1' was not complete, and is removed",)
