from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, InvalidTarget, NotFound, Refused, TargetExists, Unsupported
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Disk, InternalSnapshot
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.record import Member, MomentRecord, Origin
from qmpsnap.plan.commands.block import open_store
from qmpsnap.plan.commands.files import create_store, reserve_memory
from qmpsnap.plan.commands.state import stop
from qmpsnap.plan.intent import Checkpoint, FileMode
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS, a_machine
from tests.each import each
from tests.plan.scenes import NOW, STATE, encrypted, job, overlays_of, planned, unseen, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.plan import Plan

TWO = graph(vda="base <- s1*", vdb="data.raw*")
OLD = MappingProxyType({"events": False, "background-snapshot": False})
MODES: list[FileMode] = ["stop", "background", "in-place"]


def kinds(plan: Plan) -> list[str]:
    return [step.command for step in plan.steps]


def test_checkpoint_stopped_writes_the_memory_before_the_overlays() -> None:
    plan = planned(Checkpoint("c1"), TWO)
    assert [stage.title for stage in plan.stages if stage.verify] == ["take the checkpoint"]
    assert kinds(plan) == [
        *("write-record", "create-overlay", "create-overlay", "create-memory"),
        *("await-migration", "migrate-set-capabilities", "migrate-set-parameters", "add-fd"),
        *("human-monitor-command", "human-monitor-command"),
        *("stop", "migrate", "remove-fd", "await-migration", "transaction", "cont"),
        *("await-closed", "seal-memory", "migrate-set-parameters", "migrate-set-capabilities", "keep-moment"),
    ]


@each("mode", MODES)
def test_checkpoint_that_may_be_plain_encrypts_its_overlays_nevertheless(mode: FileMode) -> None:
    of, files = encrypted("base*")
    plan = planned(Checkpoint("c1", mode, plain=True), of, files=files)
    (take,) = (step for step in plan.steps if step.command == "transaction")
    assert [overlay.secret for overlay in overlays_of(take)] == ["sec0"]


def test_checkpoint_in_the_background_lets_the_guest_run_once_pages_are_written() -> None:
    plan = planned(Checkpoint("c1", "background"), TWO)
    assert kinds(plan)[10:18] == [
        *("stop", "transaction", "migrate", "await-migration", "cont", "remove-fd"),
        *("await-migration", "await-closed"),
    ]
    waits = [step.arguments["until"] for step in plan.steps if step.command == "await-migration"]
    assert waits == ["settled", "writing", "kept"]


@each("mode", MODES)
def test_checkpoint_flushes_each_disk_that_gets_an_overlay_right_before_the_pause(mode: FileMode) -> None:
    plan = planned(Checkpoint("c1", mode), TWO)
    paused = kinds(plan).index("stop")
    assert [dict(step.arguments) for step in plan.steps[paused - 2 : paused]] == [
        {"command-line": "qemu-io vda-s1 flush"},
        {"command-line": "qemu-io vdb-data.raw flush"},
    ]


@each(("running", "commands"), [(False, COMMANDS), (True, COMMANDS - {"human-monitor-command"})])
def test_checkpoint_flushes_nothing_where_there_is_no_pause_or_no_way(
    commands: frozenset[str], *, running: bool
) -> None:
    machine = a_machine(TWO, running=running)
    for mode in MODES:
        plan = planned(Checkpoint("c1", mode), TWO, machine=machine, commands=commands)
        assert "human-monitor-command" not in kinds(plan)


@each(
    ("running", "command", "note"),
    [
        (
            True,
            "create-memory",
            "then a helper QEMU writes its memory into a store, from which this QEMU can revert",
        ),
        (False, "create-store", "the guest is paused, so its memory is saved as with --mode in-place"),
    ],
)
def test_checkpoint_with_a_store_needs_no_helper_where_the_guest_is_paused(
    command: str, note: str, *, running: bool
) -> None:
    machine = a_machine(TWO, running=running)
    plan = planned(Checkpoint("c1", "background", store=True), TWO, machine=machine)
    assert command in kinds(plan)
    assert note in plan.notes


