from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, InvalidTarget, Unsupported
from qmpsnap.model.files import FileFact
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph, InternalSnapshot, Node
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.plan.commands.files import Proof, remove_state, retire_file
from qmpsnap.plan.commands.records import finish_record, keep_continued, keep_link, keep_lost, keep_place
from qmpsnap.plan.intent import Commit, Delete, Prune, Stream
from qmpsnap.plan.plan import Plan
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.moments import ID, MEMORY, O1, S1, TWO, files_of, kept
from tests.plan.scenes import NOW, STATE, job, planned

BASE, A, B, C = (f"/images/{name}.qcow2" for name in ("base", "a", "b", "c"))


def drawn(drawing: str = "base <- a <- b <- c*", **sizes: int) -> Graph:
    """A disk whose overlays are ours, and whose layers take so many MiB on the host, 1 by default."""
    disk = chain(drawing)
    layers = tuple(
        replace(
            layer,
            node=f"qmpsnap-{layer.node}" if layer.backing else "#block1",
            allocated=sizes.get(layer.file.rpartition("/")[2].removesuffix(".qcow2"), 1) * MIB,
        )
        for layer in disk.layers
    )
    return graph(replace(disk, layers=layers, root=layers[0].node))


def moment(name: str, overlay: str, *below: str, disk: str = "vda", **more: object) -> MomentRecord:
    """The moment at which an overlay began, with the layers that it is read from."""
    record = MomentRecord(
        f"qmpsnap-snapshot-keep-{name}",
        name,
        NOW,
        {disk: overlay},
        {disk: below[0]},
        {disk: below},
        directory=STATE,
    )
    return replace(record, **more)


ONE, TWO_, THREE = moment("one", A, BASE), moment("two", B, A, BASE), moment("three", C, B, A, BASE)


def files(of: Graph, *records: MomentRecord) -> FakeFiles:
    """The files of a machine that has these moments."""
    found = FakeFiles(of)
    found.records.extend(records or (ONE, TWO_, THREE))
    return found


def tidied(plan: Plan) -> list[tuple[str, object]]:
    """What the last stage does beside freeing nodes."""
    assert plan.stages[-1].tidy
    return [step for step in plan.stages[-1].steps if step.command != "blockdev-del"]  # type: ignore[misc]


def own(plan: Plan) -> object:
    """What removes the operation's own record."""
    return finish_record(STATE, (plan.job_id,))


def test_overlay_goes_down_into_the_layer_beneath_when_that_copies_less() -> None:
    of = drawn(a=9)
    plan = planned(Delete("two"), of, files=files(of))
    assert plan.chains_after == {"vda": (C, A, BASE)}
    assert (plan.op, plan.moves, plan.then) == ("delete", (), ())
    start = plan.start
    assert start is not None
    assert start.command == "block-commit"
    assert tidied(plan) == [
        retire_file(B, "remove", "", Proof("qcow2", A)),
        keep_place(STATE, THREE.id, "vda", (B,), A),
        finish_record(STATE, (), (TWO_.id,)),
        own(plan),
    ]
    assert plan.notes[0] == f"vda: at most 1 MiB to copy into {A}; in another way it would be 9 MiB into {B}"


def test_layer_beneath_goes_up_into_the_overlay_when_that_copies_less() -> None:
    of = drawn(b=9)
    plan = planned(Delete("two"), of, files=files(of))
    assert plan.chains_after == {"vda": (C, B, BASE)}
    start = plan.start
    assert start is not None
    assert start.command == "block-stream"
    assert tidied(plan)[1:] == [
        keep_place(STATE, THREE.id, "vda", (A,)),
        retire_file(A, "remove", "", Proof("qcow2", BASE), alone=True),
        keep_continued(STATE, ONE.id, "vda", B),
        finish_record(STATE, (), (TWO_.id,)),
        own(plan),
    ]
    assert plan.notes == (f"vda: at most 1 MiB to copy into {B}; in another way it would be 9 MiB into {A}",)


def test_layer_that_went_up_is_read_only_again() -> None:
    of = drawn(b=9)
    plan = planned(Delete("two"), of, files=files(of))
    assert plan.stages[-1].steps[0].arguments == {"command-line": 'qemu-io qmpsnap-vda-b "reopen -r"'}


def test_active_overlay_goes_down_and_the_root_moves() -> None:
    of = drawn(b=9)
    plan = planned(Delete("three"), of, files=files(of))
    assert (plan.chains_after, plan.moves) == ({"vda": (B, A, BASE)}, ("vda",))
    assert tidied(plan)[-2:] == [finish_record(STATE, (), (THREE.id,)), own(plan)]


