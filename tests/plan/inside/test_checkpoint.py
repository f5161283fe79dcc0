from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from qmpsnap.errors import (
    AmbiguousName,
    BadName,
    Busy,
    NotFound,
    NotInChain,
    Refused,
    TargetExists,
    Unsupported,
)
from qmpsnap.model.graph import Filter, InternalSnapshot, Node
from qmpsnap.model.job import JobStatus, parse_job_id
from qmpsnap.model.record import Origin
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.commands.state import (
    cont,
    delvm,
    loadvm,
    savevm,
    snapshot_delete,
    snapshot_load,
    snapshot_save,
)
from qmpsnap.plan.intent import Checkpoint, Delete, Intent, Revert, Via
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_machine import COMMANDS, a_machine
from tests.each import each
from tests.plan.scenes import STATE as STATE_DIR
from tests.plan.scenes import job, planned, unseen, with_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpsnap.model.graph import Disk, Graph
    from qmpsnap.model.step import Step


def holding(name: str, *snapshots: InternalSnapshot, layer: int = 0) -> Disk:
    return with_layer(chain("base <- s1*", name=name), layer, snapshots=snapshots)


STATE, PART = InternalSnapshot("1", "c1", 4096), InternalSnapshot("1", "c1")
OTHER_STATE = structs.replace(STATE, id="2")
FILTERED = graph(structs.replace(holding("vda", STATE), root="thr", filters=(Filter("thr", "throttle"),)))
BEFORE_WRITE = graph(
    structs.replace(holding("vda", STATE), root="cbw", filters=(Filter("cbw", "copy-before-write"),))
)
READ_ONLY = structs.replace(chain("iso*", name="vdr"), read_only=True)
TWO = graph(holding("vda", STATE), holding("vdb", PART), READ_ONLY)


SAVE, LOAD, DELETE = Checkpoint("c2", "internal"), Revert("c1"), Delete("c1")
NODES = (("vda", "vda-s1"), ("vdb", "vdb-s1"))


@each(
    ("intent", "step", "inside"),
    [
        (SAVE, savevm("c2", ("vda", "vdb")), ["c1", "c2"]),
        (LOAD, loadvm("c1", running=True), ["c1"]),
        (DELETE, delvm("c1", ("vda", "vdb")), []),
    ],
)
def test_checkpoint_is_one_line_of_the_human_monitor(intent: Intent, step: Step, inside: list[str]) -> None:
    plan = planned(intent, TWO, files=unseen(TWO))
    assert plan.steps == (step,)
    assert (plan.disks, plan.chains_after) == (("vda", "vdb"), plan.chains_before)
    assert plan.after is not None
    for name in plan.disks:
        assert [one.name for one in plan.after.disks[name].active.snapshots] == inside


@each(
    ("intent", "step", "inside"),
    [
        (replace(SAVE, via="jobs"), partial(snapshot_save, name="c2", nodes=NODES), ["c1", "c2"]),
        (
            replace(LOAD, via="jobs"),
            partial(snapshot_load, name="c1", nodes=NODES, vmstate="vda-s1", running=True),
            ["c1"],
        ),
        (replace(DELETE, via="jobs"), partial(snapshot_delete, name="c1", nodes=NODES), []),
    ],
)
def test_checkpoint_by_jobs_is_a_job_that_is_waited_for_and_dismissed(
    intent: Intent, step: Callable[[str], Step], inside: list[str]
) -> None:
    plan = planned(intent, TWO, files=unseen(TWO))
    job_id = plan.job_id
    assert parse_job_id(job_id) is not None
    assert plan.steps == (
        step(job_id), await_job(job_id, "concluded"), job_dismiss(job_id),
    )  # fmt: skip
    assert plan.after is not None
    for name in plan.disks:
        assert [one.name for one in plan.after.disks[name].active.snapshots] == inside


@each("via", ["hmp", "jobs"])
def test_revert_resumes_a_guest_that_an_earlier_load_left_paused(via: Via) -> None:
    failed = a_machine(TWO, running=False, status="restore-vm")
    plan = planned(replace(LOAD, via=via), TWO, files=unseen(TWO), machine=failed)
    load, *_, last = plan.steps
    assert last == cont()
    assert cont() not in (*load.undo, *load.on_failure)  # a failure must not resume it
    assert "the guest is resumed: it was running until a load of VM state failed" in plan.notes


@each("via", ["hmp", "jobs"])
@each("intent", [SAVE, LOAD])
@each("running", [True, False])
def test_checkpoint_writes_its_record_first_and_finishes_it_last(
    intent: Checkpoint | Revert, via: Via, *, running: bool
) -> None:
    plan = planned(replace(intent, via=via), TWO, machine=a_machine(TWO, running=running))
    first, last = plan.steps[0], plan.steps[-1]
    record = plan.record
    assert record is not None
    assert first == write_record(STATE_DIR, record)
    assert last == finish_record(STATE_DIR, (record.id,))
    assert (record.op, record.name, record.origin) == (plan.op, intent.name, Origin(running, process="1:1"))
    assert dict(record.chains) == plan.chains_before
    assert plan.job_id in {"", record.id}


