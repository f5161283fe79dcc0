"""The caller of a running operation: its callbacks, and its requests to stop or to detach.

An exception in a callback must not leave an operation half-done: it counts as a request to stop, and is
raised once everything is rolled back or done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Literal, TypeVar, assert_never

import anyio

from qmpsnap.errors import QmpsnapError
from qmpsnap.model.job import Job
from qmpsnap.model.step import Step
from qmpsnap.run.current_operation import called_back
from qmpsnap.run.log import get_logger
from qmpsnap.run.outcome import Hooks
from qmpsnap.run.target import Progress, Target, Watch, guest_of

_log = get_logger("qmpsnap.run")
Result = TypeVar("Result")
_LONG = frozenset({"saved", "kept", "loaded"})  # waits for all of the memory


class Caller:
    """The caller of one operation.

    Attributes:
        stop: Set when the operation should stop: by the caller, by a cancellation, or by an error in a
            callback.
        complaint: The exception that a callback raised, or None.
    """

    def __init__(self, hooks: Hooks) -> None:
        self.stop = hooks.cancel or anyio.Event()
        self.complaint: Exception | None = None
        self._hooks = hooks

    async def tell_pivot(self, active: Mapping[str, str]) -> None:
        """Report where each disk's root is now; never raises."""
        try:
            with called_back():
                await self._hooks.tell_pivot(active)
        except Exception as error:  # noqa: BLE001 - raised when all is in order
            self._complain(error)

    async def tell_step(self, step: Step) -> None:
        """Report a step that is about to be done; never raises."""
        try:
            with called_back():
                await self._hooks.tell_step(step)
        except Exception as error:  # noqa: BLE001 - raised when all is in order
            self._complain(error)

    async def wait(
        self, step: Step, watch: Watch, target: Target, *, may_leave: bool, quiet: bool = False
    ) -> Job | None:
        """Wait for the job, or for a request to stop or detach, whichever is first; None for a request.

        Args:
            step: What is waited for.
            watch: The watch on the job, opened before the job was started.
            target: Where the job is.
            may_leave: Whether a request ends the wait.
            quiet: Whether to skip progress reports: the job blocks QEMU's main loop and reports none.

        Raises:
            JobFailed, JobPaused, LinkLost: What the wait for the job raises.
        """
        looks = None if quiet else target.progress(step.job_id, self._hooks.interval)
        requests = (self.stop, self._hooks.detach) if may_leave else ()
        return await self._first(partial(_reached, step, watch), looks, requests)

    async def wait_migration(self, step: Step, target: Target) -> bool:
        """Wait for a migration, or for a request to stop; False for the request.

        Raises:
            MigrationFailed, LinkLost: What the wait raises.
        """
        long = step.arguments["until"] in _LONG
        looks = guest_of(target).memory_progress(self._hooks.interval) if long else None
        requests = (self.stop,) if step.detail["may_stop"] else ()
        return await self._first(partial(target.perform, step), looks, requests) is not None

    async def _first(
        self,
        wait: Callable[[], Awaitable[Result]],
        looks: AsyncIterator[Progress] | None,
        requests: Iterable[anyio.Event | None],
    ) -> Result | None:
        """The result of the wait, with progress reports meanwhile; None when a request was set before it."""
        results: list[Result] = []
        failures: list[QmpsnapError] = []

        async def finish(scope: anyio.CancelScope) -> None:
            try:
                results.append(await wait())
            except QmpsnapError as error:
                failures.append(error)
            scope.cancel()

        async def leave(request: anyio.Event, scope: anyio.CancelScope) -> None:
            await request.wait()
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(finish, group.cancel_scope)
            if looks is not None and self._hooks.progress is not None and self.complaint is None:
                group.start_soon(self._report, looks)
            for request in requests:
                if request is not None:
                    group.start_soon(leave, request, group.cancel_scope)
        if failures:
            raise failures[0]
        return results[0] if results else None

    async def _report(self, looks: AsyncIterator[Progress]) -> None:
        """Report the progress; never raises."""
        try:
            async for progress in looks:
                await self._hooks.tell(progress)
        except QmpsnapError as error:  # the wait for the job says more
            _log.debug("progress.lost", reason=str(error))
        except Exception as error:  # noqa: BLE001 - raised when all is in order
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        self.complaint = self.complaint or error
        self.stop.set()


async def _reached(step: Step, watch: Watch) -> Job:
    until: Literal["ready", "pending", "concluded"] = step.arguments["until"]
    match until:
        case "ready":
            return await watch.until_ready()
        case "pending":
            return await watch.until_pending()
        case "concluded":
            return await watch.until_concluded()
        case _:
            assert_never(until)