def test_layer_goes_up_into_the_active_one_and_no_root_moves() -> None:
    of = drawn(c=9)
    plan = planned(Delete("three"), of, files=files(of))
    assert (plan.chains_after, plan.moves) == ({"vda": (C, A, BASE)}, ())


def test_base_image_that_went_up_is_not_removed() -> None:
    of = drawn(a=9)
    plan = planned(Delete("one"), of, files=files(of))
    assert plan.chains_after == {"vda": (C, B, A)}
    assert "retire-file" not in {step.command for step in plan.steps}
    assert plan.notes[1:] == (f"{BASE} stays, although vda no longer needs it",)


@each(
    ("stands", "goes"),
    [
        (A, "/images/other.qcow2"),
        (A, "/images/elsewhere/other.qcow2"),
    ],
)
def test_only_the_name_goes_where_something_else_is_based_on_the_layer(stands: str, goes: str) -> None:
    of = drawn()
    found = files(of, ONE, TWO_, THREE, moment("other", goes, goes, stands, disk="sda"))
    found.put(goes, backing=stands)
    plan = planned(Delete("two"), of, files=found)
    assert plan.chains_after == plan.chains_before == {"vda": (C, B, A, BASE)}
    assert plan.steps == (keep_link(STATE, TWO_.id),)
    why = f"{goes} and the snapshot 'other' are based on it"
    assert plan.notes == (f"'two' is no longer listed, but {A} stays: {why}",)
    assert plan.deleted == ("two",)


def test_overlay_on_which_a_branch_stands_receives() -> None:
    of = drawn(a=9)
    found = files(of)
    found.put("/images/branch.qcow2", backing=B)
    plan = planned(Delete("two"), of, files=found)
    assert plan.chains_after == {"vda": (C, B, BASE)}
    assert plan.notes == (f"vda: at most 9 MiB to copy into {B}",)


def test_record_of_a_deleted_one_is_kept_while_others_are_found_by_it_alone() -> None:
    of = drawn("base <- r*")
    left = moment("left", "/images/gone.qcow2", A, BASE)
    forked = replace(ONE, branches=({"vda": "/images/r.qcow2"},))
    found = files(of, forked, left)
    found.put(A, backing=BASE)
    plan = planned(Delete("one"), of, files=found)
    assert plan.steps == (keep_link(STATE, ONE.id),)


def test_links_stay_while_a_layer_goes_on_from_them() -> None:
    of = drawn("base <- r*")
    link = replace(ONE, branches=({"vda": "/images/r.qcow2"},), deleted=True)
    found = files(of, link, moment("left", "/images/gone.qcow2", A, BASE))
    found.put(A, backing=BASE)
    plan = planned(Delete("left"), of, files=found)
    gone = moment("left", "/images/gone.qcow2", A, BASE).id
    assert plan.steps == (
        retire_file(A, "remove", "", Proof("qcow2", BASE), alone=True),
        finish_record(STATE, (), (gone,)),
    )


@each(
    ("by", "why"),
    [
        ("image", "/images/x.qcow2 is based on it"),
        ("node", "QEMU has it open as 'n'"),
        ("node twice", "QEMU has it open as 'n' and 'm'"),
        ("moment", "the snapshot 'more' is based on it"),
        (
            "image, node, moment",
            "/images/x.qcow2 and the snapshot 'more' are based on it; QEMU has it open as 'n'",
        ),
    ],
)
def test_layer_aside_stays_while_anything_needs_it(by: str, why: str) -> None:
    of = drawn("base <- r*")
    records = [replace(ONE, branches=({"vda": "/images/r.qcow2"},)), moment("left", "/x", A, BASE)]
    if "moment" in by:
        records.append(moment("more", "/y", "/z", A, BASE))
    if "node" in by:
        of = replace(of, nodes=Frozen({**of.nodes, "n": Node("n", "qcow2", A)}))
    if "twice" in by:
        of = replace(of, nodes=Frozen({**of.nodes, "m": Node("m", "file", A)}))
    found = files(of, *records)
    found.put(A, backing=BASE)
    if "image" in by:
        found.put("/images/x.qcow2", backing=A)
    plan = planned(Delete("left"), of, files=found)
    assert "retire-file" not in {step.command for step in plan.steps}
    assert plan.notes == (f"'left' is no longer listed, but {A} stays: {why}",)


