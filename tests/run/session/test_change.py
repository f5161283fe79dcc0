from __future__ import annotations

import asyncio

import anyio
import pytest
import structlog.testing

from qmpsnap.errors import Changed, CommandFailed, LinkLost
from qmpsnap.run.session.change import Change, Limits, Outcome, settled
from tests.each import each

QUICK = Limits(silence=0.005, warning=0.015, cancelled=0.02)
REFUSED = CommandFailed("no", command="job-cancel", arguments={}, qmp_class="GenericError", desc="no")


@pytest.fixture
def future():
    return asyncio.get_running_loop().create_future()


def change_of(future, limits=QUICK):
    async def wait():
        return await future

    return Change(asyncio.create_task(wait()), "job-cancel", {}, address="/s", limits=limits)


async def test_reply_returns_the_value():
    future = asyncio.get_running_loop().create_future()
    change = change_of(future)
    known = [change.outcome]
    future.set_result(3)
    assert await change.reply() == 3
    assert [*known, change.outcome] == [Outcome.PENDING, Outcome.DONE]


async def test_reply_logs_the_silence_and_later_the_delay_when_it_takes_long():
    future = asyncio.get_running_loop().create_future()
    change = change_of(future)
    with structlog.testing.capture_logs() as logs:
        reply = asyncio.create_task(change.reply())
        while len(logs) < 2:  # noqa: ASYNC110 - nothing tells of a line in the log
            await asyncio.sleep(0.001)
        future.set_result(None)
        await reply
    said = [(entry["event"], entry["command"], entry["seconds"]) for entry in logs]
    assert said == [("command.delayed", "job-cancel", 0.005), ("command.delayed", "job-cancel", 0.015)]


@each(("error", "outcome"), [(None, Outcome.DONE), (REFUSED, Outcome.FAILED)])
async def test_reply_is_awaited_when_an_anyio_scope_is_cancelled(error, outcome):
    future = asyncio.get_running_loop().create_future()
    change = change_of(future, Limits())
    settle = (future.set_exception, error) if error else (future.set_result, None)
    asyncio.get_running_loop().call_later(0.02, *settle)
    with anyio.move_on_after(0.001) as scope:
        await change.reply()
    assert scope.cancelled_caught
    assert change.outcome is outcome


async def test_reply_is_awaited_when_the_task_is_cancelled_again_and_again():
    future = asyncio.get_running_loop().create_future()
    change = change_of(future, Limits())
    waiter = asyncio.create_task(change.reply())
    for _ in range(5):
        await asyncio.sleep(0)
        waiter.cancel()
    await asyncio.sleep(0.005)
    assert not waiter.done()
    future.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert change.outcome is Outcome.DONE


async def test_reply_is_given_up_with_outcome_unknown_when_none_comes_after_a_cancellation():
    future = asyncio.get_running_loop().create_future()
    change = change_of(future)
    waiter = asyncio.create_task(change.reply())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(LinkLost, match="cancelled") as caught:
        await waiter
    assert (caught.value.changed, change.outcome) == (Changed.UNKNOWN, Outcome.UNKNOWN)
    future.set_result(None)
    assert await change.reply() is None


async def test_reply_says_link_lost_when_the_link_goes_after_a_cancellation():
    future = asyncio.get_running_loop().create_future()
    change = change_of(future, Limits())
    waiter = asyncio.create_task(change.reply())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.sleep(0)
    future.set_exception(LinkLost("gone", step="job-cancel"))
    with pytest.raises(LinkLost, match="gone"):
        await waiter
    assert change.outcome is Outcome.UNKNOWN


async def test_asyncio_timeout_around_a_change_is_raised_as_a_timeout():
    future = asyncio.get_running_loop().create_future()
    change = change_of(future, Limits())
    asyncio.get_running_loop().call_later(0.2, future.set_result, None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await change.reply()
    assert change.outcome is Outcome.DONE


async def test_settled_raises_the_cancellation_after_the_end():
    future = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(asyncio.wait_for(future, None))
    waiter = asyncio.create_task(settled(task))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.sleep(0)
    assert not waiter.done()
    future.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await waiter
