from __future__ import annotations

from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.plan.scenes import NOW, STATE, job, scene

ONE = graph(vda="base <- s1*")


def test_names_in_use_are_those_of_nodes_jobs_and_records() -> None:
    files = FakeFiles(ONE)
    files.records += [
        IntentRecord("intent", "commit", NOW, directory=STATE),
        MomentRecord("moment", "n1", NOW, directory=STATE),
    ]
    assert scene(files=files, jobs=(job("j"),)).names == {"vda-base", "vda-s1", "j", "intent"}
