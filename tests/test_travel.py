"""Results and errors travel: by pickle to another process, by copy, as plain values, as JSON."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any, cast

import pytest
from msgspec import Struct, structs, to_builtins

import qmpsnap
from qmpsnap import errors
from qmpsnap.backup import BackedUp
from qmpsnap.errors import Changed, QmpsnapError
from qmpsnap.model.backup import BackupDisk, BackupRecord
from qmpsnap.model.finding import Finding
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Bitmap, Filter, InternalSnapshot, Io
from qmpsnap.model.job import IoStatus, Job, JobStatus
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.layer_stamps import WrittenLayer
from qmpsnap.model.machine import Fingerprint, Status
from qmpsnap.model.moments import Moments
from qmpsnap.model.record import Member, MomentRecord, Origin
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.run.progress import Progress
from qmpsnap.run.session.event import read_event
from qmpsnap.run.view import View
from tests.each import each
from tests.group.machines import Two
from tests.run.operations import CASES, intents, machine, plan_of, vm_of
from tests.run.states import fake_of

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.timeout(60)

FINGERPRINT = Fingerprint("pc", 1 << 28, ("qemu64",), {"vda": "virtio-blk"}, {"vda": 1 << 30}, "10.0.0")
STATE = KeptState("stop", "/images/m", "", True, FINGERPRINT)
MOMENT = MomentRecord("i", "c1", "2026-01-01T00:00:00+00:00", {"vda": "/images/s1"}, state=STATE)
ORIGIN = Origin(True, "p")
FINDING = Finding("node-left", "trouble", "n", "nothing uses it", ("qmpsnap", "cont"))
MEMBER = Member("g", "a", ("a", "b"))
LAYER_PARTS = (
    InternalSnapshot("1", "s", 2, 1.5),
    Bitmap("b", True),
    Filter("f", "throttle"),
    Io(direct=True),
)
VIEW_LAYER = ViewLayer("/images/base.qcow2", "qcow2")
WRITTEN = WrittenLayer("c1", "2026-01-01T00:00:00+00:00", "vda", "/images/s1", "2026-01-02T00:00:00+00:00", 1)
DISK_VIEW = DiskView(
    "vda", "c1", (VIEW_LAYER,), 1 << 30, snapshot=InternalSnapshot("1", "c1"), written_since=(WRITTEN,)
)
VIEW = View("c1", "vda", "nbd+unix:///vda?socket=/s", "/s", "vda", 1 << 30, ("/images/base.qcow2",))
BACKUP_DISK = BackupDisk("vda.qcow2", "qcow2", 64, 7, 9, ("/images/s1",))
BACKUP = BackupRecord("i", "2026-01-01T00:00:00+00:00", {"vda": BACKUP_DISK})
RECORDS = (
    *(FINGERPRINT, STATE, MOMENT, ORIGIN, *LAYER_PARTS, Status("paused", False)),
    *(VIEW_LAYER, DISK_VIEW, VIEW, WRITTEN),
    *(BACKUP_DISK, BACKUP, BackedUp("backup", {"vda": ("/images/s1",)}, backup=BACKUP, directory="/b/i")),
)
JOB = Job("j", "commit", JobStatus.READY, 1, 2, 0, "no", IoStatus.NOSPACE, paused=True, ready=True)


async def results() -> list[Any]:
    """One result of each kind of call; and of each operation its plan, and what it returned."""
    found: list[Any] = []
    for case in CASES:
        fake = machine(case)
        plan = await plan_of(case, fake)
        found += [plan, plan.intent, await vm_of(fake).run(plan)]
    vm = vm_of(fake_of())
    moments = [await vm.checkpoint("c1"), listing := await vm.moments()]
    graph = await vm.graph()
    group = Two.made().group
    found += [await group.checkpoint("c1"), *await group.moments(), MEMBER]
    found += [
        *moments,
        listing.tree,
        *listing.tree.images,
        *listing.tree.drawn(),
        graph,
        *graph.nodes.values(),
        *graph.disks.values(),
        *RECORDS,
    ]
    stamp = {"seconds": 1, "microseconds": 2}
    event = read_event({"event": "STOP", "data": {"a": {"b": [1]}}, "timestamp": stamp})
    return [*found, JOB, event, Progress(JOB, 1.5, None), FINDING]


async def test_results_travel_by_pickle_and_by_copy() -> None:
    for result in await results():
        for one in (
            pickle.loads(pickle.dumps(result)),
            copy.copy(result),
            copy.deepcopy(result),
            structs.replace(result) if isinstance(result, Struct) else dataclasses.replace(result),
        ):
            assert one == result
            assert type(one) is type(result)


async def test_results_become_plain_values() -> None:
    for result in await results():
        data = to_builtins(result)
        assert set(data) - {"kind"} == set(type(result).__match_args__) - {"kind"}
        assert json.loads(json.dumps(data)) == _lists(data)


async def test_results_that_are_printed_spell_themselves_as_json() -> None:
    for result in await results():
        if not _is_intent(result):
            spelled = result.to_json()
            assert json.loads(json.dumps(spelled)) == _lists(spelled)


def _public(name: str) -> Any:
    return getattr(qmpsnap, name)


WITHOUT_JSON = {  # no results, or strings
    "VM", "Group", "Jobs", "Hooks", "Stage", "JobStatus", "IoStatus", "Changed", "Start", "GuestMemory",
    "Machine", "MachineDisk", "Nic", "LaunchedVM", "Console", "Port", "Child", "Children",
    "SocketState",
    "Picture",
}  # fmt: skip


async def test_every_public_result_spells_itself_as_json_and_is_tried_here() -> None:
    classes = {name for name in qmpsnap.__all__ if inspect.isclass(_public(name))}
    errors_and_intents = {
        name
        for name in classes
        if issubclass(_public(name), QmpsnapError) or _public(name).__module__ == "qmpsnap.plan.intent"
    }
    expected = classes - errors_and_intents - WITHOUT_JSON
    assert {name for name in classes - errors_and_intents if hasattr(_public(name), "to_json")} == expected
    graph = await vm_of(fake_of()).graph()
    moments = [
        moment for listing in await results() if isinstance(listing, Moments) for moment in listing.moments
    ]
    parts = [*graph.disks["vda"].layers, *moments, *(part for moment in moments for part in moment.held)]
    tried = {type(result).__name__ for result in [*await results(), *parts]}
    # Below, and in model/test_interrupted.py, test_job_place.py, test_backup.py, test_template.py,
    # test_running_qemu.py, test_qapi_schema.py and test_pause.py, in cli/test_explain.py, test_watching.py.
    assert expected - tried == {
        "IntentRecord", "JobPlace", "LeftBehind", "Template", "Meaning",
        "RunningQemu", "RunningBackup", "QmpSocket", "OpenDisk", "HostProcess", "Pause",
        "Overview", "JobNow",
        "Schema", "SchemaCommand", "SchemaMember", "SchemaType",
    }  # fmt: skip


def test_parts_of_results_spell_themselves_as_json() -> None:
    snapshot, bitmap, node, io = LAYER_PARTS
    assert snapshot.to_json() == {"id": "1", "name": "s", "vm_state_size": 2, "date": 1.5}
    assert bitmap.to_json() == {"name": "b", "persistent": True, "busy": False, "inconsistent": False}
    assert node.to_json() == {"node": "f", "driver": "throttle"}
    assert io.to_json() == {"direct": True, "no_flush": False, "detect_zeroes": "off"}
    assert ORIGIN.to_json() == {
        "running": True,
        "process": "p",
    }
    assert json.loads(json.dumps(MOMENT.to_json()))["state"]["fingerprint"]["devices"] == {
        "vda": "virtio-blk"
    }


def _is_intent(result: object) -> bool:
    return type(result).__module__ == "qmpsnap.plan.intent"


def _lists(value: object) -> object:
    """The same as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _lists(one) for key, one in value.items()}
    return [_lists(one) for one in value] if isinstance(value, list | tuple) else value


