"""Any walk through checkpoints, snapshots and ways back: a refusal changes nothing, the rest comes true."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qmpsnap.errors import Refused
from qmpsnap.plan.commands.state import cont, stop
from qmpsnap.plan.intent import Checkpoint, Intent, Mode, Revert, Save, Snapshot
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_machine import COMMANDS, a_machine
from tests.plan.scenes import overlays_of
from tests.run.operations import vm_of
from tests.run.states import copied

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpsnap.plan.plan import Plan

NAMES = st.sampled_from(["a", "b", "c"])
MODES: st.SearchStrategy[Mode] = st.sampled_from(["stop", "background", "in-place"])
INTENTS: st.SearchStrategy[Intent | bool] = st.one_of(
    st.builds(Checkpoint, NAMES, MODES),
    st.builds(Snapshot, NAMES),
    st.builds(Revert, NAMES, st.sampled_from([(), ("vdb",)]), st.booleans()),
    st.builds(Revert, NAMES),
    st.builds(Save, st.sampled_from(["/images/m", "/images/n"])),
    st.booleans(),  # somebody lets the guest run, or stops it
)


def machine(*, depth: int, raw: bool, running: bool, old: bool) -> FakeTarget:
    layers = ["base", *(f"s{number}" for number in range(1, depth))]
    drawn = graph(chain(" <- ".join(layers) + "*"), chain("data.raw*" if raw else "data <- d1*", name="vdb"))
    known = ("events", "background-snapshot", "xbzrle") + (() if old else ("mapped-ram",))
    made = a_machine(drawn, running=running, capabilities=dict.fromkeys(known, False))
    return FakeTarget(drawn, commands=COMMANDS, machine=made)


SHAPES: dict[str, st.SearchStrategy[Any]] = {
    "depth": st.integers(1, 3), "raw": st.booleans(), "running": st.booleans(), "old": st.booleans()
}  # fmt: skip
MACHINES = st.builds(machine, **SHAPES)


class Walk:
    """A machine, and what each moment's disks read when it was taken."""

    def __init__(self, fake: FakeTarget) -> None:
        self.fake = fake
        self.moments: dict[str, Mapping[str, tuple[str, ...]]] = {}

    async def go(self, intent: Intent) -> None:
        fake, vm = self.fake, vm_of(self.fake)
        before = (fake.state, fake.files.names, fake.guest.now)
        try:
            plan = await vm.plan(intent)
        except Refused:
            assert (fake.state, fake.files.names, fake.guest.now) == before
            return
        check_plan(plan, fake)
        chains, ran = fake.state.chains(), fake.guest.now.running
        done = await vm.run(plan)
        assert done.chains == plan.chains_after == fake.state.chains(*plan.disks)
        assert fake.guest.now.running is (ran and not isinstance(intent, Save))
        assert (fake.guest.passed, await fake.jobs()) == (set(), ())
        if isinstance(intent, Checkpoint | Snapshot):
            assert intent.name not in self.moments
            self.moments[intent.name] = chains
        if isinstance(intent, Revert):
            for disk in plan.disks:
                assert fake.state.disks[disk].files[1:] == self.moments[intent.name][disk]
        self.check_files()

    def check_files(self) -> None:
        """Nothing that a disk or a moment reads is ever removed."""
        used = {file for files in self.fake.state.chains().values() for file in files}
        used |= {file for chains in self.moments.values() for files in chains.values() for file in files}
        assert used <= set(self.fake.files.names)


def check_plan(plan: Plan, fake: FakeTarget) -> None:
    assert not {disk for disk in plan.moves if disk not in plan.disks}
    opened = [step.arguments["node-name"] for step in plan.steps if step.command == "blockdev-add"]
    opened += [
        overlay.node for step in plan.steps if step.command == "transaction" for overlay in overlays_of(step)
    ]
    assert len(set(opened)) == len(opened)
    assert all(len(node.encode()) <= 31 and node.startswith("qmpsnap-") for node in opened)
    assert not set(opened) & set(fake.state.nodes)
    said = json.dumps([step.arguments for step in plan.steps if step.on == "qmp"])
    for name, disk in fake.state.disks.items():
        if name not in plan.disks:
            assert not any(layer.node and f'"{layer.node}"' in said for layer in disk.layers)
    if not fake.guest.now.running:
        assert not [step for step in plan.steps if step == stop() or step.command == "cont"]


def stand(fake: FakeTarget, *, running: bool) -> None:
    fake.guest.perform(cont() if running else stop())


@settings(max_examples=45, deadline=None)
@given(MACHINES, st.lists(INTENTS, max_size=8))
def test_planner_refuses_or_goes_where_it_says_and_keeps_what_any_moment_reads(
    fake: FakeTarget, intents: list[Intent | bool]
) -> None:
    async def walk() -> None:
        walked = Walk(fake)
        for intent in intents:
            if isinstance(intent, bool):
                stand(fake, running=intent)
            else:
                await walked.go(intent)

    asyncio.run(walk())


@functools.cache
def with_moments(*, depth: int, raw: bool, running: bool, old: bool) -> Walk:
    """A machine on which a and c are snapshots of disks, and b is a checkpoint."""
    walked = Walk(machine(depth=depth, raw=raw, running=running, old=old))

    async def walk() -> None:
        await walked.go(Snapshot("a"))
        await walked.go(Checkpoint("b", "in-place"))
        await walked.go(Snapshot("c"))

    asyncio.run(walk())
    assert set(walked.moments) == {"a", "b", "c"}
    return walked


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        with_moments, depth=st.integers(1, 3), raw=st.booleans(), running=st.booleans(), old=st.booleans()
    ),
    st.lists(NAMES, min_size=2, max_size=6),
    st.booleans(),
)
def test_planner_finds_every_moment_from_every_other(begun: Walk, names: list[str], discard: bool) -> None:
    walked = Walk(copied(begun.fake))
    walked.moments |= begun.moments

    async def walk() -> None:
        for name in names:
            await walked.go(Revert(name, discard=discard))
            assert walked.fake.state.disks["vda"].files[1:] == walked.moments[name]["vda"]

    asyncio.run(walk())
