"""The operation that a command belongs to, and the call-back of one that a call is made from.

Operations share one link, and one of them may be abandoned. An operation waits for its call-backs. So an
operation that is begun in one must not wait for the operation that waits for the call-back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from qmpsnap.errors import Busy

CURRENT_OPERATION: ContextVar[object] = ContextVar("qmpsnap_owner", default=None)
"""The operation that this task, and every task that it starts, works for; None: none."""

PATIENCE: Final = 10.0
"""Seconds until a task that a call-back has started is taken for one that the call-back awaits."""


class Callback:
    """One call of a call-back, while it runs."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self.runs = True

    @property
    def is_here(self) -> bool:
        """Whether it waits for the present task, which is its own."""
        return self.runs and self._task is asyncio.current_task()


_CALLBACK: ContextVar[Callback | None] = ContextVar("qmpsnap_callback", default=None)


@contextmanager
def called_back() -> Iterator[None]:
    """Mark what the block calls, and each task that is started there, as called from a call-back."""
    callback = Callback()
    token = _CALLBACK.set(callback)
    try:
        yield
    finally:
        callback.runs = False
        _CALLBACK.reset(token)


def callback() -> Callback | None:
    """The call-back from which the present task was called or started, even if that has returned; or None."""
    return _CALLBACK.get()


def waits_for_itself() -> Busy:
    """The refusal of an operation that would wait for the one from whose call-back it was called."""
    return Busy(
        "this would have to wait for the operation from whose call-back it was called, which waits for it",
        node="",
        job_id="",
        hint="call it when that operation has ended, or in a task that the call-back does not await",
    )
