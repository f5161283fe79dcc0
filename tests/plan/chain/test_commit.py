from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    Busy,
    InvalidTarget,
    NotFound,
    NotInChain,
    Refused,
    Unsupported,
    WouldLose,
)
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Bitmap, Disk, Filter, InternalSnapshot, Node
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import DropLayers, Later, MoveRoot, Root, Stage, Step
from qmpsnap.plan.commands.block import blockdev_del, flush
from qmpsnap.plan.commands.files import Proof, retire_file
from qmpsnap.plan.commands.jobs import (
    await_job,
    block_commit,
    end_copy,
    job_complete,
    job_dismiss,
    job_finalize,
)
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.intent import Commit, Folded
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS
from tests.each import each
from tests.model.records import committing, stages
from tests.plan.scenes import NOW, STATE, job, planned, started, unseen, with_layer

T5 = graph(vda="base <- s1 <- s2 <- s3 <- s4*")
S4, S3, S2, S1, BASE = (f"/images/{name}.qcow2" for name in ("s4", "s3", "s2", "s1", "base"))
ALL = (S4, S3, S2, S1, BASE)
AS_BASE = Root("vda", "vda-base", BASE, "qcow2", None, ())


@each(
    ("top", "base", "after", "invalid", "if_stopped"),
    [
        ("s3", "base", (S4, BASE), (S3, S2, S1), (S2, S1, BASE)),
        ("s2", "base", (S4, S3, BASE), (S2, S1), (S1, BASE)),
        ("s1", "base", (S4, S3, S2, BASE), (S1,), (BASE,)),
        ("s2", "s1", (S4, S3, S1, BASE), (S2,), (S1,)),
        ("s3", "s2", (S4, S2, S1, BASE), (S3,), (S2,)),
        ("s3", "s1", (S4, S1, BASE), (S3, S2), (S2, S1)),
    ],
)
def test_commit_folds_each_of_the_talks_six_cases(
    top: str, base: str, after: tuple[str, ...], invalid: tuple[str, ...], if_stopped: tuple[str, ...]
) -> None:
    plan = planned(Commit("vda", top, base), T5)
    assert plan.chains_after == {"vda": after}
    assert plan.folded == invalid
    assert plan.invalid == tuple(f"{file}.invalid" for file in invalid)
    assert plan.invalid_if_stopped == if_stopped
    assert plan.moves == ()


def test_commit_of_intermediate_layers_is_one_job_that_ends_by_itself() -> None:
    plan = planned(Commit("vda", "s2", "base", on_error="stop", speed=9), T5)
    start = block_commit(
        job=plan.job_id,
        root="vda-s4",
        top_node="vda-s2",
        base_node="vda-base",
        backing=None,
        on_error="stop",
        speed=9,
        effect=DropLayers("vda", above=S3, base=BASE),
    )
    record = IntentRecord(
        id=plan.job_id,
        op="commit",
        created=NOW,
        chains={"vda": ALL},
        after={"vda": (S4, S3, BASE)},
        formats={"vda": ("qcow2",) * 5},
        stages=plan.stages[1:],
        folded=(S2, S1),
        invalid=(S1, BASE),
        invalid_after=(f"{S2}.invalid", f"{S1}.invalid"),
    )
    assert plan.stages == (
        Stage("write the record", (write_record(STATE, record),)),
        Stage(
            f"commit into {BASE}",
            (
                start,
                await_job(plan.job_id, "pending"),
                flush("vda-base"),
                job_finalize(plan.job_id),
                await_job(plan.job_id, "concluded"),
                flush("vda-s3"),
                job_dismiss(plan.job_id),
            ),
            verify=True,
        ),
        Stage(
            "clean up the committed layers",
            (
                retire_file(S2, "rename", f"{S2}.invalid", Proof("qcow2", S1)),
                retire_file(S1, "rename", f"{S1}.invalid", Proof("qcow2", BASE)),
                finish_record(STATE, (plan.job_id,)),
            ),
            tidy=True,
        ),
    )
    assert plan.job_id.startswith("qmpsnap-commit-keep-")
    assert start.arguments == {
        "job-id": plan.job_id,
        "device": "vda-s4",
        "top-node": "vda-s2",
        "base-node": "vda-base",
        "on-error": "stop",
        "speed": 9,
        "auto-finalize": False,
        "auto-dismiss": False,
    }


