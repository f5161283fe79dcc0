from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.features import Features
from qmpsnap.model.graph import Node
from qmpsnap.model.record import IntentRecord, MomentRecord, Origin
from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.block import blockdev_del
from qmpsnap.plan.commands.files import Proof, remove_orphan, remove_state, retire_file
from qmpsnap.plan.commands.migration import set_capabilities, set_parameters
from qmpsnap.plan.commands.records import (
    finish_record,
    keep_lost,
    keep_moment,
    keep_place,
    link_records,
)
from qmpsnap.plan.intent import Checkpoint, Commit, Delete, Mirror, Snapshot, Stream
from qmpsnap.plan.recorded_steps import backing_of, finish, free, removed, set_back, tidied
from qmpsnap.plan.resume import ask
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.model.records import committing, stages, streaming
from tests.plan.chain.test_delete import A, drawn
from tests.plan.chain.test_delete import files as moment_files
from tests.plan.moments import BASE, MOMENT, O1, S1, TWO, files_of
from tests.plan.scenes import NOW, STATE, planned

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.record import Record
    from qmpsnap.model.step import Step
    from qmpsnap.plan.plan import Plan

ONE = graph(vda="base <- s1*")
ID = "qmpsnap-stream-keep-00000001"
KEPT = replace(MOMENT, directory=STATE)
STATES = files_of("in-place").records[0]


def left(plan: Plan) -> IntentRecord:
    """The record that the plan's run leaves."""
    assert plan.record is not None
    return replace(plan.record, directory=STATE)


def scene_of(of: Graph, *records: Record, process: str | None = None, **machine: object) -> Scene:
    files = FakeFiles(of)
    files.records += records
    intents = tuple(record for record in records if isinstance(record, IntentRecord))
    facts = of, files.look(ask(of, records=intents)), (), Features(frozenset()), NOW
    if process is None:
        return Scene(*facts)
    return GuestScene(*facts, machine=a_machine(of, process=process, **machine))  # type: ignore[arg-type]


def with_tidy(*steps: Step, chains: dict[str, tuple[str, ...]] | None = None) -> IntentRecord:
    """A stream's record whose stage of cleanup has these steps."""
    start = streaming(ID, above=O1, base=None)
    return IntentRecord(
        ID,
        "stream",
        NOW,
        chains or {"vda": (O1, S1, BASE)},
        {"vda": (O1,)},
        stages=stages(start, tidy=steps),
        directory=STATE,
    )


def again(*steps: Step, records: tuple[Record, ...] = ()) -> tuple[Step, ...]:
    """What is done of steps that a record says tidy up."""
    record = with_tidy(*steps)
    return tidied(record, scene_of(TWO, record, *records))


@each(
    ("step", "records", "done"),
    [
        (keep_lost(STATE, MOMENT.id, "vda"), (KEPT,), True),
        (keep_lost(STATE, MOMENT.id, "vda"), (), False),
        (keep_lost("/elsewhere", MOMENT.id, "vda"), (KEPT,), False),
        (keep_place(STATE, MOMENT.id, "vda", (S1,)), (KEPT,), True),
        (keep_place(STATE, "another", "vda", (S1,)), (KEPT,), False),
        (finish_record(STATE, (), (MOMENT.id,)), (KEPT,), True),
        (finish_record(STATE, (), ("another",)), (KEPT,), False),
        (finish_record("/elsewhere", (), (MOMENT.id,)), (KEPT,), False),
        (link_records("/images/o1.qmpsnap", STATE), (KEPT,), True),
        (link_records("/images/o1.qmpsnap", "/etc"), (KEPT,), False),
        (link_records("/etc", STATE), (KEPT,), False),
        (remove_state("/etc/shadow", MOMENT.id), (KEPT,), False),
        (blockdev_del("somebody's"), (), False),
        (blockdev_del("qmpsnap-a-00000000"), (), False),  # which is not there
    ],
)
def test_tidied_does_what_the_records_as_read_bear_out(
    step: Step, records: tuple[Record, ...], *, done: bool
) -> None:
    assert again(step, records=records) == ((step,) if done else ())


