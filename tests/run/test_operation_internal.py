"""Operations that change what is inside an image, and no chain."""

from __future__ import annotations

import anyio
import pytest

from qmpsnap.errors import Changed, CommandFailed, GraphMismatch, LinkLost
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.plan.intent import Delete
from qmpsnap.run.outcome import Hooks
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_faults import refused
from tests.each import each
from tests.plan.scenes import with_layer
from tests.run.operations import MACHINE, OLD, inside, machine, plan_of, vm_of

pytestmark = pytest.mark.timeout(60)


@each("case", ["snapshot-internal", "delete", "checkpoint-internal"])
async def test_operation_refuses_when_the_snapshots_inside_moved_since_the_plan(case: str) -> None:
    fake = machine(case)
    plan = await plan_of(case, fake)
    gone = graph(vda="base <- s1 <- s2*", vdb="data*")
    assert gone.chains() == fake.state.chains()
    fake.state = gone
    with pytest.raises(GraphMismatch, match="internal snapshots") as caught:
        await vm_of(fake).run(plan)
    assert (caught.value.changed, fake.performed) == (Changed.NO, [])


async def test_operation_says_that_a_half_done_deletion_changed_something() -> None:
    disks = [with_layer(chain("data*", name=name), 0, snapshots=OLD) for name in ("vda", "vdb")]
    fake = FakeTarget(graph(*disks))
    plan = await vm_of(fake).plan(Delete("old"))
    _, second = plan.steps
    fake.fail(second, refused("no room"))
    with pytest.raises(CommandFailed, match="no room") as caught:
        await vm_of(fake).run(plan)
    assert caught.value.changed is Changed.YES
    assert inside(fake.state) == {"vda": [], "vdb": ["old"]}
    done = await vm_of(fake).delete("old")
    assert inside(fake.state) == {"vda": [], "vdb": []}
    assert done.chains == {"vdb": ("/images/data.qcow2",)}


async def test_operation_that_was_to_stop_between_two_deletions_does_both() -> None:
    disks = [with_layer(chain("data*", name=name), 0, snapshots=OLD) for name in ("vda", "vdb")]
    fake = FakeTarget(graph(*disks))
    plan = await vm_of(fake).plan(Delete("old"))
    hooks = Hooks(cancel=anyio.Event())
    assert hooks.cancel is not None
    fake.before = lambda _: hooks.cancel.set()  # type: ignore[union-attr]
    await vm_of(fake).run(plan, hooks)
    assert inside(fake.state) == {"vda": [], "vdb": []}


@each("case", ["snapshot-internal", "delete", "checkpoint-internal"])
async def test_operation_notices_when_qemu_did_not_do_it_inside_the_image(case: str) -> None:
    fake = FakeTarget(MACHINE, change=lambda state, _: state)
    with pytest.raises(GraphMismatch, match="the internal snapshots of") as caught:
        await vm_of(fake).run(await plan_of(case, fake))
    assert caught.value.exit_code == 6


def with_checkpoint() -> FakeTarget:
    state = InternalSnapshot("1", "c1", 4096)
    return FakeTarget(graph(with_layer(chain("base <- s1*"), 0, snapshots=(state,))))


async def test_operation_reverts_to_a_checkpoint_and_deletes_it() -> None:
    fake = with_checkpoint()
    back = await vm_of(fake).revert("c1")
    assert (back.op, back.changed, back.standstill_s) == ("revert-internal", True, 0.25)
    assert back.bytes == 4096
    gone = await vm_of(fake).delete("c1")
    assert (gone.op, inside(fake.state)) == ("delete", {"vda": []})


@each("happened", [True, False])
async def test_operation_does_not_know_whether_it_went_back_when_the_link_is_lost(happened: bool) -> None:
    fake = with_checkpoint()
    fake.relinks = True
    fake.fail("human-monitor-command", LinkLost("gone"), happened=happened)
    with pytest.raises(LinkLost) as caught:
        await vm_of(fake).revert("c1")
    assert caught.value.changed is Changed.UNKNOWN


@each("changed", [Changed.NO, Changed.YES])
async def test_operation_says_of_a_failed_way_back_what_the_target_said(changed: Changed) -> None:
    fake = with_checkpoint()
    error = refused("half-way")
    error.changed = changed
    fake.fail("human-monitor-command", error)
    with pytest.raises(CommandFailed, match="half-way") as caught:
        await vm_of(fake).revert("c1")
    assert caught.value.changed is changed
