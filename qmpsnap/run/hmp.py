"""Checkpoints through the human monitor: what it says, and what that means for a guest that ran."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from qmpsnap.errors import Changed, CommandFailed
from qmpsnap.model.hints import LOAD_FAILED
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.plan.hmp_steps import DelVm, LoadVm, SaveVm
from qmpsnap.run.machine import is_running, run_state

if TYPE_CHECKING:
    from qmpsnap.plan.guest_steps import StopForLoad
    from qmpsnap.plan.hmp_steps import HmpStep
    from qmpsnap.run.session import Session

__all__ = ["checkpoint", "failed_early", "stop_for_load"]

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


async def checkpoint(session: Session, step: HmpStep) -> None:
    """Do the step.

    Raises:
        CommandFailed: When the monitor has anything to say. Of a load that failed before the disks moved
            `changed` is NO, and a guest that ran runs on; of any other it is YES, and the guest stands.
        LinkLost: When the link goes; what became of it is not known.
    """
    ran = isinstance(step, LoadVm) and await is_running(session)
    said = str(await session.change(step.command, step.arguments)).strip()
    if not said:
        return
    match step:
        case SaveVm():
            raise _failed(step, f"QEMU could not take checkpoint {step.name!r}", said)
        case DelVm():
            raise _failed(step, f"QEMU could not delete checkpoint {step.name!r}", said)
        case LoadVm():
            if failed_early(said):
                if ran:
                    await session.change("cont", {})
                raise _failed(step, f"QEMU did not revert to {step.name!r}", said)
    raise _failed(
        step,
        f"QEMU failed while reverting to {step.name!r}; the guest is paused, its disks are "
        "reverted, its memory cannot be trusted",
        said,
        changed=Changed.YES,
        hint=LOAD_FAILED,
    )


async def stop_for_load(session: Session, step: StopForLoad) -> None:
    """Stop a guest that runs by a load that has to fail.

    Raises:
        CommandFailed: When the guest stands already, for it is somebody else's wish; nothing is sent then.
        CommandFailed: When QEMU did not do what a load does to a guest that runs: it is let run on. When it
            has nothing to say, it has loaded something, and `changed` is YES.
        LinkLost: When the link goes; the guest may stand in `restore-vm`.
    """
    if not await is_running(session):
        raise _failed(step, "the guest was paused already when it was to be paused", await run_state(session))
    said = str(await session.change(step.command, step.arguments)).strip()
    state = await run_state(session)
    if said and state == FOR_A_LOAD:
        return
    if not said:
        what = "QEMU loaded a snapshot that should not exist"
        raise _failed(step, what, step.name, changed=Changed.YES, hint="revert again")
    if not await is_running(session):
        with suppress(CommandFailed):  # it is said below how it stands
            await session.change("cont", {})
    raise _failed(step, f"QEMU did not pause the guest for the load, it was {state}", said)


def failed_early(said: str) -> bool:
    """Whether a load that failed with these words had moved nothing yet."""
    return any(text in said for text in _EARLY)


def _failed(
    step: HmpStep | StopForLoad, what: str, said: str, *, changed: Changed = Changed.NO, hint: str = ""
) -> CommandFailed:
    text = " ".join(said.split())
    return CommandFailed(
        f"{what}: {text}",
        command=step.command,
        arguments=step.arguments,
        qmp_class="GenericError",
        desc=text,
        changed=changed,
        hint=hint,
    )
