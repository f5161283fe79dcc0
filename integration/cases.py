"""The operations that are interrupted, each on known images; see `harness.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from integration.known_images import KIB, MIB
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Delete,
    Mirror,
    Revert,
    Save,
    Snapshot,
    Stream,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from qmpsnap.plan.intent import Intent
    from qmpsnap.vm import VM


@dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        disks: Drawing of each disk's images.
        intent: What is wanted, by the folder that holds a folder of each disk.
        after: Files that there are once it is done, relative to the folder; records left out.
        reads: What each file then reads, as a number of layers (see `known_images.content`).
        writes_into: Names of the layers that hold no moment from the job's start on.
        inside: Of a case that changes no chain: internal snapshots of active layers, by disk.
        inside_after: The same once it is done.
        checkpoint: Checkpoint that the machine took before; its disks were written to since (`LATER`).
        runs: Whether the guest runs, and has to run afterwards.
        ends: Run state once it is done, where the guest ran.
        prepare: What is done to the machine beforehand, by a client of its own.
        halfway: Names of another good end: the overlays stay, and no moment has them.
    """

    disks: Mapping[str, str]
    intent: Callable[[str], Intent]
    after: tuple[str, ...]
    reads: Mapping[str, int]
    writes_into: tuple[str, ...] = ()
    inside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inside_after: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checkpoint: str = ""
    runs: bool = False
    ends: str = "running"
    prepare: Callable[[VM], Awaitable[object]] | None = None
    halfway: tuple[str, ...] = ()

    @property
    def goes_back(self):
        """Whether the disks' bytes are those of the checkpoint once it is done."""
        return bool(self.checkpoint) and self.inside == self.inside_after


LATER = (0xE1, 6 * MIB, 64 * KIB)

TWO_DISKS = {
    "disks": {"vda": "base <- s1", "vdb": "base"},
    "after": ("vda/base.qcow2", "vda/s1.qcow2", "vdb/base.qcow2"),
    "reads": {"vda/base": 1, "vda/s1": 2, "vdb/base": 1},
}
TAKEN = {"inside": {"vda": ("old",)}, "inside_after": {"vda": ("old", "c1"), "vdb": ("c1",)}}
KEPT = {name: {"vda": ("c1",), "vdb": ("older", "c1")} for name in ("inside", "inside_after")}
ON = (*TWO_DISKS["after"], "vda/base.ck.qcow2", "vdb/base.ck.qcow2")
ON_READS = {**TWO_DISKS["reads"], "vda/base.ck": 2, "vdb/base.ck": 1}
BACK = ("vda/base.ck-#.qcow2", "vdb/base.ck-#.qcow2")
GONE = {"inside": KEPT["inside"], "inside_after": {"vdb": ("older",)}}


async def _moments(vm, *names, back=""):
    """Take these snapshots, and revert to one of them: what is above it is then a branch."""
    for name in names:
        await vm.snapshot(name)
    if back:
        await vm.revert(back)


