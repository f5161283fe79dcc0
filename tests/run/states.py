"""Operations on VM state in files, to run on a fake machine: one of each kind, ready to begin."""

from __future__ import annotations

import asyncio
import copy
import functools
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import anyio
from msgspec.structs import replace

from qmpsnap.model.graph import Filter
from qmpsnap.plan.intent import (
    Checkpoint,
    Delete,
    Restore,
    Revert,
    Save,
)
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_faults import Faults
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS, FakeMachine, a_machine
from tests.run.operations import vm_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qmpsnap.model.graph import Graph, Layer
    from qmpsnap.model.machine import Machine
    from qmpsnap.plan.intent import Intent, Mode
    from qmpsnap.plan.plan import Plan

MACHINE = graph(vda="base <- s1*", vdb="data.raw*")
THROTTLED = graph(
    replace(chain("base <- s1*"), root="thr", filters=(Filter("thr", "throttle", "tg"),)), vdb="data.raw*"
)
OLD = MappingProxyType({"events": False, "background-snapshot": False, "xbzrle": True})
COMMON = COMMANDS | {"snapshot-save", "snapshot-load", "blockdev-reopen"}


def fake_of(
    drawn: Graph = MACHINE, *, running: bool = True, old: bool = False, emulated: bool = False
) -> FakeTarget:
    """A machine; an old one gets files by descriptor alone, of an emulated one QEMU translates the code."""
    more: dict[str, Mapping[str, bool]] = {"capabilities": OLD} if old else {}
    machine = a_machine(drawn, running=running, emulated=emulated, **more)
    return FakeTarget(drawn, commands=COMMON, machine=machine)


async def _checkpoint(mode: Mode, fake: FakeTarget) -> FakeTarget:
    await vm_of(fake).checkpoint("c1", mode=mode)
    fake.performed.clear()
    return fake


async def _with_snapshot(fake: FakeTarget) -> FakeTarget:
    await vm_of(fake).snapshot("c1")
    fake.performed.clear()
    return fake


async def _shared() -> FakeTarget:
    """A machine with a checkpoint on whose layers images of others stand, so that only its name can go."""
    fake = await _checkpoint("stop", fake_of())
    for index, file in enumerate(("/images/s1.qcow2", "/images/base.qcow2", "/images/data.raw")):
        if file in fake.files.facts:
            fake.files.put(f"/images/other{index}.qcow2", backing=file)
    return fake


async def _left_aside() -> FakeTarget:
    """A machine that went back to c1, so that c2 is in no chain any more."""
    fake = await _checkpoint("in-place", fake_of())
    await vm_of(fake).checkpoint("c2", mode="in-place")
    await vm_of(fake).revert("c1")
    fake.performed.clear()
    return fake


def waiting(machine: Machine) -> Machine:
    """The same machine, started anew to get its VM state."""
    return replace(machine, status="inmigrate", running=False, migration="none")


def ready_on(overlays: Mapping[str, str]) -> Graph:
    """A machine that was started on overlays of MACHINE's layers."""
    return graph(
        replace(chain("base <- s1 <- x*"), layers=_on(overlays["vda"], "base <- s1*", "vda")),
        replace(chain("data.raw <- x*", name="vdb"), layers=_on(overlays["vdb"], "data.raw*", "vdb")),
    )


async def _prepared(mode: Mode) -> FakeTarget:
    """A new QEMU on the overlays that were prepared for it."""
    old = await _checkpoint(mode, fake_of())
    made = await vm_of(old).revert("c1", into="new")
    new = ready_on(made.prepared)
    return FakeTarget(new, files=old.files, commands=COMMON, machine=waiting(a_machine(new)))


def _on(file: str, drawing: str, name: str) -> tuple[Layer, ...]:
    below = chain(drawing, name=name)
    over = chain(f"{drawing.removesuffix('*')} <- x*", name=name)
    covered = replace(below.active, read_only=True)
    return (replace(over.active, file=file, backing=below.active.file), covered, *below.layers[1:])


