from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import NotInChain
from qmpsnap.model.features import Features
from qmpsnap.model.files import Files
from qmpsnap.model.moments import find_moments
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.plan.intent import Commit, Mirror, PrepareRevert, Revert, RevertIncoming, Stream
from qmpsnap.plan.lost import losses, retire, unfound
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.steps import FinishRecord, KeepLost, RetireFile
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_machine import a_machine
from tests.plan.moments import ID, MOMENT, O1, O2, S1, TWO, files_of
from tests.plan.scenes import NOW, STATE, planned

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent

ALONE = MomentRecord("a", "alone", NOW, {"vda": O1}, {"vda": S1}, {"vda": (S1,)}, directory=STATE)
FOLDED = IntentRecord(
    "qmpsnap-commit-keep-1",
    "commit",
    NOW,
    chains={"vda": (O1, S1)},
    folded=(O1,),
    policy="rename",
    renames={O1: f"{O1}.invalid"},
    invalid=(S1,),
    disk="vda",
    directory=STATE,
)


def test_losses_are_noted_where_other_disks_have_the_moment_and_it_goes_where_none_has() -> None:
    kept, gone = losses((MOMENT, ALONE), "vda", folded=(O1,), written=(O1, S1))
    assert (kept, gone) == ((KeepLost(STATE, ID, "vda"),), ("a",))


def test_losses_are_noted_of_moments_left_aside_whose_layer_is_written_into() -> None:
    assert losses((ALONE,), "vda", folded=("/r1",), written=("/r1", S1)) == (
        (KeepLost(STATE, "a", "vda"),),
        (),
    )


@pytest.mark.parametrize(
    "record", [replace(MOMENT, lost=("vda",)), replace(MOMENT, covered={"vda": "/x"}), FOLDED], ids=str
)
def test_losses_are_none_of_what_is_lost_already_or_on_another_layer(record: MomentRecord) -> None:
    assert losses((record,), "vda", folded=(O1,), written=(O1, S1)) == ((), ())


def test_commit_notes_the_losses_before_its_record_goes() -> None:
    steps = planned(Commit("vda", base="s1"), TWO, files=files_of(""), state_dir=STATE).stages[-1].steps
    assert [type(step) for step in steps] == [RetireFile, KeepLost, FinishRecord]


@pytest.mark.parametrize(
    ("policy", "kinds"),
    [("rename", [RetireFile, KeepLost]), ("remove", [RetireFile, KeepLost]), ("keep", [KeepLost]), ("", [])],
)
def test_retire_notes_the_losses_of_a_commit_whose_client_went_away(policy: str, kinds: list[type]) -> None:
    steps = retire(replace(FOLDED, policy=policy), (MOMENT,))
    assert [type(step) for step in steps] == kinds


def test_retire_ends_the_moments_that_were_folded() -> None:
    assert retire(FOLDED, (ALONE,))[-1] == FinishRecord(STATE, (), ("a",))


@pytest.mark.parametrize(
    ("intent", "mode"), [(Revert("c1"), ""), (Revert("c1"), "in-place"), (PrepareRevert("c1"), "stop")]
)
def test_nobody_goes_back_to_what_is_lost_on_a_disk(intent: Intent, mode: str) -> None:
    now = graph(vda="base <- s1 <- n1*", vdb="data.raw <- o2*")
    files = files_of(mode, now)
    planned(intent, now, files=files)
    files.records[:] = [replace(one, lost=("vda",)) for one in files.records]  # type: ignore[arg-type]
    with pytest.raises(NotInChain, match=r"s1\.qcow2 holds no moment any more"):
        planned(intent, now, files=files)


def test_a_disk_that_is_left_may_have_lost_its_moment() -> None:
    files = files_of("")
    files.records[:] = [replace(MOMENT, lost=("vda",))]
    assert planned(Revert("c1", leave=("vda",)), TWO, files=files).disks == ("vdb",)


def test_memory_is_not_loaded_over_what_is_lost() -> None:
    files = files_of("stop")
    files.put(O1, backing=S1)
    files.put(O2, backing="/images/data.raw")
    waits = a_machine(TWO, status="inmigrate", running=False)
    planned(RevertIncoming("c1"), TWO, files=files, machine=waits)
    files.records[:] = [replace(one, lost=("vda",)) for one in files.records]  # type: ignore[arg-type]
    with pytest.raises(NotInChain, match="a commit has written into it"):
        planned(RevertIncoming("c1"), TWO, files=files, machine=waits)


def test_moments_say_on_which_disk_they_are_lost() -> None:
    (moment,) = find_moments(TWO, (replace(MOMENT, lost=("vda",)),)).moments
    assert {part.disk: part.invalid for part in moment.held} == {"vda": True, "vdb": False}


def test_unfound_are_the_moments_beside_a_base_image_that_leaves_the_chain() -> None:
    both = (replace(MOMENT, directory="/images/base.qmpsnap"), replace(ALONE, directory="/elsewhere"))
    files = Files(shared=True, records=both)
    machine = Scene(TWO, files, (), Features(frozenset()), NOW)
    (alone,) = unfound(machine, TWO)
    assert "the snapshots alone are not listed" in alone
    streamed = graph(vda="o1*", vdb="data.raw <- o2*")
    assert [note.split()[2] for note in unfound(machine, streamed)] == ["c1", "alone"]
    assert unfound(replace(machine, state_dir="/elsewhere"), streamed)[0].split()[2] == "c1"


@pytest.mark.parametrize("intent", [Stream("vda"), Mirror("vda", "/new/copy.qcow2", "pivot")])
def test_stream_and_mirror_say_which_moments_are_not_found_any_more(intent: Intent) -> None:
    files = files_of("")
    files.records[:] = [replace(MOMENT, directory="/images/base.qmpsnap")]
    notes = planned(intent, TWO, files=files).notes
    assert [note for note in notes if "the snapshots c1 are not listed afterwards" in note]
