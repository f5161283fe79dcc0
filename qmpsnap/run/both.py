"""Runs two coroutines at once, and leaves neither running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


async def both(
    first: Callable[[], Coroutine[object, object, A]], second: Callable[[], Coroutine[object, object, B]]
) -> tuple[A, B]:
    """Run two coroutines concurrently, and return their results once both have ended.

    Raises:
        Exception: What the first raised, else what the second raised; neither is left running.
    """
    tasks = asyncio.ensure_future(first()), asyncio.ensure_future(second())
    await asyncio.gather(*tasks, return_exceptions=True)
    return tasks[0].result(), tasks[1].result()
