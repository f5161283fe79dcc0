from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, NotFound, NotInChain, Refused, TargetExists, Unsupported
from qmpsnap.model.files import DirFact
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.memory import MemoryFact
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.plan.intent import MakeStore
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.moments import ID, MEMORY, S1, STORE, TWO, files_of, kinds
from tests.plan.scenes import STATE, planned

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpsnap.testing.fake_files import FakeFiles

MAKE = MakeStore("c1")


@each("mode", ["stop", "background"])
def test_store_is_written_completed_and_recorded_before_the_stream_goes(mode: str) -> None:
    plan = planned(MAKE, TWO, files=files_of(mode))
    assert kinds(*plan.steps) == [
        *("write-record", "create-store"),
        *("blockdev-add", "snapshot-save", "await-job", "job-dismiss", "blockdev-del"),
        *("seal-store", "keep-store", "finish-record"),
    ]
    assert [stage.tidy for stage in plan.stages] == [False, False, False, True]
    assert (plan.chains_after, plan.moves) == (plan.chains_before, ())
    record = plan.record
    assert record is not None
    assert record.state == KeptState(
        "in-place", STORE, f"qmpsnap-{record.id[-8:]}", True, a_machine(TWO).fingerprint, record.id[-8:]
    )
    keep = plan.steps[-2]
    assert keep.arguments == {"directory": STATE, "id": ID, "by": record.id, "instead_of": MEMORY}
    assert from_json(to_json(record)) == record
    assert record.origin is not None
    assert not record.origin.running  # nobody who finishes it resumes a guest that it did not pause


def test_store_is_made_like_a_layer_and_lies_beside_the_stream_wherever_that_is() -> None:
    files = files_of("background")
    (moment,) = files.records
    assert isinstance(moment, MomentRecord)
    assert moment.state is not None
    files.records[:] = [replace(moment, state=replace(moment.state, file="/fast/m 1"))]
    files.memories["/fast/m 1"] = replace(files.memories.pop(MEMORY), path="/fast/m 1")
    plan = planned(MAKE, TWO, files=files)
    (create,) = [step for step in plan.steps if step.command == "create-store"]
    token = plan.operation_id[-8:]
    assert create.arguments == {"file": f"/fast/m 1.vmstate.qcow2.{token}.partial", "like": S1}


def cut(files: FakeFiles) -> None:
    files.memories[MEMORY] = MemoryFact(MEMORY, 7, problem="it was cut")


def lost(files: FakeFiles) -> None:
    (moment,) = files.records
    assert isinstance(moment, MomentRecord)
    files.records[:] = [replace(moment, lost=("vda",))]


def taken(files: FakeFiles) -> None:
    files.put(STORE)


def full(files: FakeFiles) -> None:
    files.directories["/images"] = DirFact("/images", exists=True, writable=True, free_bytes=1 << 20)


@each(
    ("mode", "change", "error", "text"),
    [
        ("", None, Unsupported, "'c1' has no memory"),
        ("in-place", None, TargetExists, f"'c1' has a store already: {STORE}"),
        ("stop", cut, InvalidTarget, "it was cut"),
        ("stop", lost, NotInChain, "no longer holds a snapshot"),
        ("stop", taken, TargetExists, "exists already and was not touched"),
        ("stop", full, InvalidTarget, "bytes free; the guest's memory may need"),
    ],
)
def test_store_is_refused(
    mode: str, change: Callable[[FakeFiles], None] | None, error: type[Refused], text: str
) -> None:
    files = files_of(mode)
    if change is not None:
        change(files)
    with pytest.raises(error, match=text):
        planned(MAKE, TWO, files=files)


def test_store_of_no_checkpoint_is_refused() -> None:
    with pytest.raises(NotFound, match="there is no snapshot 'c2'"):
        planned(MakeStore("c2"), TWO, files=files_of("stop"))
