from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, Changed, Interrupted
from qmpsnap.model.frozen import Frozen
from qmpsnap.plan.intent import Checkpoint
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.testing.drawing import graph
from tests.each import each
from tests.plan.scenes import planned
from tests.run.operations import vm_of
from tests.run.states import MACHINE, fake_of

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.testing.fake import FakeTarget

OVERLAYS = ["/images/base.c1.qcow2", "/images/data.c1.qcow2"]


def left(*, merged: tuple[str, ...] = (), running: bool = True) -> FakeTarget:
    """A machine whose background checkpoint was killed when the overlays were on; `merged`: no longer."""
    plan = planned(Checkpoint("c1", "background"), MACHINE)
    assert plan.record is not None
    assert plan.after is not None
    fake = fake_of(with_disks(plan.after, MACHINE, merged), running=running)
    fake.files.records.append(replace(plan.record, directory=plan.steps[0].arguments["directory"]))
    return fake


def with_disks(graph: Graph, other: Graph, names: tuple[str, ...]) -> Graph:
    """The graph, with these disks as in another."""
    return replace(graph, disks=Frozen({**graph.disks, **{name: other.disks[name] for name in names}}))


@each("merged", [(), ("vda",), ("vda", "vdb")])
async def test_overlays_of_a_checkpoint_whose_client_is_gone_are_merged_back(merged: tuple[str, ...]) -> None:
    fake = left(merged=merged)
    vm = vm_of(fake)
    (shown,) = await vm.jobs.interrupted()
    done = await vm.jobs.wait(shown.id)
    assert isinstance(done, Done)
    assert (done.ended, done.changed) == ("rolled-back", merged != ("vda", "vdb"))
    assert done.notes[0] == "checkpoint 'c1' was not complete; its files are removed"
    assert (await vm.graph()).chains() == MACHINE.chains()
    assert (await vm.jobs.interrupted(), (await vm.moments()).moments, fake.files.records) == ((), (), [])
    assert fake.files.names == ("/images/base.qcow2", "/images/data.raw", "/images/s1.qcow2")


async def test_record_of_the_checkpoint_stays_until_the_last_overlay_is_merged() -> None:
    vm = vm_of(left())
    (shown,) = await vm.jobs.interrupted()
    plan = await vm.jobs.plan(shown.id)
    assert [part.op for part in plan.parts] == ["checkpoint", "commit", "commit", "checkpoint"]
    ended = [
        number
        for number, part in enumerate(plan.parts)
        for step in part.steps
        if step.command == "finish-record" and shown.id in step.arguments["ids"]
    ]
    assert ended == [3]
    assert [step.command for step in plan.parts[3].steps] == ["finish-record"]


async def ended_partly(fake: FakeTarget) -> Done:
    """Finish the checkpoint, whose overlays stay."""
    vm = vm_of(fake)
    before = (await vm.graph()).chains()
    (shown,) = await vm.jobs.interrupted()
    done = await vm.jobs.wait(shown.id)
    assert isinstance(done, Done)
    assert (done.ended, (await vm.graph()).chains(), fake.files.records) == ("partial", before, [])
    return done


async def test_overlays_stay_when_another_layer_is_on_one() -> None:
    """It may hold a snapshot that somebody else has taken."""
    fake = left()
    more = graph(vda="base <- s1 <- base.c1.qcow2 <- more*", vdb="data.raw <- data.c1.qcow2*")
    fake.state = replace(more, nodes=fake.state.nodes)
    fake.files.put("/images/more.qcow2", backing=OVERLAYS[0])
    done = await ended_partly(fake)
    assert f"{OVERLAYS[0]} is no longer the active layer of vda" in done.notes[1]


async def test_overlays_stay_when_qemu_does_not_own_its_images() -> None:
    """Another client has migrated the guest away meanwhile; what a commit wrote would be lost."""
    fake = left()
    fake.guest.now = replace(fake.guest.now, status="postmigrate", running=False, migration="completed")
    done = await ended_partly(fake)
    assert "QEMU does not own its images in run state 'postmigrate'" in done.notes[1]


async def test_overlays_stay_when_something_else_is_based_on_one() -> None:
    fake = left()
    fake.files.put("/images/other.qcow2", backing=OVERLAYS[0])
    done = await ended_partly(fake)
    assert "/images/other.qcow2" in done.notes[1]
    assert done.notes[1].endswith(f"qmpsnap commit vda --top {OVERLAYS[0]} --base /images/s1.qcow2")


async def test_only_overlays_that_are_still_there_are_said_to_stay() -> None:
    """The other one was merged before the last attempt was interrupted."""
    fake = left(merged=("vda",))
    fake.files.put("/images/other.qcow2", backing=OVERLAYS[1])
    done = await ended_partly(fake)
    assert [note.partition(" of ")[0] for note in done.notes[1:]] == [f"the overlay {OVERLAYS[1]}"]
    assert done.active == {"vdb": OVERLAYS[1]}


@each("running", [True, False])
async def test_overlays_are_not_merged_while_one_is_read_and_a_paused_guest_does_not_wait_for_that(
    *, running: bool
) -> None:
    fake = left(running=running)
    fake.files.readers = frozenset({("/images/s1.qcow2", "")})
    vm = vm_of(fake)
    (shown,) = await vm.jobs.interrupted()
    if running:
        with pytest.raises(Busy, match=r"a snapshot is being read from /images/s1\.qcow2"):
            await vm.jobs.wait(shown.id)
        assert fake.performed == []
        fake.files.readers = frozenset()
    done = await vm.jobs.wait(shown.id)
    assert isinstance(done, Done)
    assert done.ended == ("rolled-back" if running else "partial")
    assert (await vm.status()).running
    assert fake.files.records == []


async def test_merge_that_is_stopped_is_gone_on_with_by_the_same_call() -> None:
    fake = left()
    vm = vm_of(fake)
    before = (await vm.graph()).chains()
    (shown,) = await vm.jobs.interrupted()
    stop = anyio.Event()
    fake.hold = True
    waiting = asyncio.create_task(vm.jobs.wait(shown.id, hooks=Hooks(cancel=stop)))
    with anyio.fail_after(30):
        while "block-commit" not in [step.command for step in fake.performed]:
            await anyio.lowlevel.checkpoint()
    stop.set()
    with pytest.raises(Interrupted) as caught:
        await waiting
    assert (caught.value.changed, caught.value.invalid) == (Changed.YES, ("/images/s1.qcow2",))
    assert caught.value.hint.endswith("the same command then does the rest")
    assert (await vm.graph()).chains() == before
    assert shown.id in [one.id for one in await vm.jobs.interrupted()]
    fake.hold = False
    await vm.jobs.wait(shown.id)
    assert ((await vm.graph()).chains(), fake.files.records) == (MACHINE.chains(), [])
