from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Unsupported
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.commands.files import remove_state
from qmpsnap.plan.commands.records import finish_record, keep_link
from qmpsnap.plan.intent import Delete
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.moments import ID, MEMORY, O1, S1, TWO, files_of, kept
from tests.plan.scenes import NOW, STATE, planned

DELETE = Delete("c1")
NEXT = MomentRecord("n", "c2", NOW, {"vda": "/n"}, {"vda": O1}, {"vda": (O1, S1)}, directory=STATE)
BACK = graph(vda="base <- s1 <- r1*", vdb="data.raw <- r2*")
FORKED = replace(kept("stop"), branches=({"vda": "/images/r1.qcow2", "vdb": "/images/r2.qcow2"},))


def test_delete_removes_the_state_of_that_operation_and_its_record() -> None:
    plan = planned(DELETE, TWO, files=files_of("stop"))
    assert plan.steps == (remove_state(MEMORY, ID, ""), finish_record(STATE, (), (ID,)))
    assert [stage.tidy for stage in plan.stages] == [False, True]


def test_delete_keeps_a_link_while_another_moment_is_backed_by_what_began_there() -> None:
    files = files_of("stop", BACK)
    files.records[:] = [FORKED, NEXT]
    plan = planned(DELETE, BACK, files=files)
    assert plan.steps == (remove_state(MEMORY, ID, ""), keep_link(STATE, ID))


def test_delete_of_the_last_moment_ends_the_links_too() -> None:
    files = files_of("stop", BACK)
    files.records[:] = [replace(FORKED, state=None, deleted=True), replace(NEXT, state=kept("stop").state)]
    plan = planned(Delete("c2"), BACK, files=files)
    assert plan.steps[-1] == finish_record(STATE, (), ("n", ID))
    assert not [step for step in plan.steps if step.command == "keep-link"]


SPACED = graph(chain("base <- s1 <- o1*", directory="/my images"))
FOLD = "qmpsnap commit vda --top '/my images/o1.qcow2' --base '/my images/s1.qcow2'"


@each("mode", ["stop", ""])
def test_delete_says_what_folds_the_overlay_so_that_it_can_be_typed(mode: str) -> None:
    files = FakeFiles(SPACED)
    o1, s1 = {"vda": "/my images/o1.qcow2"}, {"vda": "/my images/s1.qcow2"}
    files.records.append(
        replace(kept(mode), overlays=o1, covered=s1, chains={}, directory="/my images/base.qmpsnap")
    )
    if mode:
        assert planned(DELETE, SPACED, files=files).notes[0].endswith(f": {FOLD}")
        return
    with pytest.raises(Unsupported) as caught:
        planned(DELETE, SPACED, files=files)
    assert caught.value.hint.endswith(f": {FOLD}")