def test_commit_of_everything_is_the_default_and_ends_in_a_pivot() -> None:
    plan = planned(Commit("vda"), T5)
    start = block_commit(
        job=plan.job_id,
        root="vda-s4",
        top_node="vda-s4",
        base_node="vda-base",
        backing=None,
        on_error="report",
        speed=0,
        effect=Later(MoveRoot(AS_BASE)),
    )
    assert plan.stages[1].steps == (
        start,
        await_job(plan.job_id, "ready"),
        job_complete(plan.job_id, MoveRoot(AS_BASE)),
        await_job(plan.job_id, "concluded"),
        job_dismiss(plan.job_id),
    )
    assert plan.job_id.startswith("qmpsnap-commit-pivot-")
    assert plan.chains_after == {"vda": (BASE,)}
    assert plan.moves == ("vda",)
    assert plan.after is not None
    assert not plan.after.disks["vda"].active.read_only


def test_commit_keeps_the_overlay_and_its_record_when_asked() -> None:
    plan = planned(Commit("vda", keep_overlay=True), T5)
    assert end_copy(plan.job_id) in plan.steps
    assert plan.job_id.startswith("qmpsnap-commit-keep-")
    assert plan.chains_after == plan.chains_before
    assert (plan.moves, plan.folded) == ((), ())
    assert plan.invalid == plan.invalid_if_stopped == (S3, S2, S1, BASE)
    assert not any(step.command in {"retire-file", "finish-record"} for step in plan.steps)
    assert plan.record is not None
    assert (plan.record.permanent, plan.record.after) == (True, {"vda": ALL})


def test_commit_addresses_the_root_when_a_throttle_is_above() -> None:
    disk = replace(chain("base <- s1*"), root="thr", filters=(Filter("thr", "throttle"),))
    start = started(planned(Commit("vda"), graph(disk)))
    assert start.command == "block-commit"
    assert (start.arguments["device"], start.arguments["top-node"]) == ("thr", "vda-s1")


@each(
    ("folded", "steps", "invalid"),
    [
        ("rename", [retire_file(S1, "rename", f"{S1}.invalid", Proof("qcow2", BASE))], (f"{S1}.invalid",)),
        ("remove", [retire_file(S1, "remove", "", Proof("qcow2", BASE))], ()),
        ("keep", [], (S1,)),
    ],
)
def test_commit_does_with_folded_files_what_was_asked(
    folded: Folded, steps: list[Step], invalid: tuple[str, ...]
) -> None:
    plan = planned(Commit("vda", "s1", "base", folded=folded), T5)
    assert [step for step in plan.steps if step.command == "retire-file"] == steps
    assert plan.invalid == invalid
    assert plan.record is not None
    assert not plan.record.permanent


def test_commit_keeps_folded_files_where_they_cannot_be_seen_and_says_so() -> None:
    plan = planned(Commit("vda", "s1", "base"), T5, files=unseen(T5))
    assert [step.way for step in plan.steps] == [
        "block-commit", "await-job", "flush", "job-finalize", "await-job", "flush", "job-dismiss",
    ]  # fmt: skip
    assert plan.invalid == (S1,)
    assert plan.notes == (
        "images of other machines were not searched for: QEMU's files are not visible from here",
    )


def test_commit_numbers_the_invalid_name_when_it_is_taken() -> None:
    files = FakeFiles(T5)
    files.put(f"{S1}.invalid")
    assert planned(Commit("vda", "s1", "base"), T5, files=files).invalid == (f"{S1}.invalid.2",)


def test_commit_refuses_when_every_invalid_name_is_taken() -> None:
    files = FakeFiles(T5)
    files.put(f"{S1}.invalid")
    for number in range(2, 10):
        files.put(f"{S1}.invalid.{number}")
    with pytest.raises(InvalidTarget, match=r"and 8 more such files exist"):
        planned(Commit("vda", "s1", "base"), T5, files=files)


def test_commit_keeps_a_relative_name_relative() -> None:
    disk = with_layer(chain("base <- s1 <- s2*"), 0, backing="s1.qcow2")
    start = started(planned(Commit("vda", "s1", "base"), graph(disk)))
    assert start.command == "block-commit"
    assert start.arguments["backing-file"] == "base.qcow2"
    pivot = planned(Commit("vda"), graph(disk)).start
    assert pivot is not None
    assert "backing-file" not in pivot.arguments  # QEMU refuses it for the active layer


