from __future__ import annotations

import anyio
import pytest

from qmpsnap.errors import Changed, Incomplete, LinkLost, QmpsnapError
from qmpsnap.plan.intent import Checkpoint, Delete, Revert, Snapshot
from qmpsnap.testing.fake import refused
from tests.group.machines import Two

pytestmark = pytest.mark.timeout(60)

TAKING: list[Snapshot | Checkpoint] = [
    Snapshot("s"),
    Checkpoint("s", "in-place"),
    Checkpoint("s", "stop"),
    Checkpoint("s", "background"),
]


def steps_of(intent):
    return f"{intent.kind}-{getattr(intent, 'mode', '')}".rstrip("-")


async def points(intent):
    """How many steps machine b does."""
    two = Two.made()
    await two.group.run(await two.group.plan(intent))
    return len(two.b.performed)


def at(fake, number, act):
    """Act once, at the step of that number."""
    count = 0

    def before(step):
        nonlocal count
        count += 1
        if count == number + 1:
            act(step)

    fake.before = before


@pytest.mark.parametrize("intent", TAKING, ids=steps_of)
async def test_run_leaves_all_machines_as_before_when_any_step_of_one_fails(intent):
    for number in range(await points(intent)):
        two = Two.made()
        before = two.world()
        plans = await two.group.plan(intent)
        at(two.b, number, lambda step, two=two: two.b.fail(step, refused("no")))
        with pytest.raises(QmpsnapError, match=r"^b: ") as caught:
            await two.group.run(plans)
        two.b.before = None
        assert caught.value.changed is Changed.NO
        assert caught.value.hint.startswith("all machines are as before")
        assert (two.world(), await two.listed()) == (before, []), f"step {number}"


@pytest.mark.parametrize("intent", TAKING, ids=steps_of)
async def test_run_cancelled_leaves_the_moment_complete_or_all_as_before(intent):
    seen = set()
    for number in range(await points(intent)):
        two = Two.made()
        before = two.world()
        plans = await two.group.plan(intent)
        with anyio.CancelScope() as scope:
            at(two.b, number, lambda _, scope=scope: scope.cancel())
            await two.group.run(plans)
        two.b.before = None
        moments = await two.listed()
        assert moments in ([], [("s", True)])
        assert moments or two.world() == before
        assert [machine.guest.now.running for machine in two.machines] == [True, True]
        seen.add(bool(moments))
    assert seen == {True, False}


async def test_run_lets_no_guest_run_before_the_moment_of_each_is_taken():
    two = Two.made()
    log = []
    for name, fake in zip("ab", two.machines, strict=True):
        fake.before = lambda step, name=name: log.append((name, step.command))
    await two.group.snapshot("s")
    order = [log.index((name, command)) for command in ("stop", "transaction", "cont") for name in "ab"]
    assert max(order[:2]) < min(order[2:4])
    assert max(order[2:4]) < min(order[4:])


async def test_run_leaves_a_paused_guest_paused_and_resumes_the_other():
    for intent in TAKING[:2]:
        two = Two.made(b_runs=False)
        await two.group.run(await two.group.plan(intent))
        assert [machine.guest.now.running for machine in two.machines] == [True, False]
        assert await two.listed() == [("s", True)]
        await two.group.revert("s")
        assert [machine.guest.now.running for machine in two.machines] == [True, False]


async def test_run_names_what_remains_when_it_cannot_be_taken_back():
    two = Two.made()
    plans = await two.group.plan(Snapshot("s"))
    two.b.fail("transaction", refused("no"))
    two.a.fail("block-commit", refused("not now"))
    with pytest.raises(Incomplete, match=r"b: .*taken back") as caught:
        await two.group.run(plans)
    assert caught.value.done == ("a",)
    (remaining,) = caught.value.remaining
    assert remaining.startswith("a: qmpsnap delete s")
    assert await two.listed() == [("s", False)]
    assert await two.group.recover() == ("s",)
    assert await two.listed() == []


async def test_run_takes_back_when_the_link_to_one_is_lost():
    two = Two.made()
    before = two.world()
    plans = await two.group.plan(Snapshot("s"))
    two.b.fail("transaction", LinkLost("gone", step="transaction"))
    with pytest.raises(Incomplete, match="b: gone"):  # what became of b is not known
        await two.group.run(plans)
    assert two.world()[0] == before[0]


async def test_run_returns_after_all_machines_are_taken_back_when_one_raises_an_error_that_is_none_of_ours():
    two = Two.made()
    plans, before = await two.group.plan(Snapshot("s")), two.world()
    at(two.b, 3, lambda step: 1 // (step.command != "stop"))
    with pytest.raises(ZeroDivisionError):
        await two.group.run(plans)
    assert two.world()[0] == before[0]


async def test_run_of_a_revert_rolls_back_until_a_disk_has_moved():
    two = Two.made()
    await two.group.checkpoint("s")
    before = two.world()
    two.b.fail("stop", refused("no"))
    with pytest.raises(QmpsnapError, match=r"^b: ") as caught:
        await two.group.revert("s")
    assert (caught.value.changed, two.world()) == (Changed.NO, before)


async def test_run_of_a_revert_names_who_is_reverted_when_one_fails_later():
    two = Two.made()
    await two.group.checkpoint("s")
    two.b.job_error = "no such state"
    with pytest.raises(Incomplete) as caught:
        await two.group.revert("s")
    assert (caught.value.done, caught.value.changed) == (("a",), Changed.YES)
    assert caught.value.remaining[0].startswith("b: ")


async def test_run_of_a_deletion_that_failed_can_be_repeated():
    two = Two.made()
    await two.group.snapshot("s")
    plans = await two.group.plan(Delete("s"))
    starts = next(step.command for step in plans["b"].steps if step.command.startswith("block-"))
    two.b.fail(starts, refused("no"))
    with pytest.raises(QmpsnapError, match=r"b: .*no"):
        await two.group.run(plans)
    two.b.performed.clear()
    await two.group.delete("s")
    assert await two.listed() == []


async def test_run_of_a_revert_moves_all_machines():
    two = Two.made()
    await two.group.snapshot("s")
    taken = two.world()
    done = await two.group.run(await two.group.plan(Revert("s")))
    assert set(done.machines) == {"a", "b"}
    assert two.world() != taken
    assert all(
        files[1] in {"/images/a.qcow2", "/images/b.qcow2", "/images/data.qcow2"}
        for machine in two.machines
        for files in machine.state.chains().values()
    )