def test_files_are_kept_when_that_is_asked_for() -> None:
    of = drawn(b=9)
    for name in ("one", "two", "three"):
        plan = planned(Delete(name, keep_files=True), of, files=files(of))
        assert "retire-file" not in {step.command for step in plan.steps}


def test_internal_snapshots_of_a_layer_are_not_lost_with_it() -> None:
    of = drawn(a=5)
    disk = of.disks["vda"]
    layers = tuple(
        replace(layer, snapshots=(InternalSnapshot("1", "i"),)) if layer.file in {A, B} else layer
        for layer in disk.layers
    )
    of = replace(of, disks=Frozen(vda=replace(disk, layers=layers)))
    plan = planned(Delete("two"), of, files=files(of))
    assert plan.chains_after == plan.chains_before
    assert plan.notes[0].startswith(f"'two' is no longer listed, but {A} stays: this would be lost")


TWO_DISKS = graph(*drawn(a=5).disks.values(), chain("data.raw <- d*", name="vdb"))
BOTH = replace(
    TWO_,
    overlays={"vda": B, "vdb": "/images/d.qcow2"},
    covered={"vda": A, "vdb": "/images/data.raw"},
    chains={},
)


def test_disks_are_done_in_turn_and_the_name_goes_with_the_last() -> None:
    plan = planned(Delete("two"), TWO_DISKS, files=files(TWO_DISKS, ONE, BOTH, THREE))
    assert [part.disks for part in plan.parts] == [("vda",), ("vdb",)]
    first, last = (part.stages[-1].steps for part in plan.parts)
    assert keep_lost(STATE, BOTH.id, "vda") in first
    assert finish_record(STATE, (), (BOTH.id,)) in last
    assert plan.to_json()["after"] == {"vda": [C, A, BASE], "vdb": ["/images/data.raw"]}


def test_deletion_goes_on_with_the_disks_that_are_left() -> None:
    plan = planned(Delete("two"), TWO_DISKS, files=files(TWO_DISKS, ONE, replace(BOTH, lost=("vda",)), THREE))
    assert [part.disks for part in plan.parts] == [("vdb",)]
    assert finish_record(STATE, (), (BOTH.id,)) in plan.steps


HERE = graph(*drawn(a=5).disks.values())
AWAY = graph(*HERE.disks.values(), chain("other.qcow2 <- more*", name="vdb"))
EMPTY = graph(*HERE.disks.values(), replace(chain("data.raw*", name="vdb"), layers=(), root=""))


@each(("of", "what"), [(HERE, "unplugged"), (AWAY, "another medium"), (EMPTY, "no medium")])
def test_moment_stays_on_a_disk_that_is_not_here(of: Graph, what: str) -> None:
    found = files(of, ONE, BOTH, THREE)
    found.put("/images/data.raw", format="raw")
    plan = planned(Delete("two"), of, files=found)
    assert plan.to_json()["after"]["vda"] == [C, A, BASE], what  # type: ignore[index]
    assert keep_link(STATE, BOTH.id, ("vda",)) in plan.steps
    assert plan.record is not None
    assert from_json(to_json(plan.record)) == plan.record, "a later client finishes it"
    assert "two" in plan.deleted
    (note,) = (note for part in plan.parts for note in part.notes if "only" in note)
    assert note.startswith("'two' is deleted from vda only, and stays on vdb (/images/data.raw)")
    assert not any("no longer listed" in note for part in plan.parts for note in part.notes)
    for step in (step for part in plan.parts for step in part.steps if step.on == "host"):
        found.perform(step)
    (left,) = (record for record in found.records if record.id == BOTH.id)
    assert (left.disks, left.lost) == (("vdb",), ("vda",))  # type: ignore[union-attr]


def test_name_goes_wholly_where_the_other_disks_image_is_missing() -> None:
    found = files(HERE, ONE, BOTH, THREE)
    found.facts["/images/data.raw"] = FileFact("missing")
    plan = planned(Delete("two"), HERE, files=found)
    assert finish_record(STATE, (), (BOTH.id,)) in plan.steps
    assert not any("only" in note for part in plan.parts for note in part.notes)


def test_rest_of_a_moment_is_deleted_from_the_other_disk() -> None:
    of = graph(chain("data.raw <- d*", name="vdb"))
    left = replace(BOTH, lost=("vda",), deleted_from=("vda",), directory="/images/data.qmpsnap")
    found = files(of, left)
    plan = planned(Delete("two"), of, files=found)
    assert plan.to_json()["after"] == {"vdb": ["/images/data.raw"]}
    assert finish_record(left.directory, (), (BOTH.id,)) in plan.steps