async def _saved() -> FakeTarget:
    """A new QEMU on the layers of one whose VM state was saved."""
    old = fake_of()
    await vm_of(old).save("/images/m")
    return FakeTarget(MACHINE, files=old.files, commands=COMMON, machine=waiting(a_machine(MACHINE)))


@dataclass(frozen=True)
class Case:
    """An operation.

    Attributes:
        intent: What is wanted.
        begin: Makes the machine on which it can be.
    """

    intent: Intent
    begin: Callable[[], object]


CASES: dict[str, Case] = {
    "stop": Case(Checkpoint("c1"), fake_of),
    "stop-old": Case(Checkpoint("c1"), lambda: fake_of(old=True)),
    "stop-paused": Case(Checkpoint("c1"), lambda: fake_of(running=False)),
    "background": Case(Checkpoint("c1", "background"), fake_of),
    "background-old": Case(Checkpoint("c1", "background"), lambda: fake_of(old=True)),
    "in-place": Case(Checkpoint("c1", "in-place"), fake_of),
    "in-place-paused": Case(Checkpoint("c1", "in-place"), lambda: fake_of(running=False)),
    "save": Case(Save("/images/m"), fake_of),
    "revert": Case(Revert("c1"), lambda: _checkpoint("in-place", fake_of())),
    "revert-paused": Case(Revert("c1"), lambda: _checkpoint("in-place", fake_of(running=False))),
    "revert-emulated": Case(Revert("c1"), lambda: _checkpoint("in-place", fake_of(emulated=True))),
    "revert-disks": Case(Revert("c1", discard=True), lambda: _with_snapshot(fake_of())),
    "revert-throttled": Case(Revert("c1"), lambda: _checkpoint("in-place", fake_of(THROTTLED))),
    "revert-aside": Case(Revert("c2"), _left_aside),
    "prepare": Case(Revert("c1", into="new"), lambda: _checkpoint("stop", fake_of())),
    "incoming": Case(Revert("c1", into="incoming"), lambda: _prepared("stop")),
    "delete": Case(Delete("c1"), _shared),
    "restore": Case(Restore("/images/m"), _saved),
}


_BEGUN: dict[str, FakeTarget] = {}


async def begun(case: str) -> FakeTarget:
    """The case's machine, as it is before the operation."""
    if case not in _BEGUN:
        made = CASES[case].begin()
        _BEGUN[case] = made if isinstance(made, FakeTarget) else await made  # type: ignore[misc]
    return copied(_BEGUN[case])


T = TypeVar("T")


def copied(fake: T) -> T:
    """A copy; what a fake holds beside its collections is frozen."""
    other = copy.copy(fake)
    for name, value in vars(fake).items():
        match value:
            case FakeFiles() | FakeMachine() | Faults():
                setattr(other, name, copied(value))
            case dict() | list() | set():
                setattr(other, name, value.copy())
            case anyio.Event():
                setattr(other, name, anyio.Event())
    return other


@functools.cache
def known_plan(case: str) -> Plan:
    """The case's plan without a loop: for parametrizing over its steps."""

    async def make() -> Plan:
        return await vm_of(await begun(case)).plan(CASES[case].intent)

    return asyncio.run(make())


@dataclass(frozen=True)
class Stand:
    """All of a machine that an operation may change; `opened` are the files of its nodes."""

    chains: Mapping[str, tuple[str, ...]]
    files: tuple[str, ...]
    opened: tuple[str, ...]
    records: tuple[str, ...]
    passed: frozenset[int]
    capabilities: Mapping[str, bool]
    parameters: Mapping[str, int | str]
    running: bool


def stand(fake: FakeTarget) -> Stand:
    """How a machine stands."""
    now = fake.guest.now
    return Stand(
        chains=fake.state.chains(),
        files=fake.files.names,
        opened=tuple(sorted(node.file for node in fake.state.nodes.values())),
        records=tuple(sorted(record.file_name for record in fake.files.records)),
        passed=frozenset(fake.guest.passed),
        capabilities=dict(now.capabilities),
        parameters=dict(now.parameters),
        running=now.running,
    )
