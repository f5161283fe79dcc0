from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace

from qmpsnap.model.graph import Filter, InternalSnapshot, Io, Layer, Node
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.effect import apply, apply_all
from qmpsnap.plan.steps import (
    AddNode,
    AdoptJob,
    AwaitJob,
    CancelJob,
    CheckRoots,
    CompleteJob,
    CreateMemory,
    CreateOverlay,
    CreatePlaceholder,
    DeleteInternal,
    DeleteNode,
    DeleteState,
    DismissJob,
    EndCopy,
    FinishRecord,
    KeepMoment,
    LoadMemory,
    LoadState,
    NewRoot,
    ProbeAbsent,
    RemoveMade,
    RemoveOrphan,
    RemoveState,
    ReopenFilter,
    ResetGuest,
    RetireFile,
    SaveMemory,
    SaveState,
    SetDrive,
    StartCommit,
    StartMirror,
    StartStream,
    Step,
    StopGuest,
    TakeInternal,
    TakenOverlay,
    TakeSnapshots,
    WriteRecord,
)
from qmpsnap.testing.drawing import MIB, chain, graph
from tests.plan.scenes import with_layer

JOB = "qmpsnap-commit-keep-00000000"
ALL = graph(vda="base <- s1 <- s2*", vdb="data.raw*")
S2, S1, BASE = "/images/s2.qcow2", "/images/s1.qcow2", "/images/base.qcow2"


def commit(top: str, base: str, *, active: bool = False, backing: str | None = None) -> StartCommit:
    files = {"s2": S2, "s1": S1, "base": BASE}
    return StartCommit(
        JOB,
        "vda",
        "vda-s2",
        f"vda-{top}",
        files[top],
        f"vda-{base}",
        files[base],
        active,
        backing,
        "report",
        0,
    )


def stream(file: str, base: str | None, *, backing: str | None = None) -> StartStream:
    return StartStream(JOB, "vda", "n", file, "b" if base else None, base, backing, "report", 0)


def test_a_snapshot_puts_an_overlay_on_each_of_its_disks() -> None:
    step = TakeSnapshots(
        (
            TakenOverlay("vda", "vda-s2", "n1", "/o/a", S2, "us"),
            TakenOverlay("vdb", "vdb-data.raw", "n2", "/o/b", "/images/data.raw", "qemu"),
        )
    )
    after = apply(ALL, step)
    assert after.chains() == {"vda": ("/o/a", S2, S1, BASE), "vdb": ("/o/b", "/images/data.raw")}
    assert after.disks["vdb"].layers == (
        Layer("n2", "/o/b", "qcow2", 64 * MIB, backing="/images/data.raw", backing_format="raw"),
        Layer("vdb-data.raw", "/images/data.raw", "raw", 64 * MIB, 196_616, read_only=True),
    )
    assert (after.disks["vda"].root, after.nodes["n2"]) == ("n1", Node("n2", "qcow2", "/o/b"))


@pytest.mark.parametrize(
    ("step", "files", "backing"),
    [
        (stream(S2, None), (S2,), None),
        (stream(S2, BASE), (S2, BASE), BASE),
        (stream(S2, BASE, backing="base.qcow2"), (S2, BASE), "base.qcow2"),
        (stream(S1, None), (S2, S1), S1),
    ],
)
def test_a_stream_takes_out_what_stands_between(
    step: StartStream, files: tuple[str, ...], backing: str | None
) -> None:
    disk = apply(ALL, step).disks["vda"]
    assert (disk.files, disk.active.backing) == (files, backing)


@pytest.mark.parametrize(
    ("step", "files", "backing"),
    [
        (commit("s1", "base"), (S2, BASE), BASE),
        (commit("s1", "base", backing="base.qcow2"), (S2, BASE), "base.qcow2"),
    ],
)
def test_a_commit_of_intermediate_layers_takes_them_out(
    step: StartCommit, files: tuple[str, ...], backing: str
) -> None:
    disk = apply(ALL, step).disks["vda"]
    assert (disk.files, disk.active.backing, disk.active.backing_format) == (files, backing, "qcow2")