def test_checkpoint_in_place_opens_its_store_for_the_save_alone() -> None:
    plan = planned(Checkpoint("c1", "in-place"), TWO)
    assert kinds(plan) == [
        *("write-record", "create-overlay", "create-overlay", "create-store", "blockdev-add"),
        *("human-monitor-command", "human-monitor-command"),
        *("stop", "snapshot-save", "await-job", "job-dismiss", "transaction", "cont"),
        *("blockdev-del", "seal-store", "keep-moment"),
    ]
    store = next(step for step in plan.steps if step.command == "blockdev-add")
    assert plan.record is not None
    file = f"/images/base.c1.vmstate.qcow2.{plan.record.id[-8:]}.partial"
    assert store == open_store(store.arguments["node-name"], file)
    assert create_store(file, "/images/s1.qcow2") in plan.steps


@each("mode", MODES)
def test_checkpoint_puts_overlays_on_every_writable_disk_at_one_instant(mode: FileMode) -> None:
    plan = planned(Checkpoint("c1", mode), TWO)
    (take,) = [step for step in plan.steps if step.command == "transaction"]
    assert [one.disk for one in overlays_of(take)] == ["vda", "vdb"]
    assert plan.moves == ("vda", "vdb")
    assert plan.chains_after == {
        "vda": ("/images/base.c1.qcow2", "/images/s1.qcow2", "/images/base.qcow2"),
        "vdb": ("/images/data.c1.qcow2", "/images/data.raw"),
    }


@each("mode", MODES)
def test_checkpoint_writes_down_what_whoever_comes_later_has_to_know(mode: FileMode) -> None:
    machine = a_machine(TWO, process="1-2")
    plan = planned(Checkpoint("c1", mode), TWO, machine=machine)
    assert plan.record is not None
    record = plan.record
    ending = "vmstate.qcow2" if mode == "in-place" else "memory"
    tag = f"qmpsnap-{record.id[-8:]}" if mode == "in-place" else ""
    file = f"/images/base.c1.{ending}"
    assert record.state == KeptState(mode, file, tag, True, machine.fingerprint, record.id[-8:])
    assert record.made[-1] == f"{file}.{record.id[-8:]}.partial"
    assert record.origin == Origin(running=True, process="1-2")
    parameters = [step.arguments for step in record.steps if step.command == "migrate-set-parameters"]
    assert parameters[1:] == ([] if mode == "in-place" else [{"max-bandwidth": 134_217_728}])


@each("mode", MODES)
def test_checkpoint_goes_where_the_caller_says(mode: FileMode) -> None:
    plan = planned(Checkpoint("c1", mode, "/fast/m"), TWO)
    made = [
        step.arguments["file"] for step in plan.steps if step.command in {"create-memory", "create-store"}
    ]
    sealed = [step.arguments["file"] for step in plan.steps if step.command in {"seal-memory", "seal-store"}]
    assert plan.record is not None
    token = plan.record.id[-8:]
    assert (made, sealed) == ([f"/fast/m.{token}.partial"], ["/fast/m"])


@each("mode", MODES)
def test_checkpoint_of_a_paused_guest_lets_nothing_run(mode: FileMode) -> None:
    plan = planned(Checkpoint("c1", mode), TWO, machine=a_machine(TWO, running=False))
    assert [step for step in plan.steps if step.command in {"stop", "cont"}] == [stop(ran=False)]
    assert plan.run_state == "paused"


def test_checkpoint_of_a_paused_guest_in_the_background_is_one_that_is_stopped_and_says_so() -> None:
    machine = a_machine(TWO, running=False)
    plan = planned(Checkpoint("c1", "background"), TWO, machine=machine)
    stopped = planned(Checkpoint("c1"), TWO, machine=machine)
    assert plan.steps[1:] == stopped.steps[1:]
    assert plan.record is not None
    assert stopped.record == replace(plan.record, notes=stopped.notes)
    assert plan.notes[0] == "the guest is paused, so its memory is saved as with --mode stop"
    assert "postmigrate" in plan.notes[1]
    assert "postmigrate" in stopped.notes[0]


