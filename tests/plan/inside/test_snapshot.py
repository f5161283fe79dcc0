from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import AmbiguousName, BadName, Busy, NotFound, Refused, TargetExists, Unsupported
from qmpsnap.model.graph import Disk, Filter, InternalSnapshot, Node
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.commands.block import internal_snapshot
from qmpsnap.plan.intent import Snapshot
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS
from tests.each import each
from tests.plan.scenes import NOW, STATE, job, planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph

TWO = graph(vda="base <- s1*", vdb="data*")
EMPTY = Disk("cd0", qdev="cd0")
READ_ONLY = replace(chain("iso*", name="vdc"), read_only=True)
OLD = (InternalSnapshot("1", "old"),)


def test_internal_takes_every_writable_disk_at_one_instant_and_names_the_others() -> None:
    plan = planned(Snapshot("i1", inside=True), graph(*TWO.disks.values(), READ_ONLY, EMPTY))
    assert plan.steps == (internal_snapshot("i1", (("vda", "vda-s1"), ("vdb", "vdb-data"))),)
    assert plan.notes == ("left out: vdc (read-only), cd0 (empty)",)
    assert (plan.op, plan.moves, plan.job_id, plan.record) == ("snapshot-internal", (), "", None)


def test_internal_predicts_the_snapshot_in_each_image_and_the_same_chains() -> None:
    plan = planned(Snapshot("i1", ("vda",), inside=True), TWO)
    assert plan.after is not None
    assert plan.chains_after == plan.chains_before == {"vda": TWO.disks["vda"].files}
    assert [one.name for one in plan.after.disks["vda"].active.snapshots] == ["i1"]
    assert plan.after.disks["vdb"] is TWO.disks["vdb"]


def test_internal_names_the_root_where_a_filter_is_above() -> None:
    disk = replace(chain("base <- s1*"), root="thr", filters=(Filter("thr", "throttle"),))
    assert planned(Snapshot("i1", ("vda",), inside=True), graph(disk)).steps == (
        internal_snapshot("i1", (("vda", "thr"),)),
    )


RAW = graph(vda="base*", vdr="disk.raw*")
BELOW = graph(with_layer(chain("base <- s1*"), 1, snapshots=OLD), chain("data*", name="vdb"))
REFUSED: dict[str, tuple[Graph, Snapshot, type[Refused], str]] = {
    "raw, named": (
        RAW,
        Snapshot("i1", ("vda", "vdr"), inside=True),
        Unsupported,
        "active layer of vdr .* raw",
    ),
    "raw, not named": (RAW, Snapshot("i1", inside=True), Unsupported, "active layer of vdr"),
    "read-only": (graph(READ_ONLY), Snapshot("i1", ("vdc",), inside=True), Unsupported, "'vdc' is read-only"),
    "empty": (graph(EMPTY), Snapshot("i1", ("cd0",), inside=True), Unsupported, "'cd0' has no medium"),
    "nothing": (graph(EMPTY), Snapshot("i1", inside=True), NotFound, "no writable disk"),
    "unknown": (TWO, Snapshot("i1", ("vdz",), inside=True), NotFound, "vdz"),
    "twice": (TWO, Snapshot("i1", ("vda", "vda-s1"), inside=True), AmbiguousName, "'vda' is named twice"),
    "taken below": (
        BELOW,
        Snapshot("old", ("vda",), inside=True),
        TargetExists,
        "on vda: /images/base.qcow2",
    ),
    "taken elsewhere": (BELOW, Snapshot("old", ("vdb",), inside=True), TargetExists, "on vda"),
}


@each("case", REFUSED)
def test_internal_refuses_what_cannot_be(case: str) -> None:
    drawn, intent, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(intent, drawn)
    assert type(caught.value) is error


def test_internal_says_which_disks_could_be_taken() -> None:
    with pytest.raises(Unsupported) as caught:
        planned(Snapshot("i1", inside=True), RAW)
    assert "name the disks to snapshot (vda)" in caught.value.hint


def test_internal_refuses_the_name_of_an_external_one() -> None:
    files = FakeFiles(TWO)
    s1, base = TWO.disks["vda"].files
    files.records.append(
        MomentRecord("qmpsnap-snapshot-keep-1", "n1", NOW, {"vda": s1}, {"vda": base}, directory=STATE)
    )
    with pytest.raises(TargetExists, match="already is an external snapshot 'n1'"):
        planned(Snapshot("n1", inside=True), TWO, files=files)


def test_snapshot_refuses_the_name_of_an_internal_one() -> None:
    with pytest.raises(
        TargetExists, match=r"already has an internal snapshot 'old', inside /images/base\.qcow2"
    ):
        planned(Snapshot("old", ("vda",)), BELOW)


def test_internal_refuses_a_disk_that_a_job_holds() -> None:
    drawn = graph(*TWO.disks.values(), nodes=(Node("f", "mirror_top", TWO.disks["vda"].active.file),))
    with pytest.raises(Busy, match="'theirs'"):
        planned(Snapshot("i1", inside=True), drawn, jobs=(job("theirs"),))
    assert planned(Snapshot("i1", ("vdb",), inside=True), drawn, jobs=(job("theirs"),)).disks == ("vdb",)


def test_internal_refuses_a_root_that_an_unused_node_covers() -> None:
    drawn = graph(*TWO.disks.values(), nodes=(Node("n", "qcow2", "/x", backing="/images/s1.qcow2"),))
    with pytest.raises(Busy, match="'n'"):
        planned(Snapshot("i1", inside=True), drawn)


def test_internal_asks_for_the_command() -> None:
    with pytest.raises(Unsupported, match="blockdev-snapshot-internal-sync"):
        planned(Snapshot("i1", inside=True), TWO, commands=COMMANDS - {"blockdev-snapshot-internal-sync"})


def test_snapshot_internal_is_not_named_by_a_number() -> None:
    with pytest.raises(BadName, match="the id of an internal snapshot"):
        planned(Snapshot("12", inside=True), graph(vda="base*"))


def test_internal_refuses_the_name_of_what_a_revert_keeps_for_itself() -> None:
    with pytest.raises(BadName, match="a name of our own"):
        planned(Snapshot("qmpsnap-before-0123abcd", inside=True), graph(vda="base*"))
    for name in ("qmpsnap-before-0123abcde", "qmpsnap-before-lunch"):
        assert planned(Snapshot(name, inside=True), graph(vda="base*")).steps
