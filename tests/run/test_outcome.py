from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Changed
from qmpsnap.model.graph import Graph, Node
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream
from qmpsnap.plan.plan import OperationEnd, Plan
from qmpsnap.run.outcome import (
    Done,
    Hooks,
    by_qemu,
    invalid_now,
    joined,
    left_nodes,
    made_files,
    mismatch,
    outcome,
    vanished,
)
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import planned, unseen, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk

TWO = graph(vda="base <- s1 <- s2*", vdb="data*")
S2, S1, BASE = "/images/s2.qcow2", "/images/s1.qcow2", "/images/base.qcow2"
MIDDLE = planned(Commit("vda", "s1", "base"), TWO)


def after(plan: Plan, index: int | None = None, **changes: Any) -> Graph:
    """The predicted graph, one layer of vda changed."""
    assert plan.after is not None
    if index is None:
        return plan.after
    disk = with_layer(plan.after.disks["vda"], index, **changes)
    return replace(plan.after, disks=MappingProxyType({**plan.after.disks, "vda": disk}))


def only(*disks: Disk) -> Graph:
    return graph(*disks)


@each(
    "intent",
    [
        Snapshot("n1"),
        Stream("vda"),
        Stream("vda", "base"),
        Commit("vda"),
        Mirror("vda", "/c", "pivot", "top"),
    ],
)
def test_mismatch_is_none_when_the_graph_is_the_predicted_one(intent: Any) -> None:
    plan = planned(intent, TWO)
    assert mismatch(plan, after(plan)) == ""


def test_mismatch_leaves_other_disks_and_nodes_alone() -> None:
    other = graph(after(MIDDLE).disks["vda"], chain("else*", name="vdb"), nodes=(Node("n", "raw", "/n"),))
    assert mismatch(MIDDLE, other) == ""


@each(
    ("found", "problem"),
    [
        (TWO, f"the chain of vda is ['{S2}', '{S1}', '{BASE}']"),
        (only(), "disk vda is gone"),
        (after(MIDDLE, 1, format="raw"), f"{BASE} has the format raw, not qcow2"),
        (after(MIDDLE, 0, backing=S1), f"the header of {S2} names '{S1}', not {BASE}"),
        (after(MIDDLE, 0, backing=None), f"the header of {S2} names None, not {BASE}"),
        (after(MIDDLE, 0, backing="other/base.qcow2"), f"the header of {S2} names 'other/base.qcow2', not"),
    ],
)
def test_mismatch_says_in_what_the_graph_differs(found: Graph, problem: str) -> None:
    assert mismatch(MIDDLE, found).startswith(problem)


@each("name", [BASE, "base.qcow2", "./base.qcow2", f"file:{BASE}"])
def test_mismatch_takes_every_name_that_leads_to_the_file_below(name: str) -> None:
    assert mismatch(MIDDLE, after(MIDDLE, 0, backing=name)) == ""


def test_mismatch_does_not_judge_headers_that_were_not_to_change() -> None:
    odd = graph(with_layer(chain("base <- s1 <- s2 <- s3*"), 0, backing="json:odd"))
    plan = planned(Commit("vda", "s1", "base"), odd)
    assert after(plan).disks["vda"].active.backing == "json:odd"
    assert mismatch(plan, after(plan)) == ""


def test_mismatch_does_not_judge_the_header_of_an_overlay_that_the_caller_made() -> None:
    files = FakeFiles(TWO)
    files.put("/o.qcow2", backing="/link/s2.qcow2")
    files.facts["/o.qcow2"] = replace(files.facts["/o.qcow2"], backing=S2)  # the link leads there
    plan = planned(Snapshot("n1", ("vda",), {"vda": "/o.qcow2"}, use_existing=True), TWO, files=files)
    assert mismatch(plan, after(plan, 0, backing="/link/s2.qcow2")) == ""


