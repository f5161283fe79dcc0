from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qmpsnap.errors import NotInChain
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.moments import find_moments
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.record_changes import without_layers
from qmpsnap.plan.chain.invalidation import Fates, Fold, fates, healed, streamed
from qmpsnap.plan.commands.files import remove_state
from qmpsnap.plan.commands.records import keep_lost, keep_place
from qmpsnap.plan.intent import Commit, Revert
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.model.records import committing, stages
from tests.plan.moments import BASE, ID, MOMENT, O1, O2, S1, TWO, files_of
from tests.plan.scenes import NOW, STATE, planned

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent

ALONE = MomentRecord("a", "alone", NOW, {"vda": O1}, {"vda": S1}, {"vda": (S1, BASE)}, directory=STATE)
CHAIN = ("/s3", "/s2", "/s1", "/s0", "/base")


def fold(top: int, base: int, *given_up: str) -> Fold:
    """A commit of CHAIN: from `top` to just above `base`."""
    return Fold("vda", CHAIN, CHAIN[top:base], CHAIN[base], given_up)


def named(over: int, *, state: KeptState | None = None) -> MomentRecord:
    """The moment that the overlay with that index is named after; the layer beneath holds it."""
    chain = CHAIN[over + 1 :]
    formats = {"vda": tuple("raw" if file == "/base" else "qcow2" for file in chain)}
    return MomentRecord(
        f"m{over}",
        f"n{over}",
        NOW,
        {"vda": CHAIN[over]},
        {"vda": chain[0]},
        {"vda": chain},
        formats=formats,
        state=state,
        directory=STATE,
    )


EVERY = tuple(named(over) for over in range(4))


@each(
    ("top", "base", "lies", "lost"),
    [  # T5 on base <- s0 <- s1 <- s2 <- s3: where each moment lies afterwards, and which are lost
        (1, 4, {"n0": "/base"}, ["n1", "n2", "n3"]),
        (2, 4, {"n0": "/s2", "n1": "/base"}, ["n2", "n3"]),
        (3, 4, {"n0": "/s2", "n1": "/s1", "n2": "/base"}, ["n3"]),
        (2, 3, {"n0": "/s2", "n1": "/s0", "n3": "/base"}, ["n2"]),
        (1, 2, {"n0": "/s1", "n2": "/s0", "n3": "/base"}, ["n1"]),
        (1, 3, {"n0": "/s0", "n3": "/base"}, ["n1", "n2"]),
        (0, 4, {}, ["n0", "n1", "n2", "n3"]),  # the active layer
        (0, 2, {"n2": "/s0", "n3": "/base"}, ["n0", "n1"]),
    ],
)
def test_fates_are_those_of_the_table(top: int, base: int, lies: dict[str, str], lost: list[str]) -> None:
    fate = fates(EVERY, fold(top, base))
    ended = {one.name for one in fate.ended}
    assert (list(fate.lost), ended) == (lost, {*lost})
    now = {one.name: one for one in EVERY if one.name not in ended}
    for step in fate.steps:
        assert step.command == "keep-place"
        place = step.arguments
        (name,) = (name for name, one in now.items() if one.id == place["id"])
        now[name] = without_layers(now[name], place["disk"], gone=place["gone"], into=place["into"])
    assert {name: one.covered["vda"] for name, one in now.items()} == lies
    assert fates(tuple(now.values()), fold(top, base)) == Fates()  # done once more, by who comes later
    after = CHAIN[:top] + CHAIN[base:]
    for one in now.values():
        assert one.chains["vda"] == after[after.index(one.covered["vda"]) :]
        assert one.formats["vda"] == ("qcow2",) * (len(one.chains["vda"]) - 1) + ("raw",)


def test_fates_are_described_in_words() -> None:
    assert fates(EVERY, fold(2, 3)).notes == (
        "the snapshot 'n1' of vda is held by /s0 from then on",
        "the snapshot 'n2' is lost on vda (newer data goes into /s0)",
    )
    state = KeptState("stop", "/memory", "", True, a_machine(TWO).fingerprint)
    fate = fates((named(3, state=state),), fold(3, 4))
    assert fate.notes == (
        "the snapshot 'n3' is lost on vda (newer data goes into /base), and its VM state /memory with it",
    )
    assert fate.steps == (remove_state("/memory", "m3"),)
    assert fates(EVERY, fold(2, 4)).notes == (
        "the snapshot 'n1' of vda is held by /base from then on",
        "the snapshot 'n2' is lost on vda (newer data goes into /base)",
        "the snapshot 'n3' is lost on vda (newer data goes into /base)",
    )


def test_fates_of_a_moment_that_other_disks_have_too_are_noted_and_it_stays() -> None:
    fate = fates((MOMENT, ALONE), Fold("vda", (O1, S1, BASE), (O1,), S1))
    assert (fate.steps, fate.ended) == ((keep_lost(STATE, ID, "vda"),), (ALONE,))
    lost = replace(MOMENT, lost=("vdb",))
    assert fates((lost,), Fold("vda", (O1, S1, BASE), (O1,), S1)).ended == (lost,)


@each("covered", [CHAIN[1], "/aside", "/given"])
def test_fates_of_what_was_left_aside_are_to_be_lost_with_a_layer_that_it_is_read_from(covered: str) -> None:
    aside = replace(
        EVERY[0], overlays={"vda": "/x"}, covered={"vda": covered}, chains={"vda": (covered, *CHAIN[2:])}
    )
    fate = fates((aside,), fold(2, 4, "/given"))
    assert (fate.ended == ()) is (covered == CHAIN[1])


