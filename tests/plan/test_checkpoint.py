from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import (
    AmbiguousName,
    BadName,
    NodeBusy,
    NotInChain,
    Refused,
    TargetExists,
    UnknownNode,
    Unsupported,
)
from qmpsnap.model.graph import Filter, InternalSnapshot, Node
from qmpsnap.model.job import JobStatus
from qmpsnap.plan.checkpoint_steps import DelVm, LoadVm, SaveVm, quoted
from qmpsnap.plan.intent import CheckpointIntent, CheckpointInternal, DeleteCheckpoint, RevertInternal
from qmpsnap.testing.drawing import chain, graph
from tests.plan.scenes import job, planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk, Graph


def holding(name: str, *snapshots: InternalSnapshot, layer: int = 0) -> Disk:
    return with_layer(chain("base <- s1*", name=name), layer, snapshots=snapshots)


STATE, PART = InternalSnapshot("1", "c1", 4096), InternalSnapshot("1", "c1")
READ_ONLY = replace(chain("iso*", name="vdr"), read_only=True)
TWO = graph(holding("vda", STATE), holding("vdb", PART), READ_ONLY)


@pytest.mark.parametrize(
    ("intent", "step", "inside"),
    [
        (CheckpointInternal("c2"), SaveVm("c2", ("vda", "vdb")), ["c1", "c2"]),
        (RevertInternal("c1"), LoadVm("c1"), ["c1"]),
        (DeleteCheckpoint("c1"), DelVm("c1", ("vda", "vdb")), []),
    ],
)
def test_checkpoint_is_one_line_of_the_human_monitor(
    intent: CheckpointIntent, step: SaveVm | LoadVm | DelVm, inside: list[str]
) -> None:
    plan = planned(intent, TWO)
    assert plan.steps == (step,)
    assert (plan.disks, plan.chains_after) == (("vda", "vdb"), plan.chains_before)
    assert plan.after is not None
    for name in plan.disks:
        assert [one.name for one in plan.after.disks[name].active.snapshots] == inside


def test_checkpoint_says_word_for_word_what_is_sent() -> None:
    assert SaveVm("c1", ()).arguments == {"command-line": 'savevm "c1"'}
    assert LoadVm("c1").arguments == {"command-line": 'loadvm "c1"'}
    assert DelVm('a"\\\n', ()).arguments == {"command-line": 'delvm "a\\"\\\\\\n"'}
    assert quoted("a b;c") == '"a b;c"'


RAW = graph(holding("vda", STATE), chain("d.raw*", name="vdr"))
FLASH = graph(holding("vda", STATE), chain("vars.raw*", name="pflash1"))
FILTERED = graph(replace(holding("vda", STATE), root="thr", filters=(Filter("thr", "throttle"),)))
LEAKED = graph(holding("vda", STATE), nodes=(Node("leak", "qcow2", "/images/x.qcow2"),))
BARE = graph(holding("vda", STATE), nodes=(Node("bare", "file", "/images/x.qcow2"),))
SAVE, LOAD, DELETE = CheckpointInternal("c2"), RevertInternal("c1"), DeleteCheckpoint("c1")
REFUSED: dict[str, tuple[Graph, CheckpointIntent, type[Refused], str]] = {
    "bad name": (TWO, CheckpointInternal('c"'), BadName, "name for a snapshot"),
    "existing": (TWO, CheckpointInternal("c1"), TargetExists, "'c1' already"),
    "raw": (RAW, SAVE, Unsupported, r"vdr \(/images/d\.raw\) is writable and raw"),
    "raw, load": (RAW, LOAD, Unsupported, "vdr"),
    "raw, delete": (RAW, DELETE, Unsupported, "vdr"),
    "flash": (FLASH, SAVE, Unsupported, "pflash1"),
    "filter": (FILTERED, SAVE, Unsupported, "throttle 'thr'"),
    "leaked": (LEAKED, SAVE, NodeBusy, "'leak'"),
    "leaked file": (BARE, SAVE, NodeBusy, "'bare'"),
    "no disk": (graph(READ_ONLY), SAVE, Unsupported, "no writable qcow2 disk"),
    "load missing": (TWO, RevertInternal("no"), UnknownNode, "'no'"),
    "delete missing": (TWO, DeleteCheckpoint("no"), UnknownNode, "'no'"),
    "disk added": (graph(holding("vda", STATE), chain("n*", name="vdn")), LOAD, NotInChain, "vdn"),
    "below": (graph(holding("vda", STATE, layer=1)), LOAD, NotInChain, "active layer of vda"),
    "delete below": (graph(holding("vda", STATE, layer=1)), DELETE, NotInChain, "below"),
    "disks alone": (graph(holding("vda", PART)), LOAD, Unsupported, "holds disks alone"),
    "double": (graph(holding("vda", STATE, replace(STATE, id="2"))), LOAD, AmbiguousName, "more than one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_checkpoint_refuses_what_cannot_be(case: str) -> None:
    drawn, intent, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(intent, drawn)
    assert type(caught.value) is error


@pytest.mark.parametrize("intent", [SAVE, LOAD, DELETE])
def test_checkpoint_refuses_while_any_job_is_under_way(intent: CheckpointIntent) -> None:
    with pytest.raises(NodeBusy, match="'theirs'"):
        planned(intent, TWO, jobs=(job("theirs"),))
    assert planned(intent, TWO, jobs=(job("theirs", status=JobStatus.CONCLUDED),)).steps


def test_checkpoint_says_the_way_out_for_uefi_variables() -> None:
    with pytest.raises(Unsupported) as caught:
        planned(SAVE, FLASH)
    assert "qcow2 image, or read-only" in caught.value.hint


def test_checkpoint_leaves_nodes_that_others_stand_on_alone() -> None:
    nodes = (Node("f", "file", "/images/s1.qcow2"), Node("t", "throttle", "/images/s1.qcow2"))
    assert planned(SAVE, graph(*TWO.disks.values(), nodes=nodes)).steps
