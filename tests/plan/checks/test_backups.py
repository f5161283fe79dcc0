"""What may be done to a disk while a backup of it is running."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Busy
from qmpsnap.model.files import Files
from qmpsnap.plan.checks.backups import ask_backups, running_backups
from qmpsnap.plan.intent import Checkpoint, Commit, Mirror, Snapshot, Stream
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import planned

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent

MOMENT = "backup-20240501T120000Z-0a1b2c3d"
COVERED, OVERLAY = "/images/s1.qcow2", f"/images/base.{MOMENT}.qcow2"
OTHER = "/images/other.qcow2"
COPY = "/images/copy.qcow2"
ALL = [(COVERED, MOMENT), (COVERED, ""), ("/images/base.qcow2", "")]
ACTIVE = f"base <- s1 <- base.{MOMENT}.qcow2*"
COVERED_BY_N = f"base <- s1 <- base.{MOMENT}.qcow2 <- n*"


def test_running_backups_are_those_whose_client_is_at_work() -> None:
    of = graph(vda=ACTIVE, vdb=f"other <- other.{MOMENT}.qcow2*", vdc="base.backup-2024.qcow2*")
    assert ask_backups(of).readers == ((COVERED, MOMENT), (OTHER, MOMENT))
    assert running_backups(of, Files(shared=True)) == {}
    at_work = Files(shared=True, readers=frozenset({(COVERED, MOMENT), (OTHER, MOMENT)}))
    assert running_backups(of, at_work) == {MOMENT: {"vda": COVERED, "vdb": OTHER}}


@each(
    ("chain", "intent", "allowed"),
    [
        (ACTIVE, Snapshot("n"), True),
        (ACTIVE, Mirror("vda", COPY, ending="finish"), True),
        (ACTIVE, Mirror("vda", COPY, ending="pivot"), False),
        (ACTIVE, Mirror("vda", COPY, ending="pivot", sync="top"), False),
        (ACTIVE, Commit("vda"), False),
        (ACTIVE, Commit("vda", top="s1", base="base"), False),
        (ACTIVE, Commit("vda", base="s1", keep_overlay=True), False),
        (ACTIVE, Stream("vda"), False),
        (ACTIVE, Stream("vda", base="base"), False),
        (ACTIVE, Snapshot("n", inside=True), False),
        (ACTIVE, Checkpoint("c", "internal"), False),
        (COVERED_BY_N, Snapshot("m", inside=True), True),
        (COVERED_BY_N, Commit("vda", base=OVERLAY), True),
        (COVERED_BY_N, Stream("vda", base="s1"), False),
        (COVERED_BY_N, Commit("vda", base="s1"), False),
    ],
)
def test_what_a_running_backup_reads_stays_and_its_overlay(
    chain: str, intent: Intent, *, allowed: bool
) -> None:
    of = graph(vda=chain)
    files = FakeFiles(of)
    files.readers = frozenset(ALL)
    refused = pytest.raises(Busy, match=rf"a backup of vda is running \({MOMENT}\)")
    with nullcontext() if allowed else refused:
        planned(intent, of, files=files)


@each("chain", [ACTIVE, COVERED_BY_N])
def test_overlay_is_merged_once_nothing_is_read_any_more_and_by_a_commit_alone(chain: str) -> None:
    of = graph(vda=chain)
    files = FakeFiles(of)
    merge = Commit("vda", top=OVERLAY, base=COVERED, folded="remove")
    files.readers = frozenset(ALL)
    with pytest.raises(Busy, match="a backup of vda is running"):
        planned(merge, of, files=files)
    files.readers = frozenset(ALL[:1])
    assert planned(merge, of, files=files).folded == (OVERLAY,)
    with pytest.raises(Busy, match="a backup of vda is running"):
        planned(Stream("vda", base=COVERED if chain == COVERED_BY_N else "base"), of, files=files)


def test_backup_of_one_disk_is_no_obstacle_for_another() -> None:
    of = graph(vda=ACTIVE, vdb="other <- o1*")
    files = FakeFiles(of)
    files.readers = frozenset(ALL)
    assert planned(Commit("vdb"), of, files=files).disks == ("vdb",)
    with pytest.raises(Busy, match="a backup of vda"):
        planned(Snapshot("x", inside=True), of, files=files)


def test_overlay_of_a_backup_whose_client_was_killed_is_no_obstacle() -> None:
    of = graph(vda=ACTIVE)
    assert planned(Commit("vda"), of, files=FakeFiles(of)).folded == (OVERLAY, COVERED)