def test_fates_on_a_disk_do_not_judge_what_a_commit_left_unfinished_on_another() -> None:
    begun = stages(committing("left", above=O1, base=S1))
    chain = (O1, "/images/gone.qcow2", S1, BASE)
    left = IntentRecord("left", "commit", NOW, {"vda": chain}, stages=begun, invalid=(S1,))
    assert left.disk == "vda"
    assert find_moments(TWO, (MOMENT, left)).moments[0].held[0].invalid
    other = Fold("vdb", ("/images/x.qcow2", O2, "/images/data.raw"), ("/images/x.qcow2",), O2)
    assert fates((MOMENT, left), other) == Fates()


def test_fates_of_what_an_earlier_commit_has_spoilt_are_noted_only_once() -> None:
    """It was lost then. What is backed by that commit's top reads what it read."""
    begun = stages(committing("kept", base=CHAIN[-1]))
    kept = IntentRecord(
        "kept", "commit", NOW, {"vda": CHAIN[1:]}, stages=begun, invalid=CHAIN[2:], directory=STATE
    )
    two_disks = replace(EVERY[1], overlays={"vda": "/s2", "vdb": "/o"}, covered={"vda": "/s1", "vdb": "/d"})
    fate = fates((kept, EVERY[0], two_disks), fold(1, 3))
    assert fate.steps == (
        keep_place(STATE, "m0", "vda", ("/s2", "/s1"), "/s0"),
        keep_lost(STATE, "m1", "vda"),
    )
    assert fate.lost == ()
    assert healed((kept,), "vda", CHAIN[1:3]) == (kept,)
    assert healed((kept,), "vda", CHAIN[2:3]) == healed((kept,), "vdb", CHAIN[1:3]) == ()


@given(data=st.data())
def test_fates_never_call_a_moment_good_that_is_lost_nor_the_other_way_round(data: st.DataObject) -> None:
    """Any chain and any commit of it: what each file reads is known, and so is what a moment has to read."""
    depth = data.draw(st.integers(2, 7))
    chain = tuple(f"/l{index}" for index in range(depth, 0, -1))
    reads = {file: f"as {file}" for file in chain}
    records = tuple(
        MomentRecord(f"m{over}", f"n{over}", NOW, {"vda": file}, {"vda": below}, {"vda": chain[over + 1 :]})
        for over, (file, below) in enumerate(itertools.pairwise(chain))
        if data.draw(st.booleans())
    )
    top = data.draw(st.integers(0, depth - 2))
    base = data.draw(st.integers(top + 1, depth - 1))
    fate = fates(records, Fold("vda", chain, chain[top:base], chain[base]))
    held = {one.name: reads[one.covered["vda"]] for one in records}
    reads[chain[base]] = reads[chain[top]]
    now = {file: text for file, text in reads.items() if file not in chain[top:base]}
    after = {one.id: one for one in records if one not in fate.ended}
    for step in fate.steps:
        assert step.command == "keep-place"
        place = step.arguments
        record = after[place["id"]]
        after[record.id] = without_layers(record, place["disk"], gone=place["gone"], into=place["into"])
    for one in records:
        if one.id in after:
            assert now[after[one.id].covered["vda"]] == held[one.name]
        else:
            assert held[one.name] not in now.values()


def test_streamed_takes_the_layers_between_out_of_the_chains_that_are_read() -> None:
    assert streamed(EVERY, "vda", into="/s2", gone=("/s1", "/s0")) == (
        keep_place(STATE, "m0", "vda", ("/s1", "/s0")),
    )
    assert without_layers(EVERY[0], "vda", gone=("/s1", "/s0")).chains == {"vda": ("/s2", "/base")}


def test_commit_notes_the_losses_before_its_record_goes() -> None:
    steps = planned(Commit("vda", base="s1"), TWO, files=files_of(""), state_dir=STATE).stages[-1].steps
    assert [step.command for step in steps] == ["retire-file", "keep-lost", "finish-record"]


@each("files_are_kept", [False, True])
def test_commit_says_what_it_costs_and_what_lies_elsewhere(files_are_kept: bool) -> None:
    intent = Commit("vda", base="s1", keep_overlay=files_are_kept)
    notes = planned(intent, TWO, files=files_of(""), state_dir=STATE).notes
    assert [note for note in notes if "'c1' is lost" in note]


@each(
    ("intent", "mode"), [(Revert("c1"), ""), (Revert("c1"), "in-place"), (Revert("c1", into="new"), "stop")]
)
def test_nobody_reverts_to_what_is_lost_on_a_disk(intent: Intent, mode: str) -> None:
    now = graph(vda="base <- s1 <- n1*", vdb="data.raw <- o2*")
    files = files_of(mode, now)
    planned(intent, now, files=files)
    files.records[:] = [replace(one, lost=("vda",)) for one in files.records]
    with pytest.raises(NotInChain, match=r"s1\.qcow2 no longer holds a snapshot"):
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
    planned(Revert("c1", into="incoming"), TWO, files=files, machine=waits)
    files.records[:] = [replace(one, lost=("vda",)) for one in files.records]
    with pytest.raises(NotInChain, match="a commit has written into it"):
        planned(Revert("c1", into="incoming"), TWO, files=files, machine=waits)


def test_moments_say_on_which_disk_they_are_lost() -> None:
    (moment,) = find_moments(TWO, (replace(MOMENT, lost=("vda",)),)).moments
    assert {part.disk: part.invalid for part in moment.held} == {"vda": True, "vdb": False}