@each("via", ["hmp", "jobs"])
@each(("intent", "running", "stale"), [(LOAD, False, 1), (LOAD, True, 0), (SAVE, False, 0)])
def test_checkpoint_loaded_into_an_emulated_guest_that_is_paused_says_what_may_be_stale(
    intent: Checkpoint | Revert, via: Via, *, running: bool, stale: int
) -> None:
    machine = a_machine(TWO, running=running, emulated=True)
    notes = planned(replace(intent, via=via), TWO, machine=machine).notes
    assert [("stale code" in note, "'c1'" in note) for note in notes] == [(True, True)] * stale


def test_checkpoint_whose_name_no_record_may_carry_is_not_written_down() -> None:
    theirs = graph(holding("vda", structs.replace(STATE, name="a b")))
    assert planned(Revert("a b"), theirs).steps == (loadvm("a b", running=True),)


RAW_BESIDE = graph(holding("vda", STATE), chain("d.raw*", name="vdr"))


@each("leave", ["vdr", "/images/d.raw"])
def test_checkpoint_leaves_a_disk_out_by_any_spelling_and_says_so(leave: str) -> None:
    plan = planned(Checkpoint("c2", "internal", leave=(leave,)), RAW_BESIDE, files=unseen(RAW_BESIDE))
    assert plan.steps[0].command == "snapshot-save"
    assert (plan.steps[0].arguments["devices"], plan.disks) == (["vda-s1"], ("vda",))
    assert plan.notes == ("left out: vdr",)


def test_revert_leaves_a_disk_that_has_the_checkpoint_when_it_is_named() -> None:
    plan = planned(Revert("c1", leave=("vdb",)), TWO, files=unseen(TWO))
    assert plan.steps[0].command == "snapshot-load"
    assert plan.steps[0].arguments["devices"] == ["vda-s1"]


def test_checkpoint_by_jobs_keeps_its_memory_in_no_uefi_variables_when_there_is_another_disk() -> None:
    flash = graph(chain("vars*", name="pflash1"), holding("vda"))
    plan = planned(replace(SAVE, via="jobs"), flash, files=unseen(flash))
    assert plan.steps[0].arguments["vmstate"] == "vda-s1"


def test_revert_by_jobs_takes_the_memory_from_the_disk_that_has_it() -> None:
    swapped = graph(holding("vda", PART), holding("vdb", STATE))
    plan = planned(replace(LOAD, via="jobs"), swapped, files=unseen(swapped))
    assert plan.steps[0].arguments["vmstate"] == "vdb-s1"


def test_revert_goes_by_jobs_when_they_alone_find_the_memory() -> None:
    flash = graph(holding("pflash1", PART), holding("vda", STATE))
    step = planned(LOAD, flash, files=unseen(flash)).steps[0]
    assert (step.command, step.arguments["vmstate"]) == ("snapshot-load", "vda-s1")
    first = graph(holding("pflash1", STATE), holding("vda", PART))
    assert planned(LOAD, first, files=unseen(first)).steps == (loadvm("c1", running=True),)


def test_checkpoint_under_a_throttle_goes_by_jobs_on_the_node_below() -> None:
    for intent in (SAVE, LOAD, DELETE):
        step = planned(intent, FILTERED, files=unseen(FILTERED)).steps[0]
        assert step.command in {"snapshot-save", "snapshot-load", "snapshot-delete"}
        assert step.arguments["devices"] == ["vda-s1"]


RAW = RAW_BESIDE
ADDED = graph(holding("vda", STATE), chain("n*", name="vdn"))
FLASH = graph(holding("vda", STATE), chain("vars.raw*", name="pflash1"))
LEAKED = graph(holding("vda", STATE), nodes=(Node("leak", "qcow2", "/images/x.qcow2"),))
BARE = graph(holding("vda", STATE), nodes=(Node("bare", "file", "/images/x.qcow2"),))
REFUSED: dict[str, tuple[Graph, Intent, type[Refused], str]] = {
    "existing": (TWO, Checkpoint("c1", "internal"), TargetExists, "there already is an .* snapshot 'c1'"),
    "raw": (RAW, SAVE, Unsupported, r"vdr \(/images/d\.raw\) is writable and raw"),
    "raw, load": (RAW, LOAD, Unsupported, "vdr"),
    "raw, delete by hmp": (RAW, replace(DELETE, via="hmp"), Unsupported, "vdr"),
    "leave by hmp": (
        RAW,
        replace(SAVE, leave=("vdr",), via="hmp"),
        Unsupported,
        "every writable disk, also vdr",
    ),
    "leave, load by hmp": (TWO, replace(LOAD, leave=("vdb",), via="hmp"), Unsupported, "also vdb"),
    "leave all": (
        RAW,
        replace(SAVE, leave=("vda", "vdr")),
        Unsupported,
        "no writable qcow2 disk",
    ),
    "leave nobody": (RAW, replace(SAVE, leave=("vdz",)), NotFound, "vdz"),
    "leave the memory": (
        TWO,
        replace(LOAD, leave=("vda",)),
        Unsupported,
        "inside vda, which is left out",
    ),
    "leave another": (ADDED, replace(LOAD, leave=("vda",)), NotInChain, "vdn"),
    "flash": (FLASH, SAVE, Unsupported, "pflash1"),
    "filter by hmp": (FILTERED, replace(SAVE, via="hmp"), Unsupported, "throttle 'thr'"),
    "other filter": (BEFORE_WRITE, SAVE, Unsupported, "copy-before-write 'cbw'"),
    "leaked": (LEAKED, SAVE, Busy, "'leak'"),
    "leaked file": (BARE, SAVE, Busy, "'bare'"),
    "no disk": (graph(READ_ONLY), SAVE, Unsupported, "no writable qcow2 disk"),
    "load missing": (TWO, Revert("no"), NotFound, "'no'"),
    "delete missing": (TWO, Delete("no"), NotFound, "'no'"),
    "disk added": (ADDED, LOAD, NotInChain, "vdn"),
    "below": (graph(holding("vda", STATE, layer=1)), LOAD, NotInChain, "active layer of vda"),
    "delete below": (graph(holding("vda", STATE, layer=1)), DELETE, NotInChain, "below"),
    "disks alone": (graph(holding("vda", PART)), LOAD, Unsupported, "only disks"),
    "double": (
        graph(holding("vda", STATE, OTHER_STATE)),
        LOAD,
        AmbiguousName,
        "more than one",
    ),
}


