from __future__ import annotations

import asyncio

import pytest

from qmpsnap.errors import BadArgument, Changed, GuestFailed, Incomplete
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.vm import VM
from qmpsnap.waking import check_wake, woken


def machine(state: str = "running") -> VM:
    target = FakeTarget(graph(vda="base*"))
    target.guest._set(state, running=state == "running")
    return VM(target)


@pytest.mark.parametrize(("state", "called"), [("running", True), ("paused", False), ("prelaunch", False)])
async def test_woken_calls_the_hook_when_the_guest_runs(state, called):
    vm, seen = machine(state), []

    async def wake(machine: VM) -> None:
        seen.append(machine)

    await woken(vm, wake, what="the revert to 'a'")
    await woken(vm, None, what="the revert to 'a'")
    assert seen == [vm] * called


async def test_woken_says_what_is_done_when_the_hook_fails():
    async def wake(_: VM) -> None:
        raise GuestFailed("no answer", script="date")

    with pytest.raises(
        Incomplete, match=r"the revert to 'a' is done and the guest runs, .*: no answer"
    ) as failed:
        await woken(machine(), wake, what="the revert to 'a'")
    error = failed.value
    assert (error.changed, error.done, error.remaining) == (Changed.YES, ("the revert to 'a'",), ("wake",))
    assert isinstance(error.__cause__, GuestFailed)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (ZeroDivisionError(), "failed: ZeroDivisionError"),
        (TimeoutError("too late"), "failed: TimeoutError: too late"),
        (ExceptionGroup("both", [ValueError("1")]), "failed: ExceptionGroup: both"),
    ],
)
async def test_woken_says_the_same_of_any_error_of_the_hook(raised, words):
    async def wake(_: VM) -> None:
        raise raised

    with pytest.raises(Incomplete, match=words) as failed:
        await woken(machine(), wake, what="the revert to 'a'")
    assert (failed.value.changed, failed.value.__cause__) == (Changed.YES, raised)


async def test_woken_lets_a_cancellation_pass():
    async def wake(_: VM) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await woken(machine(), wake, what="the revert to 'a'")


def test_check_wake_takes_a_function_or_none():
    check_wake(None)
    check_wake(woken)
    with pytest.raises(BadArgument, match="async function"):
        check_wake("date")
