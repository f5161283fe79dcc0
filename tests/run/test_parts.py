"""Plans of several parts, as the deletion of a moment of two disks."""

from __future__ import annotations

import anyio
import pytest
from msgspec.structs import replace

from qmpsnap.errors import Changed, Incomplete, Interrupted, JobFailed, StillNeeded
from qmpsnap.model.frozen import Frozen
from qmpsnap.plan.intent import Delete
from qmpsnap.run.executor import Executor
from qmpsnap.run.outcome import Hooks
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget, refused
from tests.plan.scenes import with_layer
from tests.run.operations import vm_of
from tests.run.states import COMMON

BASES = {"vda": ("/images/base.qcow2",), "vdb": ("/images/data.qcow2",)}


async def taken() -> FakeTarget:
    """A machine with a snapshot of two disks."""
    fake = FakeTarget(graph(vda="base*", vdb="data*"), commands=COMMON)
    await vm_of(fake).snapshot("one")
    disks = {
        name: with_layer(with_layer(disk, 0, allocated=1), 1, allocated=2)  # so that the overlays go down
        for name, disk in fake.state.disks.items()
    }
    fake.state = replace(fake.state, disks=Frozen(disks))
    fake.performed.clear()
    return fake


async def test_parts_are_run_in_turn_and_reported_as_one() -> None:
    fake = await taken()
    plan = await vm_of(fake).plan(Delete("one"))
    done = await Executor(fake).run(plan)
    assert fake.performed == [step for part in plan.parts for step in part.steps]
    assert (done.op, done.chains, done.bytes) == ("delete", BASES, 16)
    assert done.active == {"vda": "/images/base.qcow2", "vdb": "/images/data.qcow2"}
    assert (await vm_of(fake).moments()).moments == ()


async def test_failure_of_a_later_part_says_what_was_done_and_the_same_goes_on() -> None:
    fake = await taken()
    plan = await vm_of(fake).plan(Delete("one"))
    start = plan.then[0].start
    assert start is not None
    fake.fail(start, refused("no"))
    with pytest.raises(Incomplete, match=r"delete stopped between two of its parts: .*no") as caught:
        await Executor(fake).run(plan)
    assert (caught.value.changed, caught.value.exit_code) == (Changed.YES, 7)
    assert caught.value.remaining[-1] == "commit into /images/data.qcow2"
    assert "the same command then does the rest" in caught.value.hint
    assert fake.state.chains()["vda"] == BASES["vda"]
    assert len(fake.state.chains()["vdb"]) == 2
    done = await vm_of(fake).delete("one")
    assert done.chains == {"vdb": BASES["vdb"]}
    assert fake.files.records == []


async def test_failure_of_the_first_part_is_its_own() -> None:
    fake = await taken()
    fake.job_error = "no space"
    with pytest.raises(JobFailed, match="no space"):
        await vm_of(fake).delete("one")
    fake.job_error = ""
    assert (await vm_of(fake).delete("one")).chains == BASES


async def test_wish_to_stop_between_two_parts_leaves_the_first_one_done() -> None:

    fake = await taken()
    cancel = anyio.Event()
    plan = await vm_of(fake).plan(Delete("one"))
    fake.before = lambda step: cancel.set() if step == plan.steps[-1] else None
    with pytest.raises(Interrupted) as caught:
        await Executor(fake).run(plan, Hooks(cancel=cancel))
    assert caught.value.changed is Changed.YES
    assert [len(files) for files in fake.state.chains().values()] == [1, 2]


async def test_plan_of_a_deletion_is_refused_when_an_image_is_based_on_the_layer_by_now() -> None:
    fake = await taken()
    vm = vm_of(fake)
    plan = await vm.plan(Delete("one"))
    fake.files.put("/images/other.qcow2", backing="/images/base.qcow2")
    with pytest.raises(StillNeeded, match=r"no longer go as planned: .*/images/other.qcow2 is based"):
        await vm.run(plan)
    assert fake.performed == []


async def test_later_part_is_not_run_when_an_image_is_based_on_its_layer_by_then() -> None:
    fake = await taken()
    vm = vm_of(fake)
    plan = await vm.plan(Delete("one"))
    fake.before = lambda step: (
        fake.files.put("/images/other.qcow2", backing="/images/data.qcow2")
        if step == plan.steps[-1]
        else None
    )
    with pytest.raises(Incomplete, match=r"still needed by /images/other.qcow2"):
        await vm.run(plan)
    assert [len(files) for files in fake.state.chains().values()] == [1, 2]
    fake.before = None
    done = await vm.delete("one")
    assert "'one' is no longer listed, but /images/data.qcow2 stays" in done.notes[0]
    assert (await vm.moments()).moments == ()
