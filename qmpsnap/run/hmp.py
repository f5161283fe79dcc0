"""Checkpoints through the human monitor: what it says, and what that means for a guest that ran."""

from __future__ import annotations

from contextlib import suppress

from qmpsnap.errors import Changed, CommandFailed
from qmpsnap.model.hints import LOAD_FAILED
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.step import Step
from qmpsnap.run.machine import is_running, run_state
from qmpsnap.run.pausing import refuse_paused
from qmpsnap.run.session import Session
from qmpsnap.run.step_failed import step_failed

# What loadvm and snapshot-load say before they have moved any disk; the same on 7.2, 10.0 and 11.1.
_EARLY = (
    "No block device node '",
    "vmstate block device '",
    "does not exist in one or more devices",
    "This is a disk-only snapshot",
    "is writable but does not support snapshots",
    "no block device can store vmstate",
    "There is no snapshot available",
)


async def manage(session: Session, step: Step) -> None:
    """Take or delete a checkpoint: savevm, delvm.

    Raises:
        CommandFailed: When the monitor has anything to say. Of a checkpoint that was not taken or not deleted
            on each disk `changed` is NO: the graph, which is read next, tells.
        LinkLost: When the link goes; what became of it is not known.
    """
    if said := await _said(session, step):
        verb = "take" if step.way == "savevm" else "delete"
        raise step_failed(step, f"QEMU could not {verb} checkpoint {step.detail['name']!r}", said)


async def load(session: Session, step: Step) -> None:
    """Go back to a checkpoint: loadvm.

    Raises:
        CommandFailed: When the monitor has anything to say. Of a load that failed before the disks moved
            `changed` is NO, and a guest that ran is paused until the step's `on_failure` is done; of any
            other it is YES, and the guest stays paused.
        LinkLost: When the link goes; what became of it is not known.
    """
    said, name = await _said(session, step), step.detail["name"]
    if said and failed_early(said):
        raise step_failed(step, f"QEMU did not revert to {name!r}", said)
    if said:
        raise step_failed(
            step,
            f"QEMU failed while reverting to {name!r}; the guest is paused, its disks are "
            "reverted, its memory cannot be trusted",
            said,
            changed=Changed.YES,
            hint=LOAD_FAILED,
        )


async def stop_for_load(session: Session, step: Step) -> None:
    """Stop a guest that runs by a load that has to fail.

    Raises:
        CommandFailed: When the guest stands already, for it is somebody else's wish; nothing is sent then.
        CommandFailed: When QEMU did not do what a load does to a guest that runs: it is let run on. When it
            has nothing to say, it has loaded something, and `changed` is YES.
        LinkLost: When the link goes; the guest may stand in `restore-vm`.
    """
    await refuse_paused(session, step)
    said = await _said(session, step)
    state = await run_state(session)
    if said and state == FOR_A_LOAD:
        return
    if not said:
        what = "QEMU loaded a snapshot that should not exist"
        raise step_failed(step, what, step.detail["name"], changed=Changed.YES, hint="revert again")
    if not await is_running(session):
        with suppress(CommandFailed):  # it is said below how it stands
            for back in step.undo:
                await session.change(back.command, back.arguments)
    raise step_failed(step, f"QEMU did not pause the guest for the load, it was {state}", said)


async def _said(session: Session, step: Step) -> str:
    """What the human monitor answers; nothing when it succeeds."""
    return str(await session.change(step.command, step.arguments)).strip()


def failed_early(said: str) -> bool:
    """Whether a load that failed with these words had moved nothing yet."""
    return any(text in said for text in _EARLY)
