"""Any intent on any machine: it is refused, or what comes out is what the talk says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from qmpsnap.errors import Refused, StillNeeded
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.job import parse_job_id
from qmpsnap.model.step import PutOverlays
from qmpsnap.plan import planner
from qmpsnap.plan.commands.records import record_of
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Delete,
    Ending,
    Folded,
    Intent,
    Mirror,
    Restore,
    Revert,
    Save,
    Snapshot,
    Stream,
    Sync,
)
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.plan import Plan

COPY = "/copies/c.qcow2"


@dataclass(frozen=True)
class Machine:
    """A machine, and images of others that are off, each on a layer of vda or on another of them."""

    graph: Graph
    shared: bool
    others: tuple[tuple[str, str], ...]  # each with what it stands on

    def files(self) -> FakeFiles:
        files = FakeFiles(self.graph, shared=self.shared)
        for name, on in self.others:
            files.put(f"/images/{name}.qcow2", backing=f"/images/{on}.qcow2")
        return files

    def stands_at(self, name: str) -> str:
        """The layer of vda that an image stands on, maybe through others."""
        on = dict(self.others)[name]
        return self.stands_at(on) if on in dict(self.others) else on


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    depth = draw(st.integers(1, 6))
    layers = ["base", *(f"s{number}" for number in range(1, depth))]
    second = chain("data <- d1 <- d2*", name="vdb", directory="/more")
    second = with_layer(second, 0, snapshots=(InternalSnapshot("1", "old"),))
    others: list[tuple[str, str]] = []
    for number in range(draw(st.integers(0, 2))):
        on = draw(st.sampled_from([*layers, *(name for name, _ in others)]))
        others.append((f"off{number}", on))
    shared = draw(st.booleans())
    return Machine(graph(chain(" <- ".join(layers) + "*"), second), shared, tuple(others))


NAMES = st.sampled_from(["base", "s1", "s2", "s3", "s4", "s5", "nope"])
NEW = st.sampled_from(["n1", "old"])
LAYERS = st.none() | NAMES
SYNCS: st.SearchStrategy[Sync] = st.sampled_from(["full", "top", "none"])
ENDINGS: st.SearchStrategy[Ending] = st.sampled_from(["pivot", "finish"])
FOLDED: st.SearchStrategy[Folded] = st.sampled_from(["rename", "remove", "keep"])
INTENTS: st.SearchStrategy[Intent] = st.one_of(
    st.builds(Snapshot, st.just("n1"), st.sampled_from([("vda",), ("vda", "vdb"), (), ("vdb",)])),
    st.builds(Snapshot, NEW, st.sampled_from([("vda",), ("vda", "vdb"), (), ("vdb",)]), inside=st.just(True)),
    st.builds(Delete, NEW),
    st.builds(Stream, st.just("vda"), LAYERS, LAYERS),
    st.builds(Commit, st.just("vda"), LAYERS, LAYERS, st.booleans(), folded=FOLDED),
    st.builds(Mirror, st.just("vda"), st.just(COPY), ENDINGS, SYNCS),
)


def wanted(intent: Intent, machine: Machine) -> dict[str, list[str]] | None:
    """The chains that the talk promises, active first; None where it must be refused."""
    chains = {name: list(disk.files) for name, disk in machine.graph.disks.items()}
    vda = chains["vda"]
    known = {file.rpartition("/")[2].removesuffix(".qcow2"): place for place, file in enumerate(vda)}

    def at(layer: str | None, default: int) -> int:
        return default if layer is None else known.get(layer, -100)

    match intent:
        case Snapshot(inside=False):
            for disk in intent.disks or chains:
                base, place = ("base", "/images") if disk == "vda" else ("data", "/more")
                chains[disk].insert(0, f"{place}/{base}.n1.qcow2")
        case Snapshot(inside=True) | Delete():
            return chains if (intent.name == "old") is isinstance(intent, Delete) else None
        case Stream():
            into, base_at = at(intent.into, 0), at(intent.base, len(vda))
            if into < 0 or base_at < 0 or base_at - into < 2:
                return None
            del vda[into + 1 : base_at]
        case Commit():
            top, base_at = at(intent.top, 0), at(intent.base, len(vda) - 1)
            stuck = {known[machine.stands_at(name)] for name, _ in machine.others}
            hit = machine.shared and any(top <= place <= base_at for place in stuck)
            if top < 0 or base_at <= top or (intent.keep_overlay and top) or hit:
                return None
            if not intent.keep_overlay:
                del vda[top:base_at]
        case Mirror():
            if intent.sync == "none" and intent.ending == "finish":
                return None
            if intent.ending == "pivot":
                vda[:] = [COPY] + {"full": [], "top": vda[1:], "none": vda[:]}[intent.sync]
    return chains


def lists(chains: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {disk: list(files) for disk, files in chains.items()}


def plan_or_none(intent: Intent, machine: Machine) -> Plan | None:
    try:
        return planned(intent, machine.graph, files=machine.files())
    except Refused:
        return None


def run(plan: Plan, files: FakeFiles) -> Graph:
    """What is there when the plan has run."""
    for step in plan.steps:
        if step.on == "host":
            files.perform(step)
        elif step.command == "drive-mirror":
            files.put(step.arguments["target"], format=step.arguments["format"])
    assert plan.after is not None
    files.follow(plan.after)
    return plan.after


@settings(max_examples=200, deadline=None)
@given(INTENTS, machines())
def test_planner_refuses_or_gives_the_chains_that_the_talk_promises(intent: Intent, machine: Machine) -> None:
    plan = plan_or_none(intent, machine)
    found = lists(plan.after.chains()) if plan is not None and plan.after is not None else None
    assert found == wanted(intent, machine)


def leaves_every_other_disk_alone(plan: Plan, intent: Intent, machine: Machine) -> None:
    assert plan.after is not None
    for name, disk in machine.graph.disks.items():
        if name not in plan.disks:
            assert plan.after.disks[name] is disk
            said = json.dumps([step.arguments for step in plan.steps])
            assert not any(layer.node in said or layer.file in said for layer in disk.layers)


def gives_names_of_the_grammar_and_always_the_same(plan: Plan, intent: Intent, machine: Machine) -> None:
    assert plan == plan_or_none(intent, machine)
    ids = {step.job_id for step in plan.steps if step.command in {"await-job", "job-dismiss", "job-complete"}}
    ids |= {record.id for step in plan.steps if (record := record_of(step))}
    named = [parse_job_id(job_id) for job_id in ids]
    assert [name.op for name in named if name is not None] == [plan.op] * len(ids)
    taken = [step.effect for step in plan.steps if isinstance(step.effect, PutOverlays)]
    made = [overlay.node for effect in taken for overlay in effect.overlays]
    assert len(set(made)) == len(made)
    made += [step.arguments["node-name"] for step in plan.steps if step.way in {"probe", "drive-mirror"}]
    assert all(len(node.encode()) <= 31 and node.startswith("qmpsnap-") for node in made)
    assert not set(made) & set(machine.graph.nodes)


def finds_nothing_left_to_do_when_it_is_done(plan: Plan, intent: Intent, machine: Machine) -> None:
    if not machine.shared:
        return
    files = machine.files()
    after = run(plan, files)
    try:
        again = planned(intent, after, files=files)
    except Refused:
        return
    assert again.chains_after == again.chains_before  # a commit that keeps the overlay


def can_undo_every_step_before_the_one_without_return(plan: Plan, intent: Intent, machine: Machine) -> None:
    steps = [step for stage in plan.stages if not stage.tidy for step in stage.steps]
    last = next((place for place, step in enumerate(steps) if step.final), len(steps))
    for step in steps[:last]:
        harmless = step.way in {"flush", "probe", "await-job", "job-dismiss"}
        assert harmless or step.undo
    made = {step.arguments["file"] for step in steps if step.command in {"create-overlay", "create-file"}}
    assert not made & set(machine.files().names)
    assert sum(step.final for step in steps) <= 1 or isinstance(intent, Delete)


def retires_and_calls_invalid_only_what_left_the_chain(plan: Plan, intent: Intent, machine: Machine) -> None:
    files = machine.files()
    before = set(files.names)
    after = run(plan, files)
    used = {file for disk in after.disks.values() for file in disk.files}
    assert used <= set(files.names)
    gone = before - set(files.names)
    assert gone <= set(plan.folded)
    if not (isinstance(intent, Commit) and intent.keep_overlay):
        assert not used & set(plan.invalid)
        assert set(plan.invalid) <= set(files.names)


# Most of what can be wanted of a random machine is refused; what is not, is what these look at.
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
@given(INTENTS, machines())
def test_planner_keeps_its_promises_in_every_plan(intent: Intent, machine: Machine) -> None:
    plan = plan_or_none(intent, machine)
    assume(plan is not None)
    assert plan is not None
    leaves_every_other_disk_alone(plan, intent, machine)
    gives_names_of_the_grammar_and_always_the_same(plan, intent, machine)
    finds_nothing_left_to_do_when_it_is_done(plan, intent, machine)
    can_undo_every_step_before_the_one_without_return(plan, intent, machine)
    retires_and_calls_invalid_only_what_left_the_chain(plan, intent, machine)


def test_every_intent_has_a_planner() -> None:
    variants = {"snapshot-internal", "snapshot-paused", "checkpoint-internal"}
    variants |= {"revert-new", "revert-incoming"}
    assert {*planner.PLANNERS} == {kind.__name__.lower() for kind in get_args(Intent)} | variants


def test_planner_asks_for_what_it_then_reads() -> None:
    drawn = graph(vda="base <- s1*")
    for intent in (Snapshot("n1"), Stream("vda"), Commit("vda"), Mirror("vda", COPY, "pivot")):
        asked = planner.ask(intent, drawn, state_dir="/state")
        assert asked.records == ("/state",)
        assert planned(intent, drawn, state_dir="/state").record is not None


@each(
    "intent",
    [
        Checkpoint("c1", "internal"),
        Checkpoint("c1"),
        Revert("c1"),
        Revert("c1", into="incoming"),
        Save("/m"),
        Restore("/m"),
    ],
)
def test_planner_works_on_the_guest_where_its_state_is_kept_or_comes_back(intent: Intent) -> None:
    assert planner.works_on(intent) == "guest"
    assert planner.works_on(Snapshot("n1")) == "disks"
    assert planner.works_on(Revert("c1", into="new")) == "files"


@each("kind", planner.PLANNERS)
def test_planner_gets_the_guest_if_and_only_if_it_works_on_it(kind: str) -> None:
    plans = planner.PLANNERS[kind]
    scene = plans.plan.__annotations__["scene"]
    assert scene == ("GuestScene" if plans.works_on == "guest" else "Scene")


def test_wanted_is_able_to_refuse() -> None:
    machine = Machine(graph(vda="base <- s1*"), shared=True, others=(("off0", "base"),))
    assert wanted(Commit("vda"), machine) is None
    with pytest.raises(StillNeeded):
        planned(Commit("vda"), machine.graph, files=machine.files())
