from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import InvalidTarget, StillNeeded
from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.block import blockdev_del
from qmpsnap.plan.commands.files import remove_orphan
from qmpsnap.plan.intent import Commit
from qmpsnap.plan.plan import Plan
from qmpsnap.run.journal import Journal
from qmpsnap.run.retirement import Retirement
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.each import each
from tests.plan.scenes import planned

if TYPE_CHECKING:
    from collections.abc import Mapping

DRAWN = graph(vda="base <- s1 <- s2 <- s3*")
LOWER = graph(vda="base <- s1 <- s2*")
BASE, S1, S2, S3 = (f"/images/{name}.qcow2" for name in ("base", "s1", "s2", "s3"))
OTHER, ELSEWHERE = "/images/other.qcow2", "/elsewhere/other.qcow2"


async def retired(intent: Commit, made: Mapping[str, str]) -> list[str]:
    """Files that a commit may put away after images were made meanwhile, each with its backing file."""
    plan = planned(intent, DRAWN)
    assert plan.after is not None
    target = FakeTarget(plan.after)
    target.files.follow(DRAWN)
    target.files.follow(plan.after)
    for file, below in made.items():
        target.files.put(file, backing=below)
    retirement = Retirement(target, Journal(plan, plan.after))
    for step in plan.steps:
        await retirement.refuse(step, ())
    return [step.arguments["file"] for step in plan.steps if step.command == "retire-file"]


FREE: dict[str, tuple[Commit, dict[str, str]]] = {
    "nobody": (Commit("vda", top="s2", base="base"), {}),
    "the folded layers themselves": (Commit("vda"), {}),
    "an image on the base": (Commit("vda", top="s2", base="base"), {OTHER: BASE}),
}


@each("case", FREE)
async def test_files_that_nobody_needs_may_go(case: str) -> None:
    intent, made = FREE[case]
    assert await retired(intent, made)


NEEDED: dict[str, tuple[Commit, dict[str, str], str]] = {
    "the top": (Commit("vda", top="s2", base="base"), {OTHER: S2}, OTHER),
    "a layer between": (Commit("vda", top="s2", base="base"), {OTHER: S1}, OTHER),
    "the active layer": (Commit("vda", folded="remove"), {OTHER: S3}, OTHER),
    "where the caller says": (Commit("vda", look_in=("/elsewhere",)), {ELSEWHERE: S3}, ELSEWHERE),
}


@each("case", NEEDED)
async def test_a_file_on_which_an_image_was_made_stays(case: str) -> None:
    intent, made, by = NEEDED[case]
    with pytest.raises(StillNeeded, match="is still needed: it has become the backing file of") as caught:
        await retired(intent, made)
    assert caught.value.by == (by,)


async def test_a_file_whose_node_could_not_be_closed_is_not_removed() -> None:
    plan = planned(Commit("vda", folded="remove"), DRAWN)
    journal = Journal(plan, DRAWN)
    node = DRAWN.disks["vda"].active.node
    (step,) = (one for one in plan.steps if one.command == "retire-file" and one.arguments["file"] == S3)
    with pytest.raises(InvalidTarget, match="is still open in QEMU"):
        await Retirement(FakeTarget(DRAWN), journal).refuse(step, [blockdev_del(node)])


async def test_an_overlay_that_an_interrupted_run_left_stays_when_an_image_was_made_on_it() -> None:
    left = remove_orphan(S3, S2)
    plan = Plan("snapshot", None, ("vda",), (Stage("clean up", (left,), tidy=True),), LOWER, LOWER)
    target = FakeTarget(LOWER)
    target.files.follow(DRAWN)
    await Retirement(target, Journal(plan, LOWER)).refuse(left, ())
    target.files.put(OTHER, backing=S3)
    with pytest.raises(StillNeeded, match=f"{S3} is still needed") as caught:
        await Retirement(target, Journal(plan, LOWER)).refuse(left, ())
    assert caught.value.by == (OTHER,)