def test_vm_state_goes_with_the_first_of_the_disks() -> None:
    of = graph(TWO.disks["vda"])
    found = files_of("stop")
    found.put("/images/x.qcow2", backing=S1)
    plan = planned(Delete("c1"), of, files=found)
    assert plan.steps == (remove_state(MEMORY, ID, ""), keep_link(STATE, ID, ("vda",)))


def test_prune_leaves_the_disks_that_are_not_here() -> None:
    found = files(HERE, ONE, BOTH, replace(THREE, created="2024-05-02T12:00:00.000000+00:00"))
    found.put("/images/data.raw", format="raw")
    plan = planned(Prune(keep_last=1), HERE, files=found)
    steps = [step for part in plan.parts for step in part.steps]
    assert keep_link(STATE, BOTH.id, ("vda",)) in steps
    assert finish_record(STATE, (), (ONE.id,)) in steps
    assert [name for part in plan.parts for name in part.deleted] == ["one", "two"]


def test_deletion_that_a_failed_commit_has_begun_is_done_again() -> None:
    of = drawn(a=5)
    plan = planned(Delete("two"), of, files=files(of))
    record = plan.record
    assert record is not None
    again = files(of)
    again.records.append(replace(record, directory=STATE))
    assert planned(Delete("two"), of, files=again).chains_after == {"vda": (C, A, BASE)}


@each("mode", ["stop", "in-place"])
def test_vm_state_goes_too(mode: str) -> None:
    plan = planned(Delete("c1"), TWO, files=files_of(mode))
    state = kept(mode).state
    assert state is not None
    assert remove_state(state.file, ID, state.tag) in plan.then[-1].steps


def test_vm_state_goes_also_where_the_layers_stay() -> None:
    found = files_of("stop")
    found.put("/images/x.qcow2", backing=S1)
    found.put("/images/y.qcow2", backing="/images/data.raw")
    plan = planned(Delete("c1"), TWO, files=found)
    assert plan.steps == (remove_state(MEMORY, ID, ""), keep_link(STATE, ID))
    assert [stage.tidy for stage in plan.stages] == [False, True]


def test_nodes_that_others_opened_keep_their_files_as_invalid() -> None:
    plan = planned(Delete("c1"), TWO, files=files_of(""))
    steps = [step for part in plan.parts for step in part.steps if step.command == "retire-file"]
    assert [step.arguments["to"] for step in steps] == [f"{O1}.invalid", "/images/o2.qcow2.invalid"]


def test_delete_refuses_a_chain_that_a_job_holds() -> None:
    of = drawn()
    of = replace(of, nodes=Frozen({**of.nodes, "f": Node("f", "mirror_top", C)}))
    with pytest.raises(Busy, match="'theirs'"):
        planned(Delete("two"), of, files=files(of), jobs=(job("theirs"),))


@each(
    ("read", "refused"),
    [(A, ["one", "two"]), (B, ["two", "three"]), (BASE, ["one"]), ("/images/left.qcow2", ["left"])],
)
def test_delete_refuses_layers_that_a_client_of_ours_reads(read: str, refused: list[str]) -> None:
    of = drawn()
    left = "/images/left.qcow2"
    found = files(of, ONE, TWO_, THREE)
    found.readers = frozenset({(read, "")})
    if read == left:
        found.records[0] = replace(ONE, branches=({"vda": left},))
        found.records.append(moment("left", "/x", left, BASE))
        found.put(left, backing=BASE)
    for name in [str(record.name) for record in found.records]:
        if name not in refused:
            planned(Delete(name), of, files=found)
            continue
        with pytest.raises(Busy, match=f"a snapshot is being read from {read}"):
            planned(Delete(name), of, files=found)


@each(
    ("intent", "read", "refused"),
    [
        (Commit("vda"), BASE, True),
        (Commit("vda", base="a"), BASE, False),
        (Commit("vda", top="b", base="a"), A, True),
        (Stream("vda"), A, False),
        (Stream("vda", into="b"), B, True),
        (Stream("vda", into="b"), A, False),
    ],
)
def test_jobs_do_not_write_into_layers_that_a_client_of_ours_reads(
    intent: Commit | Stream, read: str, *, refused: bool
) -> None:
    of = drawn()
    found = files(of)
    found.readers = frozenset({(read, "")})
    if refused:
        with pytest.raises(Busy, match=f"being read from {read}"):
            planned(intent, of, files=found)
    else:
        planned(intent, of, files=found)