def test_a_commit_of_the_active_layer_changes_nothing_until_it_is_completed() -> None:
    start = commit("s2", "base", active=True)
    assert apply(ALL, start) == ALL
    disk = apply(ALL, CompleteJob(JOB, start)).disks["vda"]
    assert (disk.files, disk.root, disk.active.read_only) == ((BASE,), "vda-base", False)


def test_a_mirror_changes_nothing_until_it_is_completed() -> None:
    start = StartMirror(JOB, "vda", "vda-s2", None, "/c", "raw", "copy", "full", False, "report", 0)
    assert apply(ALL, start) == ALL
    disk = apply(ALL, CompleteJob(JOB, start)).disks["vda"]
    assert disk.layers == (Layer("copy", "/c", "raw", 64 * MIB),)
    assert disk.root == "copy"


def test_a_node_that_is_deleted_is_gone() -> None:
    assert "vda-s1" not in apply(ALL, DeleteNode("vda-s1")).nodes


@pytest.mark.parametrize(
    "step",
    [
        WriteRecord("/r", IntentRecord(JOB, "commit", "2024-05-01T12:00:00+00:00")),
        FinishRecord("/r", (JOB,)),
        KeepMoment("/r", JOB, "n1"),
        CreateOverlay("/o", 1, S2, "qcow2", S2),
        CreatePlaceholder("/o", S2),
        RetireFile(S1, "rename", f"{S1}.invalid"),
        RemoveMade("/o"),
        RemoveOrphan("/o", None),
        ProbeAbsent("/o", "n"),
        EndCopy(JOB),
        CancelJob(JOB),
        DismissJob(JOB),
        AwaitJob(JOB, "ready"),
        AdoptJob(JOB),
        CompleteJob(JOB),
    ],
    ids=lambda step: type(step).__name__,
)
def test_everything_else_leaves_the_graph_as_it_is(step: Step) -> None:
    assert apply(ALL, step) == ALL


def test_no_step_touches_another_disk() -> None:
    for step in (stream(S2, None), commit("s1", "base"), CompleteJob(JOB, commit("s2", "base", active=True))):
        assert apply(ALL, step).disks["vdb"] is ALL.disks["vdb"]


def test_apply_all_is_one_after_the_other() -> None:
    steps: list[Step] = [stream(S2, BASE), CompleteJob(JOB, commit("s2", "base", active=True))]
    assert apply_all(ALL, steps).disks["vda"].files == (BASE,)
    assert apply_all(ALL, []) is ALL


def test_apply_takes_and_deletes_snapshots_inside_active_layers() -> None:
    graph_ = graph(vda="base <- s1*", vdb="data*")
    taken = apply(graph_, TakeInternal("i1", (("vda", "vda-s1"), ("vdb", "vdb-data"))))
    inside = {name: disk.active.snapshots for name, disk in taken.disks.items()}
    assert inside == {"vda": (InternalSnapshot("", "i1"),), "vdb": (InternalSnapshot("", "i1"),)}
    assert taken.disks["vda"].layers[1] == graph_.disks["vda"].layers[1]
    assert taken.nodes == graph_.nodes
    gone = apply(taken, DeleteInternal("vda", "vda-s1", "", "i1"))
    assert gone.disks["vda"] == graph_.disks["vda"]
    assert gone.disks["vdb"] is taken.disks["vdb"]


def test_apply_deletes_none_of_another_id() -> None:
    taken = apply(graph(vda="base*"), TakeInternal("i1", (("vda", "vda-base"),)))
    assert apply(taken, DeleteInternal("vda", "vda-base", "9", "i1")) == taken


NEW = NewRoot("vda", "new", "/new", "qcow2", S1, ((S1, "qcow2"), (BASE, "qcow2")))
OLD = NewRoot("vda", "vda-s2", S2, "qcow2", S1, ((S1, "qcow2"), (BASE, "qcow2")))


