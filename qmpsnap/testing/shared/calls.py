"""Calls from a plain test into the plugin's event loop.

No error of a test ends that loop. `pytest.skip` and `pytest.fail` raise what is no Exception, as does Ctrl-C:
in a task of the loop it would end the loop, and with it the machines of all other tests.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import anyio

from qmpsnap.errors import Unsupported

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal


async def _outcome(function: Callable[..., Any], *arguments: object) -> tuple[Any, BaseException | None]:
    """Return the result, or else an error that would end the loop."""
    try:
        result = function(*arguments)
        return (await result if inspect.isawaitable(result) else result), None
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001 - `Calls` and `Inside` raise it
        return None, error


class Calls:
    """The calls of a plain test; `leave_all` ends what it has entered in the loop, and not left."""

    def __init__(self, portal: BlockingPortal) -> None:
        self.entered: Final[list[Inside]] = []
        self._portal: Final = portal
        self._pid: Final = os.getpid()

    @property
    def portal(self) -> BlockingPortal:
        """The portal, whose thread a process forked from this one does not have: a call there never ends.

        Raises:
            Unsupported: In such a process.
        """
        if os.getpid() != self._pid:
            raise Unsupported(
                "this process is not the one that pytest runs in, and only that one can use the machine",
                feature="the plugin's machine in a process that a test has forked",
                hint="use it in the test itself, or in a thread",
            )
        return self._portal

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - its result
        """Call a function in the portal's loop and wait; if the wait is interrupted, cancel the call.

        Raises:
            Unsupported: In a process that a test has forked.
            BaseException: What the function raises.
        """
        future = self.portal.start_task_soon(_outcome, function, *arguments)
        try:
            result, error = future.result()
        except BaseException:
            future.cancel()
            raise
        if error is not None:
            raise error
        return result

    def leave_all(self) -> None:
        """Leave each manager that is still entered, the last one first, also if one of them raises."""
        with ExitStack() as stack:
            for inside in self.entered:
                stack.callback(inside.__exit__, None, None, None)


class Inside(AbstractContextManager[Any]):
    """An async context manager that plain code enters in the portal's loop.

    Args:
        calls: The test's calls.
        manager: The manager.
        wrap: Makes what the block gets of what the manager returns.
    """

    def __init__(
        self, calls: Calls, manager: AbstractAsyncContextManager[Any], wrap: Callable[[Any], Any]
    ) -> None:
        self._calls: Final = calls
        self._manager: Final = manager
        self._wrap: Final = wrap
        self._reason: tuple[Any, Any, Any] = (None, None, None)
        self._leave: anyio.Event
        self._held: Future[tuple[Any, BaseException | None]]

    def __enter__(self) -> Any:  # noqa: ANN401 - the manager's
        entered: Future[tuple[Any, BaseException | None]] = Future()
        self._held = self._calls.portal.start_task_soon(self._hold, entered)
        try:
            value, error = entered.result()
        except BaseException:
            self._held.cancel()
            raise
        if error is not None:
            raise error
        self._calls.entered.append(self)
        return self._wrap(value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self not in self._calls.entered:  # the test's end came before
            return False
        self._calls.entered.remove(self)
        self._reason = kind, error, traceback
        self._calls.call(self._leave.set)
        result, raised = self._held.result()
        if raised is not None and _only(raised) is not error:
            raise raised
        return bool(result)

    async def _hold(
        self, entered: Future[tuple[Any, BaseException | None]]
    ) -> tuple[Any, BaseException | None]:
        """Enter it, and leave it in the same task."""
        self._leave = anyio.Event()
        try:
            value, error = await _outcome(self._manager.__aenter__)
        except BaseException as why:
            entered.set_exception(why)
            if isinstance(why, Exception):
                return None, None
            raise
        entered.set_result((value, error))
        if error is not None:
            return None, None
        try:
            await self._leave.wait()
        finally:
            outcome = await _outcome(self._manager.__aexit__, *self._reason)
        return outcome


def _only(error: BaseException) -> BaseException:
    """Return the only error in a group, such as that of a task group, or the error itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        (error,) = error.exceptions
    return error