def test_tidied_removes_the_vm_state_of_the_moment_that_has_it_alone() -> None:
    assert isinstance(STATES, MomentRecord)
    assert STATES.state is not None
    state = STATES.state
    mine = remove_state(state.file, STATES.id, state.tag)
    others = remove_state("/images/other", STATES.id, state.tag), remove_state(state.file, "x", state.tag)
    assert again(mine, *others, records=(STATES,)) == (mine,)


def test_tidied_frees_nodes_of_ours_that_are_not_used() -> None:
    node, other = Node("qmpsnap-a-00000000", "qcow2", S1), Node("somebody's", "qcow2", S1)
    of = graph(*TWO.disks.values(), nodes=(node, other))
    record = with_tidy(blockdev_del(node.name), blockdev_del(other.name))
    assert tidied(record, scene_of(of, record)) == (blockdev_del(node.name),)
    assert tidied(record, scene_of(of, record), used=(node.name,)) == ()


@each("policy", ["rename", "remove"])
def test_tidied_puts_folded_files_away_whose_headers_show_that_they_are_those(policy: str) -> None:
    of = graph(vda="base <- s1 <- s2*")
    record = left(planned(Commit("vda", folded=policy), of))  # type: ignore[arg-type]
    files = [
        (f"/images/{name}.qcow2", f"/images/{below}.qcow2") for name, below in (("s2", "s1"), ("s1", "base"))
    ]
    assert tidied(record, scene_of(of, record)) == (
        *(
            retire_file(file, policy, f"{file}.invalid" if policy == "rename" else "", Proof("", below))  # type: ignore[arg-type]
            for file, below in files
        ),
        finish_record(STATE, (record.id,)),
    )


def test_tidied_puts_no_file_away_that_was_not_folded() -> None:
    """As the layer that a revert with --discard gives up: whether others need it was asked long ago."""
    step = retire_file(S1, "remove", "", Proof("qcow2", BASE))
    record = replace(with_tidy(step), stages=(Stage("clean up", (step,), tidy=True),))
    assert tidied(record, scene_of(TWO, record)) == ()


@each("based", ["", "/images/x.qcow2"])
def test_tidied_removes_a_layer_that_a_deletion_streamed_up_unless_it_is_needed(
    based: str,
) -> None:
    of = drawn(b=9)
    record = left(planned(Delete("two"), of, files=moment_files(of)))
    files = moment_files(of)
    files.records = [*files.records, record]
    if based:
        files.put(based, backing=A)
    question = ask(of, records=(record,))
    steps = tidied(record, dataclasses.replace(scene_of(of, record), files=files.look(question)))
    removed = [step for step in steps if step.command == "retire-file"]
    assert removed == ([] if based else [retire_file(A, "remove", "", Proof("", BASE), alone=True)])


def test_tidied_ends_the_moments_that_a_commit_lost_and_the_records_of_earlier_ones() -> None:
    of = graph(vda="base <- s1 <- o1*")
    alone = MomentRecord("a", "alone", NOW, {"vda": O1}, {"vda": S1}, {"vda": (S1, BASE)}, directory=STATE)
    files = FakeFiles(of)
    old = "qmpsnap-commit-pivot-00000000"
    begun = stages(committing(old, base=BASE))
    intent = Commit("vda", base="s1")
    earlier = replace(left(planned(intent, of)), id=old, stages=begun)
    files.records += [alone, earlier]
    record = left(planned(intent, of, files=files))
    assert tidied(record, scene_of(of, record, alone, earlier))[1:] == (
        finish_record(STATE, (earlier.id,), ("a",)),
        finish_record(STATE, (record.id,)),
    )
    assert tidied(record, scene_of(of, record, alone))[1:] == (
        finish_record(STATE, (), ("a",)),
        finish_record(STATE, (record.id,)),
    )
    assert tidied(record, scene_of(of, record))[1:] == (finish_record(STATE, (record.id,)),)


def test_tidied_makes_a_moment_of_its_own_record_alone() -> None:
    record = left(planned(Snapshot("n1"), ONE))
    assert tidied(record, scene_of(ONE, record)) == (keep_moment(STATE, record.id, "n1"),)


