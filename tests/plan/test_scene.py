from __future__ import annotations

import pytest

from qmpsnap.errors import AmbiguousName, NotFound
from qmpsnap.model.features import Features
from qmpsnap.model.files import Files
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.plan.scene import Scene
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.plan.moments import MOMENT, TWO
from tests.plan.scenes import NOW, STATE, job, scene, with_layer

ONE = graph(vda="base <- s1*")


def test_names_in_use_are_those_of_nodes_jobs_and_records() -> None:
    files = FakeFiles(ONE)
    files.records += [
        IntentRecord("intent", "commit", NOW, directory=STATE),
        MomentRecord("moment", "n1", NOW, directory=STATE),
    ]
    assert scene(files=files, jobs=(job("j"),)).names == {"vda-base", "vda-s1", "j", "intent"}


def with_inside(files: Files) -> Scene:
    inside = with_layer(TWO.disks["vdb"], 0, snapshots=(InternalSnapshot("1", "c1"),))
    return Scene(graph(TWO.disks["vda"], inside), files, (), Features(frozenset()), NOW)


def test_moment_is_the_one_of_that_name() -> None:
    assert with_inside(Files()).moment("c1").kind == "internal"


def test_moment_refuses_a_name_of_two() -> None:
    with pytest.raises(AmbiguousName) as caught:
        with_inside(Files(records=(MOMENT,))).moment("c1")
    assert caught.value.message == "'c1' is the name of 2 snapshots: internal on vdb; external on vda, vdb"


def test_moment_says_which_there_are_and_what_was_not_read() -> None:
    files = Files(bad_records=("/d/base.qmpsnap: it belongs to user 1000",))
    with pytest.raises(NotFound) as caught:
        with_inside(files).moment("c2")
    assert caught.value.hint == "there are: 'c1'; not read: /d/base.qmpsnap: it belongs to user 1000"
