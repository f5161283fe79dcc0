from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.record import Origin
from qmpsnap.plan.commands.records import finish_record, record_of, write_record
from qmpsnap.plan.intent import Checkpoint, Commit, Mirror, Revert, Snapshot, Stream
from qmpsnap.plan.recording import finished, local, local_chains, recorded
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.moments import TWO, files_of
from tests.plan.scenes import NOW, STATE, planned, unseen, with_layer

ONE = graph(vda="base <- s1 <- s2*")
S2, S1, BASE, COPY = (f"/images/{name}.qcow2" for name in ("s2", "s1", "base", "copy"))


def test_a_plan_is_recorded_as_it_is_before_anything_else_happens() -> None:
    plan = planned(Commit("vda", folded="remove"), ONE)
    record = plan.record
    assert record is not None
    assert plan.stages[0].steps == (write_record(STATE, record),)
    assert record.stages == tuple(
        replace(stage, steps=tuple(replace(step, undo=(), detail={}) for step in stage.steps))
        for stage in plan.stages[1:]
    )
    assert (record.id, record.op, record.created) == (plan.job_id, "commit", NOW)
    assert (record.chains, record.after) == ({"vda": (S2, S1, BASE)}, {"vda": (BASE,)})
    assert (record.moves, record.folded) == (plan.moves, plan.folded) == (("vda",), (S2, S1))
    assert (record.invalid, record.invalid_after) == (plan.invalid_if_stopped, plan.invalid)
    assert record.notes == plan.notes
    assert record.formats == {"vda": ("qcow2",) * 3}


@each(
    ("intent", "title"),
    [
        (Snapshot("n1"), "create the overlays"),
        (Mirror("vda", COPY, "pivot"), "create the target"),
        (Stream("vda"), "write the record"),
        (Commit("vda"), "write the record"),
    ],
)
def test_the_record_is_written_with_what_prepares_or_in_a_stage_of_its_own(
    intent: Snapshot | Mirror | Stream | Commit, title: str
) -> None:
    first = planned(intent, ONE).stages[0]
    assert (first.title, first.steps[0].command) == (title, "write-record")
    assert not first.verify


def test_a_plan_without_a_place_is_not_recorded() -> None:
    plan = planned(Stream("vda"), ONE, files=unseen(ONE))
    assert plan.record is None
    assert recorded(plan, "", id="qmpsnap-stream-keep-00000000", created=NOW) is plan


def test_a_record_may_lie_in_two_places() -> None:
    plan = planned(Mirror("vda", COPY, "pivot"), ONE)
    places = [step.arguments["directory"] for step in plan.steps if record_of(step)]
    assert places == [STATE, "/images/copy.qmpsnap"]
    assert finished("i", *places, "", STATE) == tuple(finish_record(place, ("i",)) for place in places)


def test_a_record_names_files_alone() -> None:
    assert local(("/a", "nbd://x", "b")) == ("/a",)
    assert local_chains({"vda": ("/a", "nbd://x", "b")}) == {"vda": ("/a",)}
    remote = graph(with_layer(chain("base <- s1 <- s2*"), 2, file="nbd://host/x", local=False))
    record = planned(Stream("vda", base="nbd://host/x"), remote, files=FakeFiles(remote)).record
    assert record is not None
    assert (record.chains, record.after) == ({"vda": (S2, S1)}, {"vda": (S2,)})
    assert record.formats == {"vda": ("qcow2", "qcow2")}
    commit = planned(Commit("vda", "s1", "nbd://host/x"), remote, files=FakeFiles(remote))
    assert commit.invalid_if_stopped == ("nbd://host/x",)
    assert commit.record is not None
    assert (commit.record.invalid, commit.record.folded) == ((), (S1,))


def test_an_operation_on_the_guest_says_how_that_was_found() -> None:
    checkpoint = planned(Checkpoint("c1"), ONE).record
    assert checkpoint is not None
    assert checkpoint.origin == Origin(True, "1:1")
    prepare = planned(Revert("c1", into="new"), TWO, files=files_of("stop")).record
    assert prepare is not None
    assert (prepare.origin, prepare.state, prepare.name) == (None, None, "c1")
    assert prepare.overlays == prepare.prepared != {}
    assert prepare.memory != ""