def test_finish_removes_a_record_wherever_it_was_read() -> None:
    plan = planned(Mirror("vda", "/images/copy.qcow2", "pivot"), ONE)
    record, place = left(plan), "/images/copy.qmpsnap"
    both = scene_of(ONE, record, replace(record, directory=place))
    assert finish(record, both) == (finish_record(STATE, (record.id,)), finish_record(place, (record.id,)))
    assert finish(record, scene_of(ONE, record)) == (finish_record(STATE, (record.id,)),)


SET = {"events": True}, {"max-bandwidth": 1 << 60}


@each(
    ("then", "now", "differ"),
    [("1:1", "1:1", True), ("1:1", "", True), ("1:1", "2:2", False)],
)
def test_settings_are_put_back_in_the_qemu_whose_they_are(then: str, now: str, *, differ: bool) -> None:
    record = left(planned(Checkpoint("c1"), ONE))
    record = replace(record, origin=Origin(True, then))
    capabilities, parameters = SET
    scene = scene_of(ONE, record, process=now, capabilities=capabilities, parameters=parameters)
    back = (
        set_parameters({"max-bandwidth": 134_217_728}, parameters),
        set_capabilities({"events": False}, capabilities),
    )
    assert set_back(record, scene) == (back if differ else ())


def test_settings_that_are_as_they_were_are_left() -> None:
    record = left(planned(Checkpoint("c1"), ONE))
    assert set_back(record, scene_of(ONE, record, process="1:1")) == ()
    assert set_back(record, scene_of(ONE, record)) == ()


def test_removed_is_what_was_made_and_is_not_open() -> None:
    record = left(planned(Checkpoint("c1"), ONE))
    assert record.state is not None
    orphan = remove_orphan("/images/base.c1.qcow2", "/images/s1.qcow2")
    partial = remove_state(record.state.partial, record.id)
    assert removed(record, scene_of(ONE, record)) == (orphan, partial)
    assert removed(record, scene_of(ONE, record), keep_overlays=True) == (partial,)
    held = graph(*ONE.disks.values(), nodes=(Node("x", "qcow2", "/images/base.c1.qcow2"),))
    assert removed(record, scene_of(held, record)) == (partial,)


def test_removed_is_no_file_elsewhere_that_does_not_show_what_it_was_made_for() -> None:
    record = left(planned(Snapshot("n1", ("vda",), {"vda": "/elsewhere/n1"}), ONE))
    orphan = remove_orphan("/elsewhere/n1", "/images/s1.qcow2")
    scene = scene_of(ONE, record)
    assert removed(record, scene) == ()
    files = FakeFiles(ONE)
    files.records.append(record)
    files.put("/elsewhere/n1", backing="/images/s1.qcow2")
    seen = dataclasses.replace(scene, files=files.look(ask(ONE, records=(record,))))
    assert removed(record, seen) == (orphan,)


def test_removed_is_also_what_only_a_node_of_ours_has_open_which_goes_first() -> None:
    record = left(planned(Snapshot("n1"), ONE))
    file = "/images/base.n1.qcow2"
    nodes = Node("qmpsnap-a-00000000", "qcow2", file), Node("#block7", "file", file)
    of = graph(*ONE.disks.values(), nodes=nodes)
    assert free(record, scene_of(of, record)) == ("qmpsnap-a-00000000",)
    assert removed(record, scene_of(of, record)) == (remove_orphan(file, "/images/s1.qcow2"),)


def test_backing_of_is_what_each_new_image_is_to_be_backed_by() -> None:
    assert backing_of(left(planned(Snapshot("n1"), ONE))) == {"/images/base.n1.qcow2": "/images/s1.qcow2"}
    top = Mirror("vda", "/images/copy.qcow2", "pivot", "top")
    assert backing_of(left(planned(top, ONE))) == {"/images/copy.qcow2": "/images/base.qcow2"}
    full = Mirror("vda", "/images/copy.qcow2", "pivot")
    assert backing_of(left(planned(full, ONE))) == {"/images/copy.qcow2": ""}
    assert backing_of(left(planned(Stream("vda"), ONE))) == {}
