from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Unsupported, WouldLose
from qmpsnap.model.graph import Bitmap, Disk, InternalSnapshot, Layer
from qmpsnap.plan.checks.disk import refuse_empty, refuse_loss, refuse_read_only
from qmpsnap.testing.drawing import graph

ONE = graph(vda="base <- s1*")
OVERLAY = Layer("o", "/a/b/o.qcow2", "qcow2", 1, backing="../base.qcow2")
BASE = Layer("b", "/a/base.qcow2", "qcow2", 1)


def test_refuse_empty_returns_a_disk_with_a_medium() -> None:
    assert refuse_empty(ONE.disks["vda"]) is ONE.disks["vda"]
    with pytest.raises(Unsupported, match="disk 'cd0' has no medium"):
        refuse_empty(Disk("cd0"))


def test_refuse_loss_names_everything_that_would_be_lost() -> None:
    holds = replace(
        OVERLAY,
        snapshots=(InternalSnapshot("1", "x"),),
        bitmaps=(Bitmap("b", persistent=True), Bitmap("t")),
    )
    with pytest.raises(WouldLose) as caught:
        refuse_loss([BASE, holds], allowed=False)
    assert caught.value.what == (
        "internal snapshot 'x' of /a/b/o.qcow2",
        "persistent bitmap 'b' of /a/b/o.qcow2",
    )
    refuse_loss([holds], allowed=True)
    refuse_loss([BASE], allowed=False)


def test_read_only_disk_is_refused_and_a_writable_or_empty_one_is_not() -> None:
    refuse_read_only(ONE.disks["vda"], "stream")
    refuse_read_only(Disk("cd0", read_only=True), "stream")
    with pytest.raises(Unsupported, match="disk 'vda' is read-only") as caught:
        refuse_read_only(replace(ONE.disks["vda"], read_only=True), "stream")
    assert (caught.value.feature, caught.value.hint) == (
        "stream of a read-only disk",
        "attach it read-write, or shut the machine off and work on its images",
    )
