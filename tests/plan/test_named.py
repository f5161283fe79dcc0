from __future__ import annotations

import pytest

from qmpsnap.errors import AmbiguousName, NotFound
from qmpsnap.model.features import Features
from qmpsnap.model.files import Files
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.plan.named import moment_named
from qmpsnap.plan.scene import Scene
from qmpsnap.testing.drawing import graph
from tests.plan.moments import MOMENT, TWO
from tests.plan.scenes import NOW, with_layer


def scene(files: Files) -> Scene:
    inside = with_layer(TWO.disks["vdb"], 0, snapshots=(InternalSnapshot("1", "c1"),))
    return Scene(graph(TWO.disks["vda"], inside), files, (), Features(frozenset()), NOW)


def test_moment_named_is_the_one_of_that_name() -> None:
    assert moment_named("c1", scene(Files())).kind == "internal"


def test_moment_named_refuses_a_name_of_two() -> None:
    with pytest.raises(AmbiguousName, match="name of 2 snapshots"):
        moment_named("c1", scene(Files(records=(MOMENT,))))


def test_moment_named_says_which_there_are_and_what_was_not_read() -> None:
    files = Files(bad_records=("/d/base.qmpsnap: it belongs to user 1000",))
    with pytest.raises(NotFound) as caught:
        moment_named("c2", scene(files))
    assert caught.value.hint == "there are: 'c1'; not read: /d/base.qmpsnap: it belongs to user 1000"