def test_commit_frees_the_nodes_that_we_added() -> None:
    disk = with_layer(chain("base <- s1 <- s2*"), 1, node="qmpsnap-a-00000000")
    assert blockdev_del("qmpsnap-a-00000000") in planned(Commit("vda", "s1", "base"), graph(disk)).steps


def test_commit_that_keeps_the_overlay_keeps_its_node() -> None:
    owned = graph(with_layer(chain("base <- s1*"), 0, node="qmpsnap-a-00000000"))
    assert not any(
        step.command == "blockdev-del" for step in planned(Commit("vda", keep_overlay=True), owned).steps
    )


def test_commit_retires_files_alone() -> None:
    remote = graph(with_layer(chain("base <- s1 <- s2*"), 1, file="rbd:pool/s1", local=False))
    plan = planned(Commit("vda"), remote)
    assert [step.arguments["file"] for step in plan.steps if step.command == "retire-file"] == [S2]
    assert plan.invalid == ("rbd:pool/s1", f"{S2}.invalid")
    assert plan.record is not None
    assert (plan.record.folded, plan.record.invalid) == ((S2,), (BASE,))


def failed(id: str, *folded: str, where: str = STATE) -> IntentRecord:  # noqa: A002
    """What a commit into the base leaves that failed; the newest of the folded files first."""
    return IntentRecord(
        id,
        "commit",
        NOW,
        chains={"vda": ALL},
        stages=stages(committing(id, base=BASE)),
        folded=folded,
        invalid=(*folded[1:], BASE),
        directory=where,
    )


def test_commit_removes_the_records_that_it_makes_good_wherever_they_lie() -> None:
    """One whose top stays above has written what this commit does not write once more."""
    files = FakeFiles(T5)
    elsewhere = "/images/s1.qmpsnap"
    files.records += [failed("same", S2, S1), failed("less", S1, where=elsewhere), failed("more", S3, S2, S1)]
    plan = planned(Commit("vda", "s2", "base"), T5, files=files)
    assert plan.steps[-3:] == (
        finish_record(STATE, ("same",)),
        finish_record(elsewhere, ("less",)),
        finish_record(STATE, (plan.job_id,)),
    )
    assert plan.repeats == (finish_record(STATE, ("same",)),)


def test_commit_removes_the_records_of_moments_that_no_disk_holds_any_more() -> None:
    files = FakeFiles(T5)
    moment = MomentRecord("m", "n1", NOW, overlays={"vda": S1}, covered={"vda": BASE}, directory=STATE)
    later = MomentRecord("l", "n4", NOW, overlays={"vda": S4}, covered={"vda": S3}, directory=STATE)
    files.records += [moment, later]
    plan = planned(Commit("vda", "s2", "base"), T5, files=files)
    assert plan.steps[-2:] == (finish_record(STATE, (), ("m",)), finish_record(STATE, (plan.job_id,)))


def test_commit_that_keeps_the_overlay_removes_what_its_own_record_says_too() -> None:
    files = FakeFiles(T5)
    begun = stages(committing("again", base=BASE))
    again = IntentRecord(
        "again", "commit", NOW, {"vda": ALL}, stages=begun, invalid=(S1, BASE), directory=STATE
    )
    files.records.append(again)
    plan = planned(Commit("vda", keep_overlay=True), T5, files=files)
    assert plan.steps[-1] == finish_record(STATE, ("again",))


@each("what", [InternalSnapshot("1", "before"), Bitmap("daily", persistent=True)])
def test_commit_refuses_to_lose_what_only_a_folded_layer_holds(what: InternalSnapshot | Bitmap) -> None:
    field = "snapshots" if isinstance(what, InternalSnapshot) else "bitmaps"
    holds = graph(with_layer(chain("base <- s1 <- s2*"), 1, **{field: (what,)}))
    with pytest.raises(WouldLose) as caught:
        planned(Commit("vda", "s1", "base"), holds)
    assert S1 in caught.value.what[0]
    assert what.name in caught.value.what[0]
    assert planned(Commit("vda", "s1", "base", discard_internal=True), holds)