async def test_record_of_what_a_lost_client_left_spells_itself_as_json() -> None:
    fake = machine("commit-keep")
    await vm_of(fake).commit("vda", keep_overlay=True)
    (record,) = await vm_of(fake).jobs.interrupted()
    assert [record.id] == intents(fake)
    assert record.to_json()["op"] == "commit"
    assert json.loads(json.dumps(record.to_json())) == _lists(record.to_json())


def test_frozen_refuses_every_change() -> None:
    frozen: Any = Frozen({"a": 1})
    for change in (
        lambda: frozen.__setitem__("a", 2),
        lambda: frozen.__delitem__("a"),
        lambda: frozen.__ior__({"b": 1}),
        lambda: frozen.update(b=1),
        lambda: frozen.setdefault("b", 1),
        lambda: frozen.pop("a"),
        frozen.popitem,
        frozen.clear,
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    assert frozen == {"a": 1}
    assert copy.copy(frozen) is frozen.copy() is frozen
    assert type(copy.deepcopy(frozen)) is Frozen


SAMPLES: Mapping[str, Any] = {
    "candidates": ["a", "b"],
    "by": ["/x"],
    "what": ["w"],
    "differences": ["d"],
    "arguments": {"a": {"b": 1}},
    "expected": {"vda": ["/a"]},
    "found": {"vda": ["/b"]},
    "done": ["s"],
    "remaining": ["r"],
    "status": 3,
    "allowed": ["a"],
    "value": b"x",
    "hint": "do",
}
COMMON: Mapping[str, Any] = {"changed": Changed.UNKNOWN, "hint": "do", "invalid": ["/i"], "left": ["/l"]}
ALL = [
    one
    for one in vars(errors).values()
    if inspect.isclass(one) and issubclass(one, QmpsnapError) and one.__module__ == errors.__name__
]


def made(kind: type[QmpsnapError]) -> QmpsnapError:
    """An error of that kind with each of its attributes set."""
    names = list(inspect.signature(kind).parameters)[1:]
    facts = {name: SAMPLES.get(name, name) for name in names if name not in {*COMMON, "facts"}}
    common = COMMON if "facts" in names else names
    taken: dict[str, Any] = {name: COMMON[name] for name in common if name in COMMON}
    return kind("it failed", **facts, **taken)


def facts(error: QmpsnapError) -> dict[str, object]:
    return {"type": type(error), "args": error.args, "text": str(error), "hint": error.hint, **vars(error)}


@each("kind", ALL)
def test_error_travels_with_all_that_it_knows(kind: type[QmpsnapError]) -> None:
    error = made(kind)
    error.add_note("seen by the caller")
    for one in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert facts(one) == facts(error)
        assert isinstance(one, kind)


def test_errors_travel_to_another_process_and_back() -> None:
    sent = [made(kind) for kind in ALL]
    program = "import pickle, sys; pickle.dump(pickle.load(sys.stdin.buffer), sys.stdout.buffer)"
    ran = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(sent), capture_output=True, check=True
    )
    assert [facts(one) for one in pickle.loads(ran.stdout)] == [facts(one) for one in sent]


