"""Pauses a guest, unless it stands already."""

from __future__ import annotations

from collections.abc import Collection

from qmpsnap.model.machine import ASLEEP, FOR_A_LOAD
from qmpsnap.model.step import Step
from qmpsnap.run.machine import run_state
from qmpsnap.run.session import Session
from qmpsnap.run.step_failed import step_failed

# A guest that sleeps, or waits for a load that has failed, was paused by nobody either.
_UNPAUSED = frozenset({"running", ASLEEP, FOR_A_LOAD})


async def stop(session: Session, step: Step) -> None:
    """Pause a guest. One that the operation will resume has to be running until then.

    Raises:
        CommandFailed: When it stands already; nothing is sent then.
        LinkLost: When the link goes.

    QAPI: stop.
    """
    if step.undo:
        await refuse_paused(session, step, but=_UNPAUSED)
    await session.change(step.command, step.arguments)


async def refuse_paused(
    session: Session, step: Step, *, but: Collection[str] = frozenset({"running"})
) -> None:
    """Refuse a guest that has been paused, or has shut down, since the plan was made: it must not be resumed.

    Args:
        session: The link.
        step: What was to pause it.
        but: The run states that are as good as running.

    Raises:
        CommandFailed: When it does not run; nothing was sent.
    """
    now = await run_state(session)
    if now not in but:
        what = "the guest was paused already when it was to be paused"
        raise step_failed(step, what, now, hint="try again")