def test_mismatch_sees_a_header_that_still_names_a_backing_file_after_a_whole_stream() -> None:
    plan = planned(Stream("vda"), TWO)
    assert "names '/images/s1.qcow2', not none" in mismatch(plan, after(plan, 0, backing=S1))


def test_mismatch_cannot_judge_a_header_over_what_is_no_file() -> None:
    remote = graph(with_layer(chain("base <- s1 <- s2*"), 2, file="rbd:pool/base", local=False))
    plan = planned(Commit("vda", "s1", "rbd:pool/base"), remote)
    assert mismatch(plan, after(plan, 0, backing="json:{}")) == ""


def expecting(of: Graph, **expect: tuple[str, ...]) -> Plan:
    return Plan("commit", None, tuple(of.disks), (), of, None, expect=expect)


def test_mismatch_compares_with_what_a_record_expects() -> None:
    plan = expecting(TWO, vda=(S2, BASE))
    assert mismatch(plan, after(MIDDLE)) == ""
    assert mismatch(plan, TWO).startswith("the chain of vda is")


def test_mismatch_compares_files_alone_with_what_a_record_expects() -> None:
    remote = graph(with_layer(chain("base <- s2*"), 1, file="rbd:pool/base", local=False))
    assert mismatch(expecting(remote, vda=(S2,)), remote) == ""


def test_mismatch_without_a_record_wants_the_root_to_have_moved() -> None:
    plan = Plan("commit", None, ("vda",), (), TWO, None, moves=("vda",))
    assert mismatch(plan, TWO) == f"the active layer of vda is still {S2}"
    assert mismatch(plan, graph(vda="base*")) == ""
    assert mismatch(plan, only()) == "disk vda is gone"


def test_outcome_names_the_one_disk_that_moved_when_the_plan_could_not_know() -> None:
    both = graph(vda="base <- s1 <- s2*", vdb="data*")
    plan = Plan("mirror", None, ("vda", "vdb"), (), both, None, moves=("vda", "vdb"))
    still = "the active layer of vda is still /images/s2.qcow2 and that of vdb is still /images/data.qcow2"
    assert mismatch(plan, both) == still
    moved = graph(vda="base <- s1 <- s2*", vdb="copy*")
    assert mismatch(plan, moved) == ""
    assert outcome(plan, moved).active == {"vdb": "/images/copy.qcow2"}


def test_left_nodes_are_those_without_a_use_that_somebody_named() -> None:
    left = graph(
        after(MIDDLE).disks["vda"],
        nodes=(Node("vda-s1", "qcow2", S1), Node("vdb-data", "qcow2", "/x"), Node("#b", "file", S1)),
    )
    assert left_nodes(MIDDLE, left) == ("""qmpsnap qmp blockdev-del '{"node-name": "vda-s1"}'""",)


def test_left_nodes_are_not_those_that_the_plan_frees_nor_qemus_own() -> None:
    disk = with_layer(
        with_layer(chain("base <- s1 <- s2 <- s3*"), 1, node="qmpsnap-a-00000000"), 2, node="#b1"
    )
    plan = planned(Commit("vda", "s2", "base"), graph(disk))
    assert plan.after is not None
    assert left_nodes(plan, replace(plan.after, nodes=plan.before.nodes)) == ()


def test_made_files_are_overlays_and_placeholders() -> None:
    assert made_files(planned(Snapshot("n1"), TWO).steps) == (
        "/images/base.n1.qcow2",
        "/images/data.n1.qcow2",
    )
    assert made_files(planned(Mirror("vda", "/c", "pivot"), TWO).steps) == ("/c",)


@pytest.mark.parametrize(
    "intent", [Snapshot("n1", ("vdb",)), Mirror("vdb", "/images/data.n1.qcow2", "pivot")]
)
def test_by_qemu_names_what_qemu_was_asked_to_create(intent: Any) -> None:
    steps = planned(intent, TWO, files=unseen(TWO)).steps
    start = next(place for place, step in enumerate(steps) if step.way in {"take", "drive-mirror"})
    assert by_qemu(steps[:start]) == ()
    assert by_qemu(steps[: start + 1]) == ("/images/data.n1.qcow2 (if QEMU created it)",)
    assert by_qemu(planned(intent, TWO).steps) == ()