def test_checkpoint_in_place_can_be_taken_where_no_file_can_be_passed() -> None:
    machine = a_machine(TWO, passes_files=False, status="postmigrate", running=False)
    assert planned(Checkpoint("c1", "in-place"), TWO, machine=machine).steps


def test_checkpoint_reserves_room_where_a_failure_would_hang_the_guest() -> None:
    machine = a_machine(TWO, capabilities=OLD)
    plan = planned(Checkpoint("c1", "background"), TWO, machine=machine)
    assert kinds(plan)[3:6] == ["create-memory", "reserve-memory", "await-migration"]
    first, second = (step for step in plan.steps if step.command == "reserve-memory")
    assert first == second  # by then the guest may have used more
    assert kinds(plan)[kinds(plan).index("stop") :][1:4] == ["reserve-memory", "transaction", "migrate"]
    assert first.makes == ""
    (made,) = (step.makes for step in plan.steps if step.command == "create-memory")
    assert first == reserve_memory(made, at_most_bytes=(256 + 160) << 20, process="")


@each(
    ("intent", "trims"),
    [
        (Checkpoint("c1", "background"), True),
        (Checkpoint("c1", "background", "/images/m"), True),
        (Checkpoint("c1", "background", fork=True), True),
        (Checkpoint("c1", "background", "/images/m", fork=True), False),
    ],
)
def test_checkpoint_gives_back_what_it_reserved_unless_a_fork_removes_the_file_soon(
    intent: Checkpoint, *, trims: bool
) -> None:
    (seal,) = (step for step in planned(intent, TWO).steps if step.command == "seal-memory")
    assert seal.detail["trims"] is trims


def files_with(*taken: str, **directories: DirFact) -> FakeFiles:
    files = FakeFiles(TWO)
    for file in taken:
        files.put(file, format="raw")
    files.directories |= {one.path: one for one in directories.values()}
    return files


FULL = DirFact("/images", exists=True, writable=True, free_bytes=16 << 20)
LOCKED = DirFact("/images", exists=True, writable=False, problem="permission denied")
EMPTY = graph(Disk("cd0"))
INSIDE = graph(with_layer(chain("base <- s1*"), 0, snapshots=(InternalSnapshot("1", "c1"),)))
REMOTE = graph(with_layer(chain("base*"), 0, file="nbd://host/x", local=False))
REFUSED: dict[str, tuple[Checkpoint, dict[str, Any], type[Refused], str]] = {
    "job": (Checkpoint("c1"), {"jobs": (job("theirs"),)}, Busy, "'theirs'"),
    "name inside": (
        Checkpoint("c1"),
        {"graph": INSIDE},
        TargetExists,
        "there already is an .* snapshot 'c1'",
    ),
    "overlay there": (
        Checkpoint("c1"),
        {"files": files_with("/images/base.c1.qcow2")},
        TargetExists,
        "base.c1.qcow2 exists",
    ),
    "memory there": (
        Checkpoint("c1"),
        {"files": files_with("/images/base.c1.memory")},
        TargetExists,
        "base.c1.memory exists",
    ),
    "store there": (
        Checkpoint("c1", "in-place"),
        {"files": files_with("/images/base.c1.vmstate.qcow2")},
        TargetExists,
        "vmstate.qcow2 exists",
    ),
    "no room": (Checkpoint("c1"), {"files": files_with(at=FULL)}, InvalidTarget, "bytes free"),
    "no records": (
        Checkpoint("c1"),
        {"files": files_with(at=LOCKED)},
        InvalidTarget,
        "cannot be written",
    ),
    "overlay's name": (
        Checkpoint("c1", memory="/images/data.c1.qcow2"),
        {},
        InvalidTarget,
        "the overlay",
    ),
    "no disk": (Checkpoint("c1"), {"graph": EMPTY}, NotFound, "no writable disk"),
    "remote": (Checkpoint("c1"), {"graph": REMOTE}, InvalidTarget, "nothing can be created beside it"),
    "unseen": (Checkpoint("c1"), {"files": unseen(TWO), "state_dir": "/r"}, Unsupported, "not visible"),
    "waiting": (
        Checkpoint("c1"),
        {"machine": a_machine(TWO, status="inmigrate", running=False)},
        Unsupported,
        "inmigrate",
    ),
    "migrating": (Checkpoint("c1"), {"machine": a_machine(TWO, migration="active")}, Busy, "active"),
    "tcp": (Checkpoint("c1"), {"machine": a_machine(TWO, passes_files=False)}, Unsupported, "unix socket"),
    "no background": (
        Checkpoint("c1", "background"),
        {"machine": a_machine(TWO, capabilities={"events": False})},
        Unsupported,
        "while the guest runs",
    ),
}


