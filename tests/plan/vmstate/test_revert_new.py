from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    Busy,
    InvalidTarget,
    MachineDiffers,
    NotInChain,
    Refused,
    Unsupported,
)
from qmpsnap.model.graph import Graph, InternalSnapshot
from qmpsnap.model.memory import LayerState, MemoryFact
from qmpsnap.plan.commands.migration import migrate_incoming, pass_file
from qmpsnap.plan.intent import Revert
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.moments import BASE, MEMORY, STORE, TWO, files_of, kept, kinds, written_to
from tests.plan.scenes import job, planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.testing.fake_files import FakeFiles


@each("mode", ["", "stop", "background", "in-place"])
def test_prepare_makes_overlays_and_leaves_the_machine_alone(mode: str) -> None:
    plan = planned(Revert("c1", into="new"), TWO, files=files_of(mode))
    assert kinds(*plan.steps) == [
        *("write-record", "create-overlay", "create-overlay", "keep-branch", "finish-record"),
    ]
    assert (plan.after, plan.moves) == (TWO, ())
    made = [step.arguments["file"] for step in plan.steps if step.command == "create-overlay"]
    assert list(plan.prepared.values()) == made


def test_prepare_names_the_memory_that_a_new_qemu_is_to_load() -> None:
    plans = {
        mode: planned(Revert("c1", into="new"), TWO, files=files_of(mode))
        for mode in ("", "stop", "in-place")
    }
    assert {mode: plan.memory for mode, plan in plans.items()} == {"": "", "stop": MEMORY, "in-place": ""}
    (note,) = plans["in-place"].notes
    assert note == (
        f"its memory is in the store {STORE}: start the same machine with -S, without -incoming; "
        "qmpsnap revert c1 --into-incoming then loads it"
    )


def test_prepare_refuses_a_store_that_is_missing() -> None:
    files = files_of("in-place")
    files.facts.pop(STORE)
    with pytest.raises(InvalidTarget, match="the VM state of 'c1' is gone or broken"):
        planned(Revert("c1", into="new"), TWO, files=files)


def test_prepare_refuses_a_memory_file_that_is_not_whole() -> None:
    files = files_of("stop")
    files.memories[MEMORY] = MemoryFact(MEMORY, 7, problem="it was cut")
    with pytest.raises(InvalidTarget, match="not a complete memory file of qmpsnap: it was cut"):
        planned(Revert("c1", into="new"), TWO, files=files)


def test_prepare_refuses_while_a_job_is_under_way() -> None:
    with pytest.raises(Busy, match="'theirs'"):
        planned(Revert("c1", into="new"), TWO, files=files_of("stop"), jobs=(job("theirs", "commit"),))


def test_prepare_makes_the_overlay_as_large_as_the_disk_was() -> None:
    grown = graph(with_layer(TWO.disks["vda"], 0, virtual_size=128 * MIB), TWO.disks["vdb"])
    plan = planned(Revert("c1", into="new"), grown, files=files_of("stop", grown))
    made = [step for step in plan.steps if step.command == "create-overlay"]
    assert [step.arguments["size_bytes"] for step in made] == [64 * MIB, 64 * MIB]


def test_prepare_refuses_a_moment_inside_the_images() -> None:
    inside = graph(with_layer(chain("base <- s1*"), 0, snapshots=(InternalSnapshot("1", "in", 4096),)))
    with pytest.raises(Unsupported, match="inside the images"):
        planned(Revert("in", into="new"), inside)


WAITING: dict[str, Any] = {"status": "inmigrate", "running": False}
READY = graph(vda="base <- s1 <- r1*", vdb="data.raw <- r2*")
INCOMING = Revert("c1", into="incoming")


def prepared(mode: str = "stop") -> FakeFiles:
    files = files_of(mode, READY)
    branch = {"vda": "/images/r1.qcow2", "vdb": "/images/r2.qcow2"}
    files.records[:] = [replace(kept(mode, READY), branches=(branch,))]
    return files


def test_incoming_passes_the_memory_loads_it_and_lets_the_guest_run() -> None:
    plan = planned(INCOMING, READY, files=prepared(), machine=a_machine(READY, **WAITING))
    load, tidy = plan.stages
    assert kinds(*load.steps) == [
        *("migrate-set-capabilities", "add-fd", "migrate-incoming", "await-migration", "cont"),
    ]
    assert kinds(*tidy.steps) == ["remove-fd", "migrate-set-capabilities"]
    passed = next(step for step in plan.steps if step.way == "pass-file")
    number = passed.arguments["fdset-id"]
    assert passed == pass_file(MEMORY, number, "fdset", write=False)
    assert migrate_incoming(f"file:/dev/fdset/{number}") in plan.steps
    assert plan.after == READY


def test_incoming_leaves_a_guest_paused_that_was_paused() -> None:
    files = prepared()
    (record,) = files.records
    state = kept("stop", READY).state
    assert state is not None
    files.records[:] = [replace(record, state=replace(state, running=False))]
    plan = planned(INCOMING, READY, files=files, machine=a_machine(READY, **WAITING))
    assert not [step for step in plan.steps if step.command == "cont"]