def test_commit_leaves_alone_what_the_base_and_the_layers_above_hold() -> None:
    snapshots = (InternalSnapshot("1", "before"),)
    disk = with_layer(with_layer(chain("base <- s1 <- s2*"), 0, snapshots=snapshots), 2, snapshots=snapshots)
    transient = with_layer(disk, 1, bitmaps=(Bitmap("now"),))
    assert planned(Commit("vda", "s1", "base"), graph(transient))


def test_commit_that_keeps_the_overlay_does_not_lose_what_that_holds() -> None:
    holds = graph(with_layer(chain("base <- s1*"), 0, snapshots=(InternalSnapshot("1", "x"),)))
    assert planned(Commit("vda", keep_overlay=True), holds)
    with pytest.raises(WouldLose):
        planned(Commit("vda"), holds)


@each(("top", "base"), [("base", "s1"), ("s1", "s1"), ("s1", "s4"), (None, "s4")])
def test_commit_refuses_a_base_that_is_not_below_top(top: str | None, base: str) -> None:
    with pytest.raises(NotInChain, match="is not below top"):
        planned(Commit("vda", top, base), T5)


@each(
    ("intent", "error"),
    [
        (Commit("vdz"), NotFound),
        (Commit("vda", "s9"), NotInChain),
        (Commit("vda", base="s9"), NotInChain),
        (Commit("vda", "s1", "base", keep_overlay=True), Unsupported),
        (Commit("cd0"), Unsupported),
        (Commit("vdb"), Unsupported),
        (Commit("vda", look_in=("/nowhere",)), InvalidTarget),
    ],
)
def test_commit_refuses_what_makes_no_sense(intent: Commit, error: type[Refused]) -> None:
    machine = graph(*T5.disks.values(), Disk("cd0"), vdb="data*")
    files = FakeFiles(machine)
    files.directories["/nowhere"] = DirFact("/nowhere", exists=False, writable=False)
    with pytest.raises(error) as caught:
        planned(intent, machine, files=files)
    assert type(caught.value) is error


def test_commit_refuses_a_disk_that_a_job_holds() -> None:
    held = graph(chain("base <- s1*"), nodes=(Node("#f", "copy-on-read", S1),))
    with pytest.raises(Busy) as caught:
        planned(Commit("vda"), held, jobs=(job("s", "stream"),))
    assert caught.value.job_id == "s"


def test_commit_refuses_a_disk_whose_active_layer_somebody_elses_node_covers() -> None:
    covered = graph(chain("base <- s1*"), nodes=(Node("old", "qcow2", "/o", backing=S1),))
    with pytest.raises(Busy, match="node 'old'"):
        planned(Commit("vda"), covered)


@each("command", ["block-commit", "job-complete", "job-dismiss", "job-cancel", "block-job-cancel"])
def test_commit_refuses_a_qemu_without_its_commands(command: str) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(Commit("vda"), T5, commands=COMMANDS - {command})
    assert caught.value.feature == command


@each("folded", ["rename", "remove"])
def test_commit_leaves_a_symlinked_layer_its_name_and_says_so(folded: Folded) -> None:
    files = FakeFiles(T5)
    files.facts[S2] = replace(files.facts[S2], real="/elsewhere/data.qcow2")
    plan = planned(Commit("vda", "s2", "s1", folded=folded), T5, files=files)
    assert [step for step in plan.steps if step.command == "retire-file"] == []
    assert plan.invalid == (S2,)
    assert plan.notes == (f"{S2} is a symlink and keeps its name, although its data was committed",)


@each(("over", "dropped"), [(S3, False), (S2, False), (S1, True), (BASE, True)])
def test_commit_says_which_filters_go_with_the_layers(over: str, dropped: bool) -> None:
    disk = replace(chain("base <- s1 <- s2 <- s3 <- s4*"), filters=(Filter("thr", "throttle"),))
    filtered = graph(disk, nodes=(Node("thr", "throttle", over),))
    notes = planned(Commit("vda", "s2", "base"), filtered).notes
    assert [note for note in notes if "the filter thr (throttle)" in note] == (
        ["the filter thr (throttle) is between the layers, and is dropped from the chain"] if dropped else []
    )
