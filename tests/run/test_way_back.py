"""What is said of overlays that stay; how an operation is taken back is tested through the executor."""

from __future__ import annotations

from qmpsnap.plan.intent import Checkpoint
from qmpsnap.plan.steps import TakeSnapshots
from qmpsnap.run.course import Course
from qmpsnap.run.way_back import WayBack
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from tests.plan.scenes import planned


def test_way_back_says_what_folds_an_overlay_so_that_it_can_be_typed() -> None:
    drawn = graph(chain("base <- s1*", directory="/my images"))
    course = Course(planned(Checkpoint("c1", "background"), drawn), drawn)
    course.done += [step for step in course.plan.steps if isinstance(step, TakeSnapshots)]
    (left,) = WayBack(FakeTarget(drawn), course)._overlays()
    fold = "qmpsnap commit vda --top '/my images/base.c1.qcow2' --base '/my images/s1.qcow2'"
    assert left == f"/my images/base.c1.qcow2 (the guest writes to it: {fold} folds it)"