@each("running", [True, False])
def test_incoming_loads_a_store_into_a_qemu_that_is_paused_before_it_has_run(*, running: bool) -> None:
    files = prepared("in-place")
    (record,) = files.records
    state = kept("in-place", READY).state
    assert state is not None
    files.records[:] = [replace(record, state=replace(state, running=running))]
    plan = planned(INCOMING, READY, files=files, machine=a_machine(READY, status="prelaunch", running=False))
    assert kinds(*plan.steps) == [
        *("blockdev-add", "snapshot-load", "await-job", "job-dismiss"),
        *(["cont"] if running else []),
        "blockdev-del",
    ]
    assert plan.after == READY


def touched() -> FakeFiles:
    files = prepared()
    files.touch("/images/r2.qcow2")
    return files


def noted(**changes: object) -> FakeFiles:
    files = prepared()
    note = files.memories[MEMORY].note
    assert note is not None
    files.memories[MEMORY] = MemoryFact(MEMORY, 4096, replace(note, **changes))
    return files


def cut() -> FakeFiles:
    files = prepared()
    files.memories[MEMORY] = MemoryFact(MEMORY, 7, problem="it was cut")
    return files


BIGGER = replace(a_machine(READY).fingerprint, memory=7)
INCOMING_REFUSED: dict[str, tuple[Graph, FakeFiles, dict[str, object], type[Refused], str]] = {
    "running": (READY, prepared(), {"status": "running"}, Unsupported, "not waiting for VM state"),
    "tcp": (READY, prepared(), {"passes_files": False}, Unsupported, "unix socket"),
    "no memory": (READY, prepared(""), {}, Unsupported, "no memory that a new QEMU could load"),
    "a store in a QEMU that waits": (READY, prepared("in-place"), {}, Unsupported, "in the state inmigrate"),
    "a store in one that has run": (
        READY,
        prepared("in-place"),
        {"status": "paused"},
        Unsupported,
        "in the state paused, and the memory of 'c1' is in a store",
    ),
    "a store in another machine": (
        READY,
        prepared("in-place"),
        {"status": "prelaunch", "fingerprint": BIGGER},
        MachineDiffers,
        "bytes of memory",
    ),
    "cut": (READY, cut(), {}, InvalidTarget, "it was cut"),
    "of another": (READY, noted(id="other", name="c9"), {}, InvalidTarget, "memory of 'c9', not of 'c1'"),
    "other machine": (READY, noted(fingerprint=BIGGER), {}, MachineDiffers, "268435456 bytes of memory"),
    "written": (READY, touched(), {}, MachineDiffers, "r2.qcow2 already has data"),
    "not prepared": (
        graph(READY.disks["vda"], chain("data.raw <- o2 <- x*", name="vdb")),
        prepared(),
        {},
        NotInChain,
        "and not an overlay on /images/data.raw",
    ),
    "on the layer": (
        graph(READY.disks["vda"], chain("data.raw*", name="vdb")),
        prepared(),
        {},
        NotInChain,
        "vdb reads /images/data.raw, and not an overlay",
    ),
    "disk gone": (graph(READY.disks["vda"]), prepared(), {}, NotInChain, "vdb is not there"),
}


@each("case", INCOMING_REFUSED)
def test_incoming_refuses_what_cannot_be(case: str) -> None:
    drawn, files, changes, error, text = INCOMING_REFUSED[case]
    machine = a_machine(READY, **{**WAITING, **changes})
    with pytest.raises(Refused, match=text) as caught:
        planned(INCOMING, drawn, files=files, machine=machine)
    assert type(caught.value) is error


THEN = LayerState("vdb", "/images/data.raw", inode=0, size=64 * MIB, modified=10**9)
DIRECT = LayerState("vda", "/images/s1.qcow2", inode=0, size=196_616, modified=10**9)
BELOW = LayerState("vda", "/images/base.qcow2", inode=0, size=196_616, modified=10**9)


@each("changes", [{"size": 7}, {"modified": 7}])
def test_incoming_refuses_a_layer_that_was_written_since(changes: dict[str, Any]) -> None:
    files = noted(layers=(DIRECT, replace(BELOW, **changes), replace(THEN, **changes)))
    with pytest.raises(MachineDiffers, match="have changed since 'c1'") as caught:
        planned(INCOMING, READY, files=files, machine=a_machine(READY, **WAITING))
    assert caught.value.differences == (
        "/images/base.qcow2 of vda has been written to since",
        "/images/data.raw of vdb has been written to since",
    )


def test_incoming_loads_over_a_copy_of_the_layers() -> None:
    files = noted(layers=(replace(DIRECT, inode=7), BELOW, THEN))
    assert planned(INCOMING, READY, files=files, machine=a_machine(READY, **WAITING)).steps


@each("mode", ["stop", "in-place"])
def test_incoming_refuses_a_layer_that_others_have_written_to(mode: str) -> None:
    status = WAITING if mode == "stop" else {"status": "prelaunch", "running": False}
    machine = a_machine(READY, **status)
    planned(INCOMING, READY, files=written_to(prepared(mode)), machine=machine)
    with pytest.raises(MachineDiffers, match="the disks may no longer be those of 'c1'"):
        planned(INCOMING, READY, files=written_to(prepared(mode), BASE), machine=machine)


def test_incoming_does_not_compare_a_layer_that_stood_on_others() -> None:
    # A stream into s1 has written it, and took the layer between away.
    between = replace(BELOW, file="/images/mid.qcow2")
    files = noted(layers=(replace(DIRECT, modified=7), between, BELOW, THEN))
    assert planned(INCOMING, READY, files=files, machine=a_machine(READY, **WAITING)).steps
