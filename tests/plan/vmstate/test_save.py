from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    Busy,
    InvalidTarget,
    MachineDiffers,
    NotFound,
    Refused,
    TargetExists,
    Unsupported,
)
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.memory import LayerState, MemoryFact, MemoryNote
from qmpsnap.plan.commands.files import seal_memory
from qmpsnap.plan.commands.records import write_record
from qmpsnap.plan.commands.state import stop
from qmpsnap.plan.intent import Restore, Save
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.scenes import STATE, job, planned, unseen, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.step import Step

TWO = graph(vda="base <- s1*", vdb="data.raw*")
LAYERS = (
    ("vda", "/images/s1.qcow2"),
    ("vda", "/images/base.qcow2"),
    ("vdb", "/images/data.raw"),
)
SAVE, RESTORE = Save("/images/m"), Restore("/images/m")
WAITING: dict[str, Any] = {"status": "inmigrate", "running": False}


def kinds(*steps: Step) -> list[str]:
    return [step.command for step in steps]


def test_save_writes_the_memory_of_a_guest_that_is_paused_from_then_on() -> None:
    plan = planned(SAVE, TWO)
    assert kinds(*plan.steps) == [
        *(
            "write-record",
            "create-memory",
            "await-migration",
            "migrate-set-capabilities",
            "migrate-set-parameters",
            "add-fd",
        ),
        *("stop", "migrate", "remove-fd", "await-migration", "await-closed", "seal-memory"),
        *("migrate-set-parameters", "migrate-set-capabilities", "finish-record"),
    ]
    assert not [step for step in plan.steps if step.command == "cont"]
    assert (plan.after, plan.moves) == (TWO, ())
    assert "the guest stays paused" in plan.notes[0]


def test_save_notes_every_layer_as_it_is_once_the_guest_is_paused() -> None:
    plan = planned(SAVE, TWO)
    assert plan.record is not None
    (seal,) = [step for step in plan.steps if step.command == "seal-memory"]
    fingerprint = a_machine(TWO).fingerprint
    record = plan.record
    partial = f"/images/m.{record.id[-8:]}.partial"
    assert seal == seal_memory(
        partial, "/images/m", id=record.id, name="", running=True, fingerprint=fingerprint, layers=LAYERS
    )
    assert record.state == KeptState("stop", "/images/m", "", True, fingerprint, record.id[-8:])
    assert record.made == (partial,)


def test_save_says_what_restores_it_so_that_it_can_be_typed() -> None:
    (note,) = planned(Save("/my images/m 1"), TWO).notes
    assert note.endswith("-S -incoming defer, then: qmpsnap restore '/my images/m 1'")


def test_save_of_a_paused_guest_says_that_it_was_paused() -> None:
    plan = planned(SAVE, TWO, machine=a_machine(TWO, running=False))
    assert [step for step in plan.steps if step.command == "stop"] == [stop(ran=False)]
    assert [step.detail["running"] for step in plan.steps if step.command == "seal-memory"] == [False]


def test_save_goes_on_without_a_record_where_none_can_be_written() -> None:
    files = FakeFiles(TWO)
    files.directories["/images"] = DirFact("/images", exists=True, writable=False)
    plan = planned(Save("/fast/m"), TWO, files=files)
    assert not [step for step in plan.steps if step.command in {"write-record", "finish-record"}]
    (made,) = [step.arguments["file"] for step in plan.steps if step.command == "create-memory"]
    assert re.fullmatch(r"/fast/m\.[0-9a-f]{8}\.partial", made)


def taken(path: str) -> FakeFiles:
    files = FakeFiles(TWO)
    files.put(path, format="raw")
    return files


def device() -> FakeFiles:
    files = FakeFiles(TWO)
    files.facts["/images/data.raw"] = replace(files.facts["/images/data.raw"], kind="other")
    return files


REMOTE = graph(with_layer(chain("base*"), 0, file="nbd://host/x", local=False))
REFUSED: dict[str, tuple[Save, Graph, dict[str, Any], type[Refused], str]] = {
    "there": (SAVE, TWO, {"files": taken("/images/m")}, TargetExists, "/images/m exists"),
    "a layer": (Save("/images/s1.qcow2"), TWO, {}, TargetExists, "s1.qcow2 exists"),
    "unseen": (SAVE, TWO, {"files": unseen(TWO)}, Unsupported, "not visible"),
    "job": (SAVE, TWO, {"jobs": (job("theirs"),)}, Busy, "'theirs'"),
    "again": (SAVE, TWO, {"machine": a_machine(TWO, status="postmigrate")}, Unsupported, "postmigrate"),
    "tcp": (SAVE, TWO, {"machine": a_machine(TWO, passes_files=False)}, Unsupported, "unix socket"),
    "no disk": (SAVE, graph(Disk("cd0")), {}, NotFound, "no disk with a medium"),
    "remote": (SAVE, REMOTE, {}, Unsupported, "is not a regular file"),
    "device": (SAVE, TWO, {"files": device()}, Unsupported, "data.raw of vdb is not a regular file"),
}


@each("case", REFUSED)
def test_save_refuses_what_cannot_be(case: str) -> None:
    intent, drawn, around, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(intent, drawn, **around)
    assert type(caught.value) is error


def test_save_refused_says_what_can_be_done_about_it() -> None:
    files = FakeFiles(TWO)
    files.directories["/images"] = DirFact("/images", exists=True, writable=True, free_bytes=1 << 20)
    with pytest.raises(InvalidTarget) as caught:
        planned(SAVE, TWO, files=files)
    assert caught.value.hint == "free some space there, or choose another file: save FILE"
    with pytest.raises(Unsupported) as over_tcp:
        planned(SAVE, TWO, machine=a_machine(TWO, passes_files=False))
    assert over_tcp.value.hint == "connect to a unix socket (-s PATH)"