CASES = {
    "snapshot": Case(
        {"vda": "base <- s1", "vdb": "base"},
        lambda _: Snapshot("sn"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/base.sn.qcow2", "vdb/base.qcow2", "vdb/base.sn.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vda/base.sn": 2, "vdb/base": 1, "vdb/base.sn": 1},
    ),
    "snapshot inside": Case(
        {"vda": "base <- s1", "vdb": "base"},
        lambda _: Snapshot("i1", inside=True),
        ("vda/base.qcow2", "vda/s1.qcow2", "vdb/base.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vdb/base": 1},
        inside={"vda": ("old",)},
        inside_after={"vda": ("old", "i1"), "vdb": ("i1",)},
    ),
    "delete inside": Case(
        {"vda": "base <- s1"},
        lambda _: Delete("old"),
        ("vda/base.qcow2", "vda/s1.qcow2"),
        {"vda/base": 1, "vda/s1": 2},
        inside={"vda": ("older", "old")},
        inside_after={"vda": ("older",)},
    ),
    "checkpoint inside": Case(intent=lambda _: Checkpoint("c1", "internal"), **TWO_DISKS, **TAKEN),
    "checkpoint by jobs": Case(
        intent=lambda _: Checkpoint("c1", "internal", via="jobs"), **TWO_DISKS, **TAKEN, runs=True
    ),
    "revert inside": Case(intent=lambda _: Revert("c1"), **TWO_DISKS, **KEPT, checkpoint="c1", runs=True),
    "revert by jobs": Case(
        intent=lambda _: Revert("c1", via="jobs"), **TWO_DISKS, **KEPT, checkpoint="c1", runs=True
    ),
    "revert by jobs, paused": Case(
        intent=lambda _: Revert("c1", via="jobs"), **TWO_DISKS, **KEPT, checkpoint="c1"
    ),
    "delete checkpoint": Case(intent=lambda _: Delete("c1"), **TWO_DISKS, **GONE, checkpoint="c1"),
    "delete checkpoint by jobs": Case(
        intent=lambda _: Delete("c1", via="jobs"), **TWO_DISKS, **GONE, checkpoint="c1"
    ),
    "stream": Case(
        {"vda": "base <- s1 <- s2 <- s3"},
        lambda _: Stream("vda", base="base"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/s2.qcow2", "vda/s3.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vda/s2": 3, "vda/s3": 4},
    ),
    "commit": Case(
        {"vda": "base <- s1 <- s2 <- s3"},
        lambda _: Commit("vda", top="s2", base="base"),
        ("vda/base.qcow2", "vda/s1.qcow2.invalid", "vda/s2.qcow2.invalid", "vda/s3.qcow2"),
        {"vda/base": 3, "vda/s3": 4},
        ("vda/base", "vda/s1"),
    ),
    "active commit": Case(
        {"vda": "base <- s1 <- s2"},
        lambda _: Commit("vda"),
        ("vda/base.qcow2", "vda/s1.qcow2.invalid", "vda/s2.qcow2.invalid"),
        {"vda/base": 3},
        ("vda/base", "vda/s1"),
    ),
    "commit that keeps": Case(
        {"vda": "base <- s1 <- s2"},
        lambda _: Commit("vda", keep_overlay=True),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/s2.qcow2"),
        {"vda/base": 3, "vda/s2": 3},
        ("vda/base", "vda/s1"),
    ),
    "delete down": Case(
        {"vda": "base <- s1"},
        lambda _: Delete("m1"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/base.m2.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vda/base.m2": 2},
        writes_into=("vda/s1",),
        prepare=lambda vm: _moments(vm, "m1", "m2"),
    ),
    "delete up": Case(
        {"vda": "base"},
        lambda _: Delete("m1"),
        ("vda/base.qcow2", "vda/base.m1.qcow2", "vda/base.m2.qcow2", "vda/base.m2-#.qcow2"),
        {"vda/base": 1, "vda/base.m1": 1, "vda/base.m2": 1},
        prepare=lambda vm: _moments(vm, "m0", "m1", "m2", back="m2"),
    ),
    "mirror with pivot": Case(
        {"vda": "base <- s1"},
        lambda folder: Mirror("vda", f"{folder}/vda/copy.qcow2", ending="pivot"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/copy.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vda/copy": 2},
    ),
    "mirror that ends": Case(
        {"vda": "base <- s1"},
        lambda folder: Mirror("vda", f"{folder}/vda/copy.qcow2", ending="finish"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/copy.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vda/copy": 2},
    ),
    "checkpoint stop": Case(
        TWO_DISKS["disks"],
        lambda _: Checkpoint("ck"),
        (*ON, "vda/base.ck.memory"),
        ON_READS,
        runs=True,
    ),
    "checkpoint background": Case(
        TWO_DISKS["disks"],
        lambda _: Checkpoint("ck", "background"),
        (*ON, "vda/base.ck.memory"),
        ON_READS,
        runs=True,
        halfway=ON,
    ),
    "checkpoint in place": Case(
        TWO_DISKS["disks"],
        lambda _: Checkpoint("ck", "in-place"),
        (*ON, "vda/base.ck.vmstate.qcow2"),
        ON_READS,
        runs=True,
    ),
    "revert in place": Case(
        TWO_DISKS["disks"],
        lambda _: Revert("ck"),
        (*ON, "vda/base.ck.vmstate.qcow2", *BACK),
        ON_READS,
        runs=True,
        prepare=lambda vm: vm.checkpoint("ck", mode="in-place"),
    ),
    "revert disks": Case(
        TWO_DISKS["disks"],
        lambda _: Revert("ck"),
        (*ON, *BACK),
        ON_READS,
        runs=True,
        prepare=lambda vm: vm.snapshot("ck"),
    ),
    "revert prepare": Case(
        TWO_DISKS["disks"],
        lambda _: Revert("ck", into="new"),
        (*ON, *BACK),
        ON_READS,
        runs=True,
        prepare=lambda vm: vm.snapshot("ck"),
    ),
    "save": Case(
        TWO_DISKS["disks"],
        lambda folder: Save(f"{folder}/vm.state"),
        (*TWO_DISKS["after"], "vm.state"),
        TWO_DISKS["reads"],
        runs=True,
        ends="postmigrate",
    ),
}
