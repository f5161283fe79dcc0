"""Whether the guest may be resumed, or paused, by a caller who asks for just that: cont and stop."""

from __future__ import annotations

from collections.abc import Iterable

from qmpsnap.errors import Busy, Unsupported
from qmpsnap.model.hints import LOAD_FAILED, LOAD_STATE, qmp
from qmpsnap.model.machine import FOR_A_LOAD, Status
from qmpsnap.model.record import IntentRecord

_BARE = "qmpsnap qmp cont sends it all the same"
_WRECK = (
    "a load of VM state has failed, or its client went away in the middle of it: the guest's memory may "
    "belong to other disks"
)
_SAVED = (
    "its state was saved or migrated away. If it runs here, the saved state no longer matches its disks, "
    "and a migrated guest would run twice"
)

RESUME_REFUSED = {
    FOR_A_LOAD: (
        _WRECK,
        f"qmpsnap jobs shows what is left, and how to finish it; else {LOAD_FAILED}; {_BARE}",
    ),
    "inmigrate": (
        "QEMU waits for VM state, and would start the guest as soon as it arrives",
        LOAD_STATE,
    ),
    "postmigrate": (
        _SAVED,
        "to resume it here all the same: qmpsnap cont --after-migration",
    ),
    "save-vm": ("VM state is being saved", "wait until it ends"),
    "shutdown": (
        "the guest has shut down, and QEMU resumes it only after a reset",
        "qmpsnap qmp system_reset, then qmpsnap cont",
    ),
    "internal-error": (
        "QEMU met an internal error, and can resume only after a reset",
        "qmpsnap qmp system_reset, then qmpsnap cont",
    ),
    "preconfig": ("the machine is not created yet", "qmpsnap qmp x-exit-preconfig"),
    "colo": ("it is part of a COLO pair", "end that first: qmpsnap qmp x-colo-lost-heartbeat"),
}
"""Run states in which we refuse to resume the guest: why, and what to do instead.

QEMU would take `cont` there, or refuse it without saying what helps.
In every other state the guest may be resumed. QAPI: RunState (run-state.json).
"""


def refuse_cont(status: Status, records: Iterable[IntentRecord], *, after_migration: bool) -> None:
    """Refuse to resume a guest whose memory cannot be trusted, or that runs elsewhere.

    Args:
        status: The guest's state.
        records: Operations on this machine that are running, or were interrupted.
        after_migration: Whether the guest may run here although its state was saved or migrated away.

    Raises:
        Busy: While a migration is running, or an operation of ours that resumes the guest itself, or that was
            interrupted while the guest was paused.
        Unsupported: When the run state does not allow it.
    """
    for record in records:
        if record.origin is not None and not status.running:
            raise _held(record)
    if status.migrating:
        raise Busy(
            f"a migration is running ({status.phase})",
            node="",
            job_id="",
            hint=f"wait until it ends, or cancel it: {qmp('migrate_cancel')}",
        )
    if status.state == "postmigrate" and after_migration:
        return
    if status.state in RESUME_REFUSED:
        why, hint = RESUME_REFUSED[status.state]
        raise Unsupported(
            f"the machine is in the state {status.state}: {why}",
            feature=f"resuming the guest in run state {status.state!r}",
            hint=hint,
        )


def refuse_stop(records: Iterable[IntentRecord]) -> None:
    """Refuse to pause the guest while an operation of ours would resume it afterwards."""
    for record in records:
        if record.origin is not None and record.live:
            raise _held(record)


def _held(record: IntentRecord) -> Busy:
    what = f"{record.op} {record.name!r}" if record.name else record.op
    if record.live:
        return Busy(
            f"{what} is running, and resumes the guest itself",
            node="",
            job_id=record.id,
            hint="wait until it ends",
        )
    return Busy(
        f"{what} was interrupted, and the guest may be between two states",
        node="",
        job_id=record.id,
        hint=f"finish it first: qmpsnap job wait {record.id}",
    )