def saved(**changes: object) -> FakeFiles:
    """Files of a machine whose state was saved."""
    files = FakeFiles(TWO)
    files.put("/images/m", format="raw", size_bytes=4096)
    layers = tuple(
        LayerState(disk, file, files.facts[file].inode, files.facts[file].size, files.facts[file].modified_ns)
        for disk, file in LAYERS
    )
    note = MemoryNote("id", "", 4096, True, a_machine(TWO).fingerprint, layers)
    files.memories["/images/m"] = MemoryFact("/images/m", 4096, replace(note, **changes))
    return files


def test_restore_loads_the_state_into_a_machine_that_waits_for_it() -> None:
    plan = planned(RESTORE, TWO, files=saved(), machine=a_machine(TWO, **WAITING))
    assert kinds(*plan.steps) == [
        *("migrate-set-capabilities", "add-fd", "migrate-incoming", "await-migration", "cont"),
        *("remove-fd", "migrate-set-capabilities"),
    ]
    assert (plan.op, plan.disks, plan.after) == ("restore", ("vda", "vdb"), TWO)


def test_restore_leaves_a_guest_paused_that_was_paused() -> None:
    machine = a_machine(TWO, **WAITING)
    plan = planned(RESTORE, TWO, files=saved(running=False), machine=machine)
    assert not [step for step in plan.steps if step.command == "cont"]


def changed(file: str, **changes: object) -> FakeFiles:
    files = saved()
    files.facts[file] = replace(files.facts[file], **changes)
    return files


def gone(file: str) -> FakeFiles:
    files = saved()
    del files.facts[file]
    return files


def cut() -> FakeFiles:
    files = saved()
    files.memories["/images/m"] = MemoryFact("/images/m", 7, problem="it was cut")
    return files


BASE = "/images/base.qcow2"
RESTORE_REFUSED: dict[str, tuple[Graph, FakeFiles, dict[str, object], type[Refused], str]] = {
    "missing": (
        TWO,
        FakeFiles(TWO),
        {},
        InvalidTarget,
        "^/images/m does not exist\nnothing was changed\nnext: name the file that save has written$",
    ),
    "cut": (TWO, cut(), {}, InvalidTarget, "it was cut"),
    "a checkpoint's": (TWO, saved(name="c1"), {}, InvalidTarget, "belongs to checkpoint 'c1'"),
    "running": (TWO, saved(), {"status": "running"}, Unsupported, "not waiting"),
    "tcp": (TWO, saved(), {"passes_files": False}, Unsupported, "unix socket"),
    "other machine": (
        TWO,
        saved(fingerprint=replace(a_machine(TWO).fingerprint, machine="isapc")),
        {},
        MachineDiffers,
        "not isapc",
    ),
    "other inode": (
        TWO,
        changed(BASE, inode=7),
        {},
        MachineDiffers,
        "base.qcow2 of vda has been written to since",
    ),
    "longer": (TWO, changed(BASE, size=7), {}, MachineDiffers, "has been written to since"),
    "later": (TWO, changed(BASE, modified_ns=7), {}, MachineDiffers, "has been written to since"),
    "gone": (TWO, gone(BASE), {}, MachineDiffers, "base.qcow2 of vda is gone, or not in use"),
    "another chain": (
        graph(vda="base <- s1 <- s2*", vdb="data.raw*"),
        saved(),
        {},
        MachineDiffers,
        "vda reads /images/s2.qcow2, not /images/s1.qcow2",
    ),
}


@each("case", RESTORE_REFUSED)
def test_restore_refuses_what_cannot_be(case: str) -> None:
    drawn, files, changes, error, text = RESTORE_REFUSED[case]
    machine = a_machine(TWO, **{**WAITING, **changes})
    with pytest.raises(Refused, match=text) as caught:
        planned(RESTORE, drawn, files=files, machine=machine)
    assert type(caught.value) is error


def test_restore_refuses_what_it_cannot_look_at() -> None:
    with pytest.raises(Unsupported, match="not visible"):
        planned(RESTORE, TWO, files=unseen(TWO), machine=a_machine(TWO, **WAITING))


def test_save_writes_its_record_beside_the_base_image() -> None:
    plan = planned(SAVE, TWO)
    assert plan.record is not None
    assert plan.steps[0] == write_record(STATE, plan.record)


def test_save_and_restore_look_at_an_external_data_file() -> None:
    drawn = graph(with_layer(chain("a*"), 0, data_file="/images/a.data"))
    files = FakeFiles(drawn)
    files.put("/images/a.data", format="raw")
    (seal,) = [step for step in planned(SAVE, drawn, files=files).steps if step.command == "seal-memory"]
    assert seal.detail["layers"] == (("vda", "/images/a.qcow2"), ("vda", "/images/a.data"))
    layers = tuple(
        LayerState(disk, file, 0, files.facts[file].size, 10**9) for disk, file in seal.detail["layers"]
    )
    note = MemoryNote("i", "", 4096, True, a_machine(drawn).fingerprint, layers)
    files.memories["/images/m"] = MemoryFact("/images/m", 4096, note)
    assert planned(RESTORE, drawn, files=files, machine=a_machine(drawn, **WAITING)).steps
    files.touch("/images/a.data")
    with pytest.raises(MachineDiffers, match=r"layer /images/a\.data of vda has been written to since"):
        planned(RESTORE, drawn, files=files, machine=a_machine(drawn, **WAITING))


def test_save_refuses_an_external_data_file_that_is_no_file() -> None:
    drawn = graph(with_layer(chain("a*"), 0, data_file="nbd://host/a"))
    with pytest.raises(Unsupported, match="the layer nbd://host/a of vda is not a regular file"):
        planned(SAVE, drawn)
