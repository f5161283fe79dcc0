from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.model.graph import Graph
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.records import keep_continued, link_records
from qmpsnap.plan.intent import Intent, Mirror, Snapshot, Stream
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.plan.scenes import NOW, STATE, planned

BASE, ONE, TWO, FOREIGN = (f"/images/{name}.qcow2" for name in ("base", "one", "two", "foreign"))
COPY = "/images/copy.qcow2"
FIRST = MomentRecord("m1", "first", NOW, {"vda": ONE}, {"vda": BASE}, {"vda": (BASE,)}, directory=STATE)
SECOND = MomentRecord("m2", "second", NOW, {"vda": TWO}, {"vda": ONE}, {"vda": (ONE, BASE)}, directory=STATE)
OURS = graph(vda="base <- one <- two*")
OVER = graph(vda="base <- one <- two <- foreign*")


def steps(intent: Intent, of: Graph) -> tuple[Step, ...]:
    """The steps that keep the two moments findable."""
    files = FakeFiles(of)
    files.records[:] = [FIRST, SECOND]
    names = {"keep-continued", "link-records"}
    return tuple(step for step in planned(intent, of, files=files).steps if step.command in names)


@pytest.mark.parametrize(
    ("intent", "of", "expected"),
    [
        (Stream("vda", base=BASE), OURS, ()),  # the second is found by its overlay, the first by the second
        (Stream("vda"), OURS, (link_records("/images/two.qmpsnap", STATE),)),
        (Stream("vda", base=BASE), OVER, (keep_continued(STATE, "m2", "vda", FOREIGN),)),
        (
            Mirror("vda", COPY, "pivot"),
            OURS,
            (keep_continued(STATE, "m2", "vda", COPY), link_records("/images/copy.qmpsnap", STATE)),
        ),
        (Mirror("vda", COPY, "pivot", sync="top"), OURS, ()),
        (Mirror("vda", COPY, "finish"), OURS, ()),
        (Snapshot("third"), OURS, ()),
        (Snapshot("third"), OVER, (keep_continued(STATE, "m2", "vda", FOREIGN),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_moment_is_hidden_by_a_layer_that_leaves(
    intent: Intent, of: Graph, expected: tuple[Step, ...]
) -> None:
    assert steps(intent, of) == expected


def test_mirror_says_which_snapshots_stay_in_the_layers_that_it_leaves() -> None:
    files = FakeFiles(OURS)
    files.records[:] = [FIRST, replace(SECOND, deleted=True)]
    notes = planned(Mirror("vda", COPY, "pivot"), OURS, files=files).notes
    assert notes == ("the snapshots first stay in layers that vda leaves",)


def test_moment_of_two_disks_is_noted_for_each_though_the_other_still_leads_to_it() -> None:
    both = graph(vda="base <- one*", vdb="data <- more*")
    first = replace(
        FIRST,
        overlays={"vda": ONE, "vdb": "/images/more.qcow2"},
        covered={"vda": BASE, "vdb": "/images/data.qcow2"},
        chains={"vda": (BASE,), "vdb": ("/images/data.qcow2",)},
    )
    files = FakeFiles(both)
    files.records[:] = [first]
    steps = planned(Mirror("vda", COPY, "pivot"), both, files=files).steps
    assert keep_continued(STATE, "m1", "vda", COPY) in steps
