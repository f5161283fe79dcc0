from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, MachineDiffers, Refused, Unsupported
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.memory import MemoryFact, MemoryNote
from qmpsnap.plan.intent import Load, SaveDevices
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import CAPABILITIES, a_machine
from tests.each import each
from tests.plan.scenes import planned

if TYPE_CHECKING:
    from qmpsnap.plan.plan import Plan

OVER = graph(vda="base <- over*")
FINGERPRINT = a_machine(OVER).fingerprint
DISKS = {"vda": "/images/over.qcow2"}
STREAM = KeptState("background", "/m/c1.memory", "", True, FINGERPRINT, "0123abcd")
STORE = KeptState("in-place", "/m/c1.store", "qmpsnap-0123abcd", True, FINGERPRINT, "0123abcd")
WAITING: dict[str, Any] = {"status": "inmigrate", "running": False}
FRESH: dict[str, Any] = {"status": "prelaunch", "running": False}
MAPPED = {**CAPABILITIES, "x-ignore-shared": False}


def commands(plan: Plan) -> list[str]:
    return [step.command for step in plan.steps]


def files(**changes: Any) -> FakeFiles:
    found = FakeFiles(OVER)
    found.put(STREAM.file, format="raw", size_bytes=4096)
    note = MemoryNote("qmpsnap-checkpoint-keep-0123abcd", "c1", 4096, True, FINGERPRINT, ())
    found.memories[STREAM.file] = replace(MemoryFact(STREAM.file, 4096, note), **changes)
    found.put(STORE.file, format="qcow2", size_bytes=1 << 20)
    fact = found.facts[STORE.file]
    assert fact.header is not None
    found.facts[STORE.file] = replace(fact, header=replace(fact.header, snapshot_count=1))
    inside = InternalSnapshot("1", STORE.tag, 4096, 0.0)
    found.memories[STORE.file] = MemoryFact(STORE.file, 1 << 20, tags=(STORE.tag,), inside=(inside,))
    return found


def test_load_reads_a_stream_and_leaves_the_guest_paused() -> None:
    plan = planned(Load("c1", STREAM, DISKS), OVER, files=files(), machine=a_machine(OVER, **WAITING))
    assert commands(plan) == [
        *("migrate-set-capabilities", "add-fd", "migrate-incoming", "await-migration"),
        *("remove-fd", "migrate-set-capabilities"),
    ]
    assert (plan.disks, plan.after, plan.record) == (("vda",), OVER, None)


def test_load_resumes_the_guest_where_that_is_wanted() -> None:
    intent = Load("c1", STREAM, DISKS, resume=True)
    plan = planned(intent, OVER, files=files(), machine=a_machine(OVER, **WAITING))
    assert commands(plan)[4] == "cont"


def test_load_takes_a_store_through_a_node_that_goes_again() -> None:
    plan = planned(Load("c1", STORE, DISKS), OVER, files=files(), machine=a_machine(OVER, **FRESH))
    assert commands(plan) == ["blockdev-add", "snapshot-load", "await-job", "job-dismiss", "blockdev-del"]


def test_load_leaves_out_memory_that_is_mapped() -> None:
    machine = a_machine(OVER, capabilities=MAPPED, **WAITING)
    plan = planned(Load("t", STREAM, DISKS, mapped=True), OVER, files=files(), machine=machine)
    set_, *_, reset = plan.steps
    assert [set_.arguments["capabilities"], reset.arguments["capabilities"]] == [
        [{"capability": name, "state": on} for name in ("events", "x-ignore-shared")] for on in (True, False)
    ]


def test_load_reads_a_stream_through_a_fifo_while_its_file_is_still_written() -> None:
    found = FakeFiles(OVER)  # which has no such file
    intent = Load("c1", STREAM, DISKS, fifo="/t/stream", unfinished=True)
    plan = planned(intent, OVER, files=found, machine=a_machine(OVER, **WAITING))
    assert commands(plan) == [
        *("migrate-set-capabilities", "getfd", "migrate-incoming", "await-migration"),
        "migrate-set-capabilities",
    ]
    _, passed, incoming, *_ = plan.steps
    assert (passed.detail["file"], passed.detail["fifo"], passed.detail["write"]) == (
        "/t/stream",
        True,
        False,
    )
    assert incoming.arguments == {"uri": f"fd:{passed.arguments['fdname']}"}


