"""Plan -> effects: check the chains, perform, wait, check again; undo or report.

The only code that changes a VM. An operation runs in a task of its own that is never cancelled: a
caller's cancellation is a request to it, so that what was sent is always awaited, and then undone
or brought to its end. `Executor.run` returns only when that task has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import anyio

from qmpsnap.errors import Busy, QmpsnapError
from qmpsnap.model.graph import Graph
from qmpsnap.plan.commands.files import remove_orphan
from qmpsnap.plan.commands.records import record_of
from qmpsnap.plan.plan import Plan
from qmpsnap.run.current_operation import CURRENT_OPERATION
from qmpsnap.run.file_limit import OPERATION, require_room
from qmpsnap.run.log import get_logger
from qmpsnap.run.machine_lock import Hold, MachineLock
from qmpsnap.run.operation import Operation
from qmpsnap.run.outcome import Done, Hooks, joined, stopped_between
from qmpsnap.run.target import Target
from qmpsnap.run.turns import Turns, claim_of

_log = get_logger("qmpsnap.run")
_AFTER_CANCEL = 30.0  # seconds
_AFTER_ABANDON = 2.0  # seconds, for what an operation does when its link is given up
When = Callable[[Callable[[], Awaitable[Plan]]], Awaitable[Plan]]


class Executor:
    """Runs plans on one target: side by side where they have no disk in common, else one after the other.

    Args:
        target: The machine.
        after_cancel: Seconds that taking back or finishing may take once the caller has left.
    """

    def __init__(self, target: Target, *, after_cancel: float = _AFTER_CANCEL) -> None:
        self._target = target
        self._after_cancel = after_cancel
        self._turns = Turns()
        self._lock = MachineLock(lambda: target.pid)

    def holds(self, job_id: str) -> bool:
        """Whether the job belongs to an operation that is running in this process."""
        return self._turns.holds(job_id)

    async def run(
        self,
        plan: Plan,
        hooks: Hooks | None = None,
        *,
        seen: Graph | None = None,
        check: Callable[[Plan], Awaitable[Graph | None]] | None = None,
        wait: bool = False,
    ) -> Done:
        """Run a plan to its end.

        Cancelled before the step that cannot be taken back, what was done is undone; after it, the
        rest is done. What stays behind is in the log, and in the notes of the CancelledError. Either is
        bounded by 30 s; then the cancellation goes on its way, and a guest that the plan has stopped may
        stand still until `jobs.wait` of `plan.operation_id`; the log says so.

        Args:
            plan: The plan, as the planner made it.
            hooks: What the caller wants to be told, and its wish to leave.
            seen: The graph when it was read a moment ago, for this very plan.
            check: Refuses a plan that should not be run any more, and returns the graph if it has read it.
            wait: Whether to wait for one that copies whole layers of the same disks; what takes moments is
                waited for in any case.

        Raises:
            Busy: When one that copies whole layers has to end first, and `wait` is False; or another client
                is finishing the same interrupted operation.
            GraphMismatch: When the chains are not those that the plan was made on, `changed` NO; or
                not the predicted ones afterwards.
            Refused: When a file could not be made; nothing was sent.
            CommandFailed: When QEMU refused a command; what was done before is undone.
            JobFailed: When a job ended with an error.
            JobPaused: When an I/O error paused the job by its policy; the job is left as it is.
            Detached: When the caller left; the job runs on.
            Interrupted: When the caller asked to stop; what was done is undone.
            Incomplete: When the operation succeeded and something could not be put away.
            LinkLost: When the link went; `changed` says what is known after one try to connect again.
        """
        require_room(OPERATION)
        count = self._turns.count + 1  # with our own beginning
        async with self._held() as hold, self._turns.of(plan, wait=wait, hold=hold):
            await hold.take()
            seen = seen if self._turns.count == count else None
            seen = await check(plan) if check is not None else seen
            return await self._run(plan, hooks, seen, hold, check=check)

    async def do(
        self,
        make: Callable[[], Awaitable[Plan]],
        hooks: Hooks | None = None,
        *,
        check: Callable[[Plan], Awaitable[Graph | None]] | None = None,
        when: When | None = None,
        wait: bool = False,
    ) -> Done:
        """Plan and run at once; planned once more when another plan of ours ran in between.

        Args:
            make: Reads the machine and plans.
            hooks: What the caller wants to be told, and its wish to leave.
            check: As in `run`, for the parts that are run later.
            when: Calls `make` when nothing prevents it any more; None: it is called at once.
            wait: As in `run`.

        Raises:
            QmpsnapError: What `make` and `run` raise.
        """
        require_room(OPERATION)
        async with self._held() as hold:

            async def locked() -> Plan:
                await hold.take()
                try:
                    return await make()
                except Busy:  # others end what is in the way
                    hold.give()
                    raise

            made = locked if when is None else partial(when, locked)
            count = self._turns.count
            plan = await self._made(made, wait=wait)
            while True:
                async with self._turns.of(plan, wait=wait, hold=hold) as claim:
                    remade = self._turns.count != count + 1  # more than our own beginning
                    if remade:
                        count = self._turns.count
                        plan = await made()
                    if not remade or claim.covers(claim_of(plan)):
                        return await self._run(plan, hooks, plan.before, hold, check=check, fresh=True)
                count += 1  # that we have ended, without anything done

    async def _made(self, make: Callable[[], Awaitable[Plan]], *, wait: bool) -> Plan:
        """Plan; again when what is in the way is left by an operation that is about to end here."""
        while True:
            try:
                return await make()
            except Busy as busy:
                if not wait or busy.job_id or not await self._turns.one_ended():
                    raise

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[Hold]:
        """An operation's part of the lock, which is given at the end."""
        hold = Hold(self._lock)
        try:
            with hold.current():
                yield hold
        finally:
            hold.give()

    async def remove_overlays(self, plan: Plan) -> None:
        """Remove the overlays that a plan created, unless written to; a cancellation waits for that."""
        task = asyncio.create_task(self._remove_overlays(plan))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await _done(task, self._after_cancel)
            raise

    async def _remove_overlays(self, plan: Plan) -> None:
        """An overlay that cannot be removed stays, and is logged."""
        for step in plan.steps:
            if step.command == "create-overlay":
                file, backing = step.arguments["file"], step.arguments["backing"]
                try:
                    await self._target.perform(remove_orphan(file, backing))
                except QmpsnapError as error:
                    _log.warning("overlay.left", file=file, reason=str(error))

    async def _run(
        self,
        plan: Plan,
        hooks: Hooks | None,
        seen: Graph | None,
        hold: Hold,
        *,
        check: Callable[[Plan], Awaitable[Graph | None]] | None,
        fresh: bool = False,
    ) -> Done:
        """Run a plan, and what is to be run after it; the error of a later part says what was done before.

        Raises:
            Incomplete: When a part failed, or was refused, after another one was done.
        """
        done: Done | None = None
        for number, part in enumerate(plan.parts):
            try:
                if number and check is not None and part.start is not None:  # much may have happened
                    seen = await check(part)
                more = await self._run_part(part, hooks, seen, hold, fresh=fresh)
            except QmpsnapError as error:
                if done is None:
                    raise
                raise stopped_between(error, done, plan.parts[number:]) from error
            done = more if done is None else joined(done, more)
            seen, fresh = None, False
        assert done is not None  # noqa: S101 - a plan is its own first part
        return done

    async def _run_part(
        self, plan: Plan, hooks: Hooks | None, seen: Graph | None, hold: Hold, *, fresh: bool = False
    ) -> Done:
        try:
            await self._target.claim_records(plan.takes_over)
            return await self._run_claimed(plan, hooks or Hooks(), seen, hold, fresh=fresh)
        finally:
            written = (record_of(step) for step in (*plan.steps, *plan.resumes))
            self._target.release_records({record.id for record in (*written, *plan.takes_over) if record})

    async def _run_claimed(
        self, plan: Plan, hooks: Hooks, seen: Graph | None, hold: Hold, *, fresh: bool
    ) -> Done:
        operation = Operation(self._target, plan, hooks, seen, hold, fresh=fresh)
        context = contextvars.copy_context()
        context.run(CURRENT_OPERATION.set, operation)
        task = asyncio.create_task(operation.run(), name=f"qmpsnap: {plan.op}", context=context)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as cancelled:
            operation.stop.set()
            await self._ended(task, operation, plan)
            for note in _log_cancelled(task, plan):
                cancelled.add_note(note)
            raise

    async def _ended(self, task: asyncio.Task[Done], operation: Operation, plan: Plan) -> None:
        """Wait for the task's end, whatever cancels us meanwhile; end it by force after the limit."""
        limit, op = self._after_cancel, plan.op
        with anyio.CancelScope(shield=True):
            await _done(task, limit)
            if not task.done():
                guest = {"guest": "may stay paused until then"} if plan.halts else {}
                end = f"qmpsnap job wait {plan.operation_id}" if plan.operation_id else ""
                _log.warning("operation.given_up", op=op, after=limit, ended_by=end, **guest)
                await self._target.abandon(operation)
                await _done(task, min(limit, _AFTER_ABANDON))
                task.cancel()
                await _done(task, min(limit, _AFTER_ABANDON))


def _log_cancelled(task: asyncio.Task[Done], plan: Plan) -> tuple[str, ...]:
    """Log how a cancelled operation ended; return what stays behind, for a traceback to show."""
    if not task.done() or task.cancelled():
        return ()
    error = task.exception()
    left = error.left if isinstance(error, QmpsnapError) else ()
    log = _log.warning if left else _log.info
    facts = {"left": left} if left else {}
    outcome = str(error) if error else "it was done already"
    log("operation.cancelled", op=plan.op, outcome=outcome, **facts)
    return tuple(f"left by the cancelled {plan.op}: {line}" for line in left)


async def _done(task: asyncio.Task[Done] | asyncio.Task[None], limit: float) -> None:
    """Wait until the task is done, at most so many seconds, however often we are cancelled meanwhile."""
    deadline = time.monotonic() + limit
    while not task.done() and time.monotonic() < deadline:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=deadline - time.monotonic())
