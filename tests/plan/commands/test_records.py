from __future__ import annotations

import json
from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.commands.records import (
    finish_record,
    keep_branch,
    keep_link,
    keep_lost,
    keep_moment,
    keep_place,
    keep_store,
    record_of,
    write_record,
)
from qmpsnap.plan.commands.state import loadvm
from tests.each import each
from tests.model.records import stages
from tests.plan.commands.flags import flags

if TYPE_CHECKING:
    from qmpsnap.model.step import Step

JOB = "qmpsnap-commit-keep-00000000"
RECORD = IntentRecord(JOB, "commit", "2024-05-01T12:00:00+00:00")


def test_a_record_that_is_written_is_removed_again() -> None:
    step = write_record("/r", RECORD)
    assert (step.on, step.command) == ("host", "write-record")
    assert step.arguments == {"directory": "/r", "id": JOB}
    assert record_of(step) == RECORD
    assert (flags(step), step.undo, step.effect) == ("", (finish_record("/r", (JOB,)),), None)


def test_the_record_of_a_revert_inside_images_is_removed_in_any_run_state() -> None:
    assert flags(write_record("/r", replace(RECORD, stages=stages(loadvm("c1"))))) == "restores"


@each(
    ("step", "command", "arguments", "set_flags"),
    [
        (finish_record("/r", (JOB,)), "finish-record", {"ids": [JOB]}, ""),
        (finish_record("/r", (), ("i",)), "finish-record", {"ids": [], "moments": ["i"]}, ""),
        (keep_moment("/r", "i", "n1"), "keep-moment", {"id": "i", "name": "n1"}, ""),
        (
            keep_branch("/r", "i", {"vda": "/o"}),
            "keep-branch",
            {"id": "i", "overlays": {"vda": "/o"}},
            "owed",
        ),
        (
            keep_store("/r", "i", by="j", instead_of="/m"),
            "keep-store",
            {"id": "i", "by": "j", "instead_of": "/m"},
            "owed",
        ),
        (keep_link("/r", "i"), "keep-link", {"id": "i"}, ""),
        (keep_link("/r", "i", ("vda",)), "keep-link", {"id": "i", "disks": ["vda"]}, ""),
        (keep_lost("/r", "i", "vda"), "keep-lost", {"id": "i", "disk": "vda"}, "owed"),
        (
            keep_place("/r", "i", "vda", ("/s1",), "/b"),
            "keep-place",
            {"id": "i", "disk": "vda", "gone": ["/s1"], "into": "/b"},
            "owed",
        ),
    ],
)
def test_what_is_known_of_a_moment_is_rolled_back_by_nothing(
    step: Step, command: str, arguments: dict[str, object], set_flags: str
) -> None:
    assert (step.on, step.command) == ("host", command)
    assert json.loads(json.dumps(step.arguments)) == {"directory": "/r", **arguments}
    assert (flags(step), step.undo, step.effect, record_of(step)) == (set_flags, (), None, None)