@pytest.mark.parametrize("closes", [True, False])
def test_a_new_root_is_read_on_the_layers_that_are_known_already(closes: bool) -> None:
    after = apply(ALL, SetDrive(NEW, "/q", OLD, closes))
    disk = after.disks["vda"]
    assert (disk.files, disk.root) == (("/new", S1, BASE), "new")
    assert [layer.node for layer in disk.layers] == ["new", "vda-s1", "vda-base"]
    assert [layer.read_only for layer in disk.layers] == [False, True, True]
    assert disk.active == Layer("new", "/new", "qcow2", 64 * MIB, backing=S1, backing_format="qcow2")
    assert ("vda-s2" in after.nodes) is not closes
    assert after.disks["vdb"] is ALL.disks["vdb"]


def test_what_is_done_with_the_file_comes_along_to_an_overlay_and_to_a_new_root() -> None:
    io = Io(direct=True, detect_zeroes="on")
    of = graph(with_layer(chain("base <- s1*"), 0, io=io))
    covered = apply(of, TakeSnapshots((TakenOverlay("vda", "vda-s1", "n", "/o", S1, "us"),)))
    assert covered.disks["vda"].active.io == Io(direct=True)
    assert (
        apply(ALL, SetDrive(dataclasses.replace(NEW, io=io), "/q", OLD, closes=True)).disks["vda"].active.io
        == io
    )


def test_a_new_root_under_a_filter_leaves_the_filter_the_root() -> None:
    disk = replace(ALL.disks["vda"], root="thr", filters=(Filter("thr", "throttle", "tg"),))
    after = apply(graph(disk), ReopenFilter(NEW, "thr", "tg", OLD, closes=False))
    assert (after.disks["vda"].root, after.disks["vda"].files[0]) == ("thr", "/new")


def test_layers_that_were_left_aside_get_nodes_that_are_not_predicted() -> None:
    aside = dataclasses.replace(NEW, backing="/aside", chain=(("/aside", "qcow2"), (BASE, "qcow2")))
    after = apply(ALL, SetDrive(aside, "/q", OLD, closes=False))
    assert [layer.node for layer in after.disks["vda"].layers] == ["new", "", "vda-base"]
    assert after.disks["vda"].layers[1].backing == BASE
    assert "" not in after.nodes


def test_the_old_root_comes_back_as_it_was() -> None:
    move = SetDrive(NEW, "/q", OLD, closes=False)
    back = apply_all(ALL, (move, *move.back()))
    assert back.chains() == ALL.chains()
    assert back.disks["vda"].root == "vda-s2"


def test_an_image_that_is_opened_stands_under_no_disk() -> None:
    after = apply(ALL, AddNode("n", "/o"))
    assert (after.disks, after.nodes["n"]) == (ALL.disks, Node("n", "qcow2", "/o"))
    assert apply(after, DeleteNode("n")) == ALL


def test_vm_state_in_a_store_changes_no_disk_and_on_disks_their_snapshots() -> None:
    assert apply(ALL, SaveState(JOB, "c1", (("", "store"),))) == ALL
    saved = apply(ALL, SaveState(JOB, "c1", (("vda", "vda-s2"),)))
    assert saved.disks["vda"].active.snapshots == (InternalSnapshot("", "c1"),)
    assert apply(saved, DeleteState(JOB, "c1", (("vda", "vda-s2"),))) == ALL


@pytest.mark.parametrize(
    "step",
    [
        StopGuest(),
        ResetGuest(),
        SaveMemory("u"),
        LoadMemory("u"),
        CreateMemory("/m"),
        RemoveState("/m", JOB),
        CheckRoots(()),
        LoadState(JOB, "c1", (), "store"),
    ],
    ids=lambda step: type(step).__name__,
)
def test_what_moves_memory_leaves_the_graph_as_it_is(step: Step) -> None:
    assert apply(ALL, step) == ALL
