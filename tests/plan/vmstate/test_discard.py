from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, Refused, StillNeeded, WouldLose
from qmpsnap.model.graph import Bitmap, InternalSnapshot
from qmpsnap.plan.commands.block import check_active
from qmpsnap.plan.intent import Revert
from qmpsnap.testing.drawing import chain, graph
from tests.each import each
from tests.plan.moments import MOMENT, O1, TWO, covered_by_us, files_of
from tests.plan.scenes import STATE, planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.testing.fake_files import FakeFiles

GIVE_UP = Revert("c1", discard=True)
FOREIGN = graph(chain("x*"), TWO.disks["vdb"])
INSIDE = graph(with_layer(TWO.disks["vda"], 0, snapshots=(InternalSnapshot("1", "in"),)), TWO.disks["vdb"])
TRACKED = graph(with_layer(TWO.disks["vda"], 0, bitmaps=(Bitmap("b", persistent=True),)), TWO.disks["vdb"])


def foreign() -> FakeFiles:
    files = files_of("", FOREIGN)
    files.follow(TWO)
    return files


def cloned() -> FakeFiles:
    files = files_of("")
    files.put("/images/clone.qcow2", backing=O1)
    return files


def unreadable() -> FakeFiles:
    files = files_of("")
    files.unreadable = ("/images: permission denied",)
    return files


REFUSED: dict[str, tuple[Graph, FakeFiles, type[Refused], str]] = {
    "foreign": (
        FOREIGN,
        foreign(),
        WouldLose,
        "x.qcow2, to which vda writes, is not the overlay",
    ),
    "clone": (TWO, cloned(), StillNeeded, "backing file of /images/clone.qcow2"),
    "internal": (INSIDE, files_of("", INSIDE), WouldLose, "internal snapshot 'in' of"),
    "bitmap": (TRACKED, files_of("", TRACKED), WouldLose, "persistent bitmap 'b' of"),
    "unreadable": (TWO, unreadable(), InvalidTarget, "cannot search for images"),
}


@each("case", REFUSED)
def test_discard_refuses_what_is_not_ours_alone(case: str) -> None:
    drawn, files, error, text = REFUSED[case]
    planned(Revert("c1"), drawn, files=files, state_dir=STATE)
    with pytest.raises(Refused, match=text) as caught:
        planned(GIVE_UP, drawn, files=files, state_dir=STATE)
    assert type(caught.value) is error
    assert "omit --discard to keep it" in caught.value.hint


def test_discard_gives_up_an_overlay_that_a_revert_made() -> None:
    drawn = covered_by_us(graph(chain("base <- s1 <- r1*"), TWO.disks["vdb"]))
    files = files_of("", drawn)
    files.records[:] = [replace(MOMENT, branches=({"vda": "/images/r1.qcow2"},))]
    plan = planned(GIVE_UP, drawn, files=files)
    assert "/images/r1.qcow2" in [
        step.arguments["file"] for step in plan.steps if step.command == "retire-file"
    ]


@each("discard", [False, True])
def test_discard_asks_once_more_what_the_disks_write_to_right_before_they_move(*, discard: bool) -> None:
    plan = planned(Revert("c1", discard=discard), TWO, files=files_of(""), state_dir=STATE)
    _, go, _ = plan.stages
    disks = [TWO.disks["vda"], TWO.disks["vdb"]]
    assert [step for step in plan.steps if step.command == "check-active"] == [check_active(disks)] * discard
    assert [step.command for step in go.steps][1 + discard] == "qom-set"
