"""What is said of overlays that stay; how an operation is taken back is tested through the executor."""

from __future__ import annotations

from qmpsnap.plan.intent import Checkpoint
from qmpsnap.run.journal import Journal
from qmpsnap.run.rollback import Rollback
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from tests.plan.scenes import planned


def test_way_back_says_what_folds_an_overlay_so_that_it_can_be_typed() -> None:
    drawn = graph(chain("base <- s1*", directory="/my images"))
    journal = Journal(planned(Checkpoint("c1", "background"), drawn), drawn)
    journal.done += [step for step in journal.plan.steps if step.way == "take"]
    (left,) = Rollback(FakeTarget(drawn), journal)._overlays()
    fold = "qmpsnap commit vda --top '/my images/base.c1.qcow2' --base '/my images/s1.qcow2'"
    assert left == f"/my images/base.c1.qcow2 (the guest writes to it: {fold} folds it)"