@each("case", REFUSED)
def test_checkpoint_refuses_what_cannot_be(case: str) -> None:
    drawn, intent, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(intent, drawn)
    assert type(caught.value) is error


@each("via", ["hmp", "jobs"])
@each("intent", [SAVE, LOAD])
def test_checkpoint_refuses_while_any_job_is_under_way(intent: Checkpoint | Revert, via: Via) -> None:
    intent = replace(intent, via=via)
    with pytest.raises(Busy, match="'theirs'"):
        planned(intent, TWO, jobs=(job("theirs"),))
    assert planned(intent, TWO, jobs=(job("theirs", status=JobStatus.CONCLUDED),)).steps


@each("command", ["snapshot-save", "snapshot-load", "snapshot-delete"])
def test_checkpoint_by_jobs_needs_a_qemu_that_has_them(command: str) -> None:
    intents: dict[str, Intent] = {
        "snapshot-save": replace(SAVE, via="jobs"),
        "snapshot-load": replace(LOAD, via="jobs"),
        "snapshot-delete": replace(DELETE, via="jobs"),
    }
    with pytest.raises(Unsupported, match=command):
        planned(intents[command], TWO, commands=COMMANDS - {command})


@each("intent", [SAVE, LOAD, DELETE, Delete("disks")])
@each(
    ("status", "migration", "error", "hint"),
    [
        ("postmigrate", "completed", Unsupported, "resume it first: qmpsnap cont --after-migration resumes"),
        (
            "inmigrate",
            "none",
            Unsupported,
            "load it: qmpsnap restore FILE, or qmpsnap revert NAME --into-incoming",
        ),
        ("running", "active", Busy, "wait until it ends"),
    ],
)
def test_checkpoint_refuses_while_qemu_has_given_its_images_up(
    intent: Intent, status: str, migration: str, error: type[Refused], hint: str
) -> None:
    drawn = graph(holding("vda", STATE, InternalSnapshot("2", "disks")))
    with pytest.raises(error) as caught:
        planned(intent, drawn, machine=a_machine(drawn, status=status, migration=migration))
    assert hint in caught.value.hint


def test_checkpoint_is_not_named_by_a_number() -> None:
    with pytest.raises(BadName, match="the id of an internal snapshot") as caught:
        planned(Checkpoint("3", "internal"), TWO)
    assert "s3" in caught.value.hint


def test_revert_refuses_a_name_that_is_the_id_of_another() -> None:
    others = graph(holding("vda", structs.replace(STATE, id="7", name="2"), InternalSnapshot("2", "other")))
    with pytest.raises(AmbiguousName, match="'2' is the id of snapshot 'other'"):
        planned(Revert("2"), others, files=unseen(others))
    same = graph(holding("vda", structs.replace(STATE, id="2", name="2")))
    assert planned(Revert("2"), same, files=unseen(same)).steps


def test_revert_refuses_a_machine_that_needs_a_reset() -> None:
    off = a_machine(TWO, running=False, status="internal-error")
    with pytest.raises(Unsupported, match="only after a reset"):
        planned(LOAD, TWO, machine=off)


def test_checkpoint_says_the_way_out_for_uefi_variables() -> None:
    with pytest.raises(Unsupported) as caught:
        planned(SAVE, FLASH)
    assert caught.value.hint == (
        "give QEMU the UEFI variables as a qcow2 image, or read-only, or leave it out: --leave pflash1"
    )


def test_checkpoint_leaves_nodes_that_back_others_alone() -> None:
    nodes = (Node("f", "file", "/images/s1.qcow2"), Node("t", "throttle", "/images/s1.qcow2"))
    assert planned(SAVE, graph(*TWO.disks.values(), nodes=nodes)).steps
