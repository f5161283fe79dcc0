from __future__ import annotations

import asyncio

import anyio
import pytest

from qmpsnap.run.both import both


async def gives(value: str) -> str:
    return value


async def test_both_gives_each_result_with_its_type() -> None:
    assert await both(lambda: gives("a"), lambda: gives("b")) == ("a", "b")


@pytest.mark.parametrize("fails", [0, 1])
async def test_both_raises_once_the_other_has_ended(fails: int) -> None:
    ended = []

    async def slow() -> None:
        await anyio.wait_all_tasks_blocked()
        ended.append("slow")

    async def failing() -> None:
        raise ValueError("it failed")

    calls = (failing, slow) if fails == 0 else (slow, failing)
    with pytest.raises(ValueError, match="it failed"):
        await both(*calls)
    assert ended == ["slow"]


async def test_both_that_is_cancelled_leaves_neither_running() -> None:
    ended = []

    async def waits(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await anyio.lowlevel.checkpoint()
            ended.append(name)

    task = asyncio.create_task(both(lambda: waits("a"), lambda: waits("b")))
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == ["a", "b"]