@each("kind", ALL)
def test_error_spells_itself_as_json(kind: type[QmpsnapError]) -> None:
    data = made(kind).to_json()
    assert list(data)[:6] == ["type", "message", "changed", "hint", "invalid", "left"]
    assert data["type"] == kind.__name__
    assert json.loads(json.dumps(data)) == _lists(data)
    assert set(data) >= set(inspect.signature(kind).parameters) - {"facts"}


def test_hint_is_in_a_traceback_as_it_is_by_then() -> None:
    error = QmpsnapError("it failed", hint="do this")
    error.add_note("a note of the caller's")
    assert "next: do this" in "".join(traceback.format_exception(error))
    error.hint = "do that"
    text = "".join(traceback.format_exception(error))
    assert "next: do that" in text
    assert "do this" not in text
    assert "a note of the caller's" in text
    error.hint = ""
    assert "next:" not in "".join(traceback.format_exception(error))


@each(
    ("error", "notes"),
    [
        (errors.NotFound("no disk", hint="look"), ["nothing was changed", "next: look"]),
        (errors.LinkLost("lost"), ["it is not known whether anything was changed"]),
        (errors.ConnectFailed("none"), ["nothing was changed"]),
        (
            errors.JobFailed("m", job_id="j", error="e", changed=errors.Changed.YES, invalid=["/base"]),
            [
                "invalid, no longer holds its snapshot: /base",
                "the guest's data is unchanged, but the layers listed above were written to",
            ],
        ),
        (
            errors.Incomplete("m", remaining=["retire-file x"], left=["/made"]),
            [
                "not done yet: retire-file x",
                "left behind: /made",
                "the chains, or data in their layers, were changed",
            ],
        ),
        (
            errors.GraphMismatch("m", expected={"vda": ["/b"]}, found={"vda": ["/c", "/b"]}),
            [
                "expected vda: /b",
                "found    vda: /c, /b",
                "the chains, or data in their layers, were changed",
            ],
        ),
        (
            errors.Detached("m", job_id="j", hint="wait"),
            ["the job writes into layers until it ends", "next: wait"],
        ),
        (
            errors.Interrupted("m", changed=errors.Changed.YES),
            ["the chains, or data in their layers, were changed"],
        ),
        (errors.GuestFailed("status 1", script="false"), []),
    ],
)
def test_traceback_says_whether_anything_was_changed(error: QmpsnapError, notes: list[str]) -> None:
    shown = "".join(traceback.format_exception(error))
    assert shown == "\n".join(
        [f"{type(error).__module__}.{type(error).__name__}: {error.message}", *notes, ""]
    )


def test_traceback_says_what_an_error_knows_by_then() -> None:
    error = errors.CommandFailed("m", command="c", arguments={}, qmp_class="", desc="")
    error.changed, error.left = errors.Changed.YES, ("/made",)
    assert error.__notes__ == ["left behind: /made", "the chains, or data in their layers, were changed"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__


def test_note_of_an_error_is_a_text() -> None:
    with pytest.raises(TypeError, match="note must be a str, not 'int'"):
        QmpsnapError("m").add_note(cast("str", 1))