def test_delete_refuses_a_disk_that_is_attached_read_only() -> None:
    of = drawn()
    of = replace(of, disks=Frozen(vda=replace(of.disks["vda"], read_only=True)))
    with pytest.raises(Unsupported, match="read-only"):
        planned(Delete("two"), of, files=files(of))


def test_delete_refuses_where_it_cannot_be_known_what_is_based_on_a_layer() -> None:
    of = drawn()
    found = files(of)
    found.unreadable = ("/images: permission denied",)
    with pytest.raises(InvalidTarget, match="cannot search"):
        planned(Delete("two"), of, files=found)


X = "/fast/x.qcow2"


def test_branch_in_another_directory_is_known_by_a_deleted_moment() -> None:
    of = drawn()
    forked = replace(TWO_, branches=({"vda": X},))
    found = files(of, ONE, forked, THREE)
    found.put(X, backing=A)
    first = planned(Delete("two"), of, files=found)
    assert first.steps == (keep_link(STATE, TWO_.id),)
    for step in first.steps:
        found.perform(step)
    second = planned(Delete("one"), of, files=found)
    assert second.chains_after == second.chains_before
    why = f"{A} cannot be merged into it, because {X} is based on that"
    assert second.notes == (f"'one' is no longer listed, but {BASE} stays: {why}",)
    assert not [
        step for step in second.steps if step.command == "retire-file" and step.arguments["file"] == A
    ]


def test_golden_image_is_not_written_into_under_another_machine_whose_moment_is_deleted() -> None:
    of = drawn("base <- a*")
    theirs = moment("theirs", X, BASE, deleted=True)
    found = files(of, ONE, theirs)
    found.put(X, backing=BASE)
    plan = planned(Delete("one"), of, files=found)
    assert plan.chains_after == plan.chains_before
    assert plan.notes == (f"'one' is no longer listed, but {BASE} stays: {X} is based on it",)


def test_links_end_once_their_layers_are_merged() -> None:
    of = drawn(a=9)
    link = replace(TWO_, deleted=True)
    plan = planned(Prune(keep_last=1), of, files=files(of, ONE, link, THREE))
    ended = [one for part in plan.parts for step in part.steps for one in step.arguments.get("moments", ())]
    assert set(ended) == {ONE.id, link.id}
    assert plan.to_json()["after"] == {"vda": [C, A]}


def test_delete_refuses_what_an_unfinished_deletion_has_changed() -> None:
    of = drawn(a=9)
    plan = planned(Delete("two"), of, files=files(of))
    assert plan.record is not None
    after = plan.after
    assert after is not None
    found = files(after)
    found.records.append(replace(plan.record, directory=STATE))
    with pytest.raises(Busy, match="has not been finished") as caught:
        planned(Delete("two"), after, files=found)
    assert caught.value.hint == f"finish it first: qmpsnap job wait {plan.job_id}"


def test_deletion_that_is_begun_again_loses_no_moment_on_the_disk_where_it_was_begun() -> None:
    """The record of the first attempt is ended with the first disk, before the second one is looked at."""
    vda = drawn(a=9).disks["vda"]
    names = {BASE: "/images/data.qcow2", A: "/images/e.qcow2", B: "/images/f.qcow2", C: "/images/g.qcow2"}
    layers = tuple(
        replace(
            layer,
            node=f"{layer.node}-2",
            file=names[layer.file],
            backing=names[layer.backing] if layer.backing else None,
        )
        for layer in vda.layers
    )
    vdb = replace(vda, name="vdb", qdev="vdb", layers=layers, root=layers[0].node)
    of, (g, f, e, data) = graph(vda, vdb), vdb.files
    both = [
        moment("two", B, A, BASE, overlays={"vda": B, "vdb": f}, covered={"vda": A, "vdb": e}),
        moment("three", C, B, A, BASE, overlays={"vda": C, "vdb": g}, covered={"vda": B, "vdb": f}),
    ]
    below = {"two": (e, data), "three": (f, e, data)}
    known = files(of, *(replace(one, chains={**one.chains, "vdb": below[one.name]}) for one in both))
    first = planned(Delete("two"), of, files=known)
    assert first.record is not None
    known.records.append(replace(first.record, directory=STATE))
    again = planned(Delete("two"), of, files=known)
    steps = [step for part in (again, *again.then) for step in part.steps]
    assert first.record.invalid == (A,)
    assert finish_record(STATE, (first.record.id,)) in steps
    assert [step.arguments["disk"] for step in steps if step.command == "keep-place"] == ["vda", "vdb"]
    assert keep_lost(STATE, both[1].id, "vda") not in steps