def test_invalid_now_uses_the_names_that_files_have() -> None:
    plan = planned(Commit("vda"), TWO)
    first, second = (step for step in plan.steps if step.command == "retire-file")
    assert invalid_now(plan, []) == (f"{S2}.invalid", f"{S1}.invalid")
    assert invalid_now(plan, [second]) == (f"{S2}.invalid", S1)
    assert invalid_now(plan, [first, second]) == (S2, S1)
    removing = planned(Commit("vda", folded="remove"), TWO)
    assert invalid_now(removing, [step for step in removing.steps if step.command == "retire-file"]) == (
        S2,
        S1,
    )


@each(
    ("op", "invalid", "changed"),
    [
        ("commit", (BASE,), Changed.YES),
        ("commit", (), Changed.UNKNOWN),
        ("stream", (), Changed.NO),
        ("mirror", (), Changed.NO),
    ],
)
def test_vanished_says_what_became_of_the_layers(op: str, invalid: tuple[str, ...], changed: Changed) -> None:
    error = vanished(Plan(op, None, (), (), TWO, None, invalid=invalid, vanished="the job is gone"))
    assert (error.message, error.changed, error.invalid) == ("the job is gone", changed, invalid)


@each(
    ("ended", "changed"), [("finished", True), ("rolled-back", False), ("partial", True), ("unknown", True)]
)
def test_outcome_of_what_was_interrupted_says_whether_anything_was_changed(
    ended: OperationEnd, *, changed: bool
) -> None:
    done = outcome(Plan("commit", None, ("vda",), (), TWO, TWO, ended=ended), TWO)
    assert (done.ended, done.changed) == (ended, changed)


def test_result_of_two_parts_ends_as_the_first_that_was_not_finished() -> None:
    finished, back = Done("fork", {}), Done("fork", {}, ended="rolled-back", changed=False)
    assert [joined(*pair).ended for pair in ((finished, finished), (back, finished), (finished, back))] == [
        *("finished", "rolled-back", "rolled-back"),
    ]
    assert joined(back, finished).changed


def test_done_is_printed_as_json() -> None:
    done = Done(
        "snapshot",
        {"vda": (S2, BASE)},
        MappingProxyType({"vda": S2}),
        standstill_s=0.5,
        elapsed_s=1.0,
        notes=("n",),
    )
    assert json.loads(json.dumps(done.to_json())) == {
        "op": "snapshot",
        "changed": True,
        "ended": "finished",
        "chains": {"vda": [S2, BASE]},
        "active": {"vda": S2},
        "standstill_s": 0.5,
        "elapsed_s": 1.0,
        "bytes": 0,
        "left": [],
        "invalid": [],
        "deleted": [],
        "notes": ["n"],
    }


async def test_hooks_take_functions_and_coroutines_and_nothing() -> None:
    calls: list[object] = []

    async def later(what: object) -> None:
        calls.append(what)

    progress: Any = object()
    await Hooks(progress=calls.append, on_pivot=calls.append).tell(progress)
    await Hooks(progress=later, on_pivot=later).tell_pivot({"vda": S2})
    await Hooks().tell(progress)
    await Hooks().tell_pivot({})
    assert calls == [progress, {"vda": S2}]


def test_a_notebook_shows_a_result_with_its_chains() -> None:
    done = Done("snapshot", {"vda": (S2, S1)}, {"vda": S2}, standstill_s=0.0, notes=("<b>",))
    assert done._repr_svg_() == done.picture().render("svg")
    page = done._repr_html_()
    assert "<td>standstill_s</td><td>0.0</td>" in page
    assert "&lt;b&gt;" in page
    assert "<td>left</td>" not in page
    assert page.index("</table>") < page.index('<img alt="vda: 2 layers')