def test_load_reads_a_complete_stream_through_a_fifo_as_well() -> None:
    """The FIFO is another file, with an inode of its own."""
    intent = Load("c1", STREAM, DISKS, fifo="/t/stream")
    plan = planned(intent, OVER, files=files(inode=7), machine=a_machine(OVER, **WAITING))
    passed = plan.steps[1]
    assert (passed.detail["file"], passed.detail["fifo"], passed.detail["inode"]) == ("/t/stream", True, 0)


OTHER = replace(FINGERPRINT, memory=1 << 20)
REFUSED: dict[str, tuple[Load, FakeFiles, dict[str, Any], type[Refused], str]] = {
    "another machine": (
        Load("c1", replace(STREAM, fingerprint=OTHER), DISKS),
        files(),
        WAITING,
        MachineDiffers,
        "'c1' belongs to another machine: it has 268435456 bytes of memory, not 1048576",
    ),
    "another image": (
        Load("c1", STREAM, {"vda": "/tmp/other.qcow2"}),
        files(),
        WAITING,
        MachineDiffers,
        "its disk vda reads /images/over.qcow2, not /tmp/other.qcow2",
    ),
    "it does not see our files": (
        Load("c1", STREAM, DISKS),
        FakeFiles(OVER, shared=False),
        WAITING,
        Unsupported,
        "QEMU's files are not visible from here",
    ),
    "no such disk": (
        Load("c1", STREAM, {**DISKS, "vdb": "/tmp/b.qcow2"}),
        files(),
        WAITING,
        MachineDiffers,
        "its disk vdb reads nothing, not /tmp/b.qcow2",
    ),
    "it is another machine than that whose memory is still written": (
        Load("c1", replace(STREAM, fingerprint=OTHER), DISKS, fifo="/t/stream", unfinished=True),
        files(),
        WAITING,
        MachineDiffers,
        "'c1' belongs to another machine: it has 268435456 bytes of memory, not 1048576",
    ),
    "it has run": (Load("c1", STREAM, DISKS), files(), {}, Unsupported, "not waiting for VM state"),
    "it runs": (Load("c1", STORE, DISKS), files(), {}, Unsupported, "state running, not paused"),
    "another's stream": (
        Load("c1", replace(STREAM, token="99999999"), DISKS),
        files(),
        WAITING,
        InvalidTarget,
        "c1.memory is not the VM state of 'c1'",
    ),
    "another's stream, through a FIFO": (
        Load("c1", replace(STREAM, token="99999999"), DISKS, fifo="/t/stream"),
        files(),
        WAITING,
        InvalidTarget,
        "c1.memory is not the VM state of 'c1'",
    ),
    "cut": (
        Load("c1", STREAM, DISKS),
        files(note=None, problem="it was cut"),
        WAITING,
        InvalidTarget,
        "it was cut",
    ),
    "another's store": (
        Load("c1", replace(STORE, tag="qmpsnap-99999999"), DISKS),
        files(),
        FRESH,
        InvalidTarget,
        "has no VM state 'qmpsnap-99999999'",
    ),
    "writable by others": (
        Load("c1", STREAM, DISKS),
        files(mode=0o622),
        WAITING,
        InvalidTarget,
        "is not loaded: others may write to it",
    ),
}


@each("case", REFUSED)
def test_load_refuses_what_cannot_be(case: str) -> None:
    intent, found, state, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(intent, OVER, files=found, machine=a_machine(OVER, **state))
    assert type(caught.value) is error


def test_save_devices_writes_a_paused_machine_without_its_memory() -> None:
    machine = a_machine(OVER, running=False, capabilities=MAPPED)
    plan = planned(SaveDevices("t", "/m/state"), OVER, machine=machine)
    assert commands(plan) == [
        *("create-memory", "migrate-set-capabilities", "migrate-set-parameters", "add-fd"),
        *("migrate", "remove-fd", "await-migration", "await-closed", "seal-memory"),
        *("migrate-set-parameters", "migrate-set-capabilities"),
    ]
    assert {"capability": "x-ignore-shared", "state": True} in plan.steps[1].arguments["capabilities"]
    assert plan.record is None


@each("status", ["running", "inmigrate"])
def test_save_devices_refuses_a_machine_that_is_not_paused(status: str) -> None:
    machine = a_machine(OVER, running=status == "running", status=status, capabilities=MAPPED)
    with pytest.raises(Unsupported, match=f"state {status}, not paused"):
        planned(SaveDevices("t", "/m/state"), OVER, machine=machine)


def test_save_devices_refuses_a_qemu_that_cannot_leave_memory_out() -> None:
    with pytest.raises(Unsupported, match="cannot leave mapped memory out"):
        planned(SaveDevices("t", "/m/state"), OVER, machine=a_machine(OVER, running=False))