@each("case", REFUSED)
def test_checkpoint_refuses_what_cannot_be(case: str) -> None:
    intent, around, error, text = REFUSED[case]
    drawn: Graph = around.get("graph", TWO)
    more = {key: value for key, value in around.items() if key != "graph"}
    with pytest.raises(Refused, match=text) as caught:
        planned(intent, drawn, **more)
    assert type(caught.value) is error


TCP = a_machine(TWO, passes_files=False)
NO_ROOM = replace(FULL, free_bytes=4096)
DEVICE = graph(with_layer(chain("base*"), 0, file="/dev/vg/x"))


@each(
    ("drawn", "around", "hint"),
    [
        (TWO, {"files": files_with("/images/base.c1.qcow2")}, "choose another name"),
        (TWO, {"files": files_with(at=NO_ROOM)}, "free some space there"),
        (TWO, {"files": files_with(at=FULL)}, "--memory FILE"),
        (DEVICE, {}, "qmpsnap snapshot --disk vda=FILE"),
        (TWO, {"machine": TCP}, "connect to a unix socket (-s PATH), or use --mode in-place"),
        (TWO, {"machine": TCP, "files": unseen(TWO)}, "--shared-fs yes allows --mode in-place"),
    ],
)
def test_checkpoint_refused_says_what_can_be_done_about_it(
    drawn: Graph, around: dict[str, Any], hint: str
) -> None:
    with pytest.raises(Refused) as caught:
        planned(Checkpoint("c1"), drawn, **around)
    assert caught.value.hint.endswith(hint)


def test_checkpoint_refuses_the_name_of_a_moment_that_a_revert_left_aside() -> None:
    s1 = {"vda": "/images/s1.qcow2"}
    gone, base = {"vda": "/images/gone.qcow2"}, {"vda": "/images/base.qcow2"}
    first = MomentRecord("x", "first", NOW, gone, base, branches=(s1,), directory=STATE)
    aside = MomentRecord("y", "aside", NOW, {"vda": "/images/z.qcow2"}, gone, directory=STATE)
    files = FakeFiles(TWO)
    files.records += [first, aside]
    with pytest.raises(TargetExists, match=r"there already is an .* snapshot 'aside'"):
        planned(Checkpoint("aside"), TWO, files=files)
    assert planned(Checkpoint("other"), TWO, files=files).steps


def test_checkpoint_leaves_out_and_names_disks_that_cannot_change() -> None:
    read_only = replace(chain("iso.raw*", name="vdr"), read_only=True)
    plan = planned(Checkpoint("c1"), graph(read_only, vda="base <- s1*"))
    assert (plan.disks, plan.notes) == (("vda",), ("left out: vdr (read-only)",))


def test_checkpoint_of_a_group_names_the_machine_in_its_record_and_its_files() -> None:
    member = Member("1f", "web", ("web", "db"))
    plan = planned(Checkpoint("c1", "in-place", member=member), TWO)
    record = plan.record
    assert record is not None
    assert record.member == member
    assert record.state is not None
    assert record.state.file == "/images/base.web.c1.vmstate.qcow2"
    assert {files[0] for files in plan.chains_after.values()} == {
        f"/images/{name}.web.c1.qcow2" for name in ("base", "data")
    }
