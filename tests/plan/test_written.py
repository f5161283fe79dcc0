from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import MachineDiffers
from qmpsnap.model.layer_stamps import WrittenLayer
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.commands.records import record_of
from qmpsnap.plan.intent import Commit, Revert, Stream
from qmpsnap.plan.written import accepted, written_note
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.moments import BASE, DATA, S1, TWO, files_of, written_to
from tests.plan.scenes import NOW, STATE, planned

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent

LAYER = WrittenLayer(
    "c1", "2024-05-01T12:00:00.25+00:00", "vda", BASE, "2024-05-02T08:30:00+02:00", 1_000_000_007
)


def test_a_note_names_the_file_and_both_times() -> None:
    assert written_note(LAYER) == (
        "/images/base.qcow2, from which 'c1' of vda is read, was written to at 2024-05-02 06:30:00 UTC, "
        "after the snapshot (2024-05-01 12:00:00 UTC), and not by qmpsnap: it may hold other data by now"
    )
    assert accepted(LAYER) == ("touch", "-d", "@1.000000007", BASE)


def test_a_revert_of_disks_notes_it() -> None:
    plain = planned(Revert("c1"), TWO, files=files_of(""))
    assert planned(Revert("c1"), TWO, files=written_to(files_of(""))).notes == plain.notes
    *notes, note = planned(Revert("c1"), TWO, files=written_to(files_of(""), BASE)).notes
    assert tuple(notes) == plain.notes
    assert note.startswith("/images/base.qcow2, from which 'c1' of vda is read, was written to at 1970-01-01")
    left = planned(Revert("c1", leave=("vda",)), TWO, files=written_to(files_of(""), BASE))
    assert "not by qmpsnap" not in " ".join(left.notes)


@each("way", ["in-place", "stop", ""])
def test_a_new_qemu_is_prepared_and_the_note_says_it(way: str) -> None:
    plan = planned(Revert("c1", into="new"), TWO, files=written_to(files_of(way), S1))
    assert "/images/s1.qcow2, from which 'c1' of vda is read, was written to" in plan.notes[-1]


def test_memory_is_not_loaded_with_other_disks() -> None:
    planned(Revert("c1"), TWO, files=written_to(files_of("in-place")))
    with pytest.raises(MachineDiffers, match="the disks may no longer be those of 'c1'") as caught:
        planned(Revert("c1"), TWO, files=written_to(files_of("in-place"), BASE, DATA))
    assert [each.split(",")[0] for each in caught.value.differences] == [BASE, DATA]
    assert "qmpsnap revert c1 --prepare" in caught.value.hint
    assert f"touch -d @0.000000100 {BASE}; touch -d @0.000000100 {DATA}" in caught.value.hint


def test_a_record_without_stamps_is_as_before() -> None:
    planned(Revert("c1"), TWO, files=written_to(files_of("in-place"), BASE, DATA, stamped=False))


@each(
    ("intent", "renewed"),
    [
        (Stream("vda", into="s2", base="base"), {"n3", "n4"}),
        (Commit("vda", top="s1", base="base"), {"n1", "n2", "n3", "n4"}),
        (Commit("vda", top="s2", base="s1"), {"n2", "n3", "n4"}),
        (Stream("vda", base="base"), set()),
    ],
)
def test_a_job_renews_the_stamps_of_the_moments_whose_layers_it_writes_to(
    intent: Intent, renewed: set[str]
) -> None:
    drawn = graph(vda="base <- s1 <- s2 <- s3 <- s4*")
    names = [layer.file for layer in drawn.disks["vda"].layers]
    files = FakeFiles(drawn)
    for at, name in enumerate(("n4", "n3", "n2", "n1")):  # n4 is what s3 holds
        below = tuple(names[at + 1 :])
        moment = MomentRecord(
            name, name, NOW, {"vda": names[at]}, {"vda": below[0]}, {"vda": below}, directory=STATE
        )
        files.records.append(replace(moment, stamps=dict.fromkeys(below, "7-1-00000000")))
    record = record_of(planned(intent, drawn, files=files).steps[0])
    assert record is not None
    assert record.renews == dict.fromkeys(renewed, STATE)
