"""States of the guest, of a job and of a migration. QAPI: RunState, JobStatus, MigrationStatus.

The sets of words are those of QEMU 7.2, 10.0 and 11.1 together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qmpsnap.model.job import JobStatus
from qmpsnap.model.meaning.entry import Said

RUN_STATES: Mapping[str, Said] = MappingProxyType(
    {
        "running": Said("The guest's CPUs are running."),
        "paused": Said(
            "The guest was paused by a command: stop, or an operation that needs it paused.",
            "`qmpsnap cont` resumes it. Look at `qmpsnap jobs` first: an operation that was interrupted "
            "may have left it paused.",
        ),
        "prelaunch": Said(
            "QEMU was started with -S: the guest has not run yet, or it was reset while it was paused.",
            "`qmpsnap cont` starts it.",
        ),
        "io-error": Said(
            "QEMU paused the guest because a read or write of a disk failed, and the disk's policy is to "
            "stop (werror, rerror). The guest has not seen the error.",
            "The io-status in `qmpsnap qmp query-block` says which disk it is, and whether the reason is a "
            "lack of space. Remove the cause, for instance make room; then `qmpsnap cont` repeats the "
            "request.",
        ),
        "inmigrate": Said(
            "QEMU was started with -incoming and waits for VM state, or is loading it.",
            "`qmpsnap restore FILE`, or `qmpsnap revert NAME --into-incoming`, loads VM state.",
        ),
        "postmigrate": Said(
            "The guest is paused because its state was saved to a file, or migrated to another QEMU.",
            "If the state was migrated, the guest runs there: end this QEMU. If it was saved, `qmpsnap "
            "cont --after-migration` resumes the guest here, and the saved state then no longer matches "
            "the disks.",
        ),
        "finish-migrate": Said(
            "The guest is paused while the last part of its state is saved or migrated.",
            "Wait until it ends; `qmpsnap status` shows how the migration stands.",
        ),
        "restore-vm": Said(
            "VM state is being loaded. If the state lasts, a load has failed or its client has gone: the "
            "guest's memory may not match its disks.",
            "`qmpsnap jobs` shows whether an operation has to be finished. Otherwise load VM state again, "
            "or reset the guest with `qmpsnap qmp system_reset`. Do not resume it as it is.",
        ),
        "save-vm": Said(
            "The guest is paused while its state is saved into an image (`savevm`, `snapshot-save`).",
            "Wait until it ends. QEMU answers nobody meanwhile.",
        ),
        "shutdown": Said(
            "The guest has shut down, and QEMU was started with -no-shutdown, so it still runs.",
            "End QEMU, or start the guest again: `qmpsnap qmp system_reset`, then `qmpsnap cont`.",
        ),
        "suspended": Said(
            "The guest has suspended itself to RAM (ACPI S3): its CPUs are off until something wakes it.",
            "`qmpsnap qmp system_wakeup` wakes it.",
        ),
        "watchdog": Said(
            "The guest's watchdog has expired, and QEMU paused the guest (-action watchdog=pause).",
            "`qmpsnap cont` resumes the guest; `qmpsnap qmp system_reset` starts it again.",
        ),
        "guest-panicked": Said(
            "The guest's kernel has reported a panic (pvpanic), and QEMU paused the guest.",
            "Its memory can still be saved, with `qmpsnap save FILE`. Start it again with `qmpsnap qmp "
            "system_reset`, then `qmpsnap cont`.",
        ),
        "internal-error": Said(
            "QEMU or KVM could not execute what the guest did, and paused the guest.",
            "QEMU's log says more. Start the guest again: `qmpsnap qmp system_reset`, then `qmpsnap cont`.",
        ),
        "debug": Said(
            "A debugger that is attached to QEMU (-gdb) has stopped the guest.", "Continue in the debugger."
        ),
        "colo": Said(
            "The guest is one of a COLO pair, and paused for a checkpoint or a failover.",
            "`qmpsnap qmp x-colo-lost-heartbeat` ends the pair, and this guest goes on alone.",
        ),
        "preconfig": Said(
            "QEMU was started with -preconfig: the machine is not created yet.",
            "`qmpsnap qmp x-exit-preconfig` creates it.",
        ),
    }
)
"""Meaning of each run state, as `status` prints it."""

_S = JobStatus
JOB_STATES: Mapping[JobStatus, Said] = MappingProxyType(
    {
        _S.UNDEFINED: Said("The job is being created. No client ever sees this state."),
        _S.CREATED: Said("The job exists, and has not started yet."),
        _S.RUNNING: Said(
            "The job is at work.", "`qmpsnap jobs` shows its progress; `qmpsnap job wait ID` waits for it."
        ),
        _S.PAUSED: Said(
            "The job is paused: by request, by an I/O error, or for a moment because QEMU drains the disk.",
            "If `qmpsnap jobs` shows an I/O error, remove its cause. `qmpsnap job resume ID` resumes the "
            "job.",
        ),
        _S.READY: Said(
            "The copy equals the source, and the job copies each new write until it is completed. Only a "
            "mirror, or a commit of the active layer, gets here.",
            "`qmpsnap job wait ID` finishes a job of qmpsnap. Another client's job waits for that client: "
            "`qmpsnap qmp job-complete` makes its disk pivot, and `qmpsnap qmp block-job-cancel` ends the "
            "job without.",
        ),
        _S.STANDBY: Said("A job that was ready is paused.", "`qmpsnap job resume ID` resumes it."),
        _S.WAITING: Said("The job has done its work, and waits for the other jobs of its transaction."),
        _S.PENDING: Said(
            "The job has done its work, and changes the graph only when it is finalized.",
            "`qmpsnap job wait ID` finishes a job of qmpsnap. Another client's job waits for that client: "
            "`qmpsnap qmp job-finalize` finishes it.",
        ),
        _S.ABORTING: Said("The job has failed or was cancelled, and cleans up. It ends by itself."),
        _S.CONCLUDED: Said(
            "The job has ended, well or not; its error, if any, is kept until the job is dismissed.",
            "`qmpsnap jobs` shows the error. `qmpsnap job wait ID` finishes a job of qmpsnap. Another "
            "client's job waits for that client: `qmpsnap qmp job-dismiss` removes it.",
        ),
        _S.NULL: Said("The job has ended and was dismissed: it is gone."),
    }
)
"""Meaning of each state of a job, as `jobs` prints it."""

MIGRATION_STATES: Mapping[str, Said] = MappingProxyType(
    {
        "none": Said("Nothing was migrated, and no VM state was saved by a migration, since QEMU started."),
        "setup": Said("The migration is about to start."),
        "active": Said("The guest's memory is being sent; the guest runs on, unless it was paused before."),
        "pre-switchover": Said(
            "The guest is paused before its devices are sent, and a client has to let the migration "
            "continue.",
            "The client that migrates sends `migrate-continue`.",
        ),
        "device": Said("The guest is paused, and the state of its devices is being sent."),
        "completed": Said(
            "The state of the guest has been sent, or saved, completely.", "See the run state postmigrate."
        ),
        "cancelling": Said("The migration is being cancelled. It ends by itself."),
        "cancelled": Said("The migration was cancelled; the guest runs here as before."),
        "failing": Said("The migration has failed, and cleans up. It ends by itself."),
        "failed": Said(
            "The migration has failed. After a failed save the guest is here as before; after a failed "
            "load its memory is not usable.",
            "The error-desc in `qmpsnap qmp query-migrate` gives the reason.",
        ),
        "postcopy-device": Said("The guest's devices are being loaded; then it runs at the destination."),
        "postcopy-active": Said("The guest runs at the destination, and its memory follows on demand."),
        "postcopy-paused": Said(
            "The connection of a postcopy migration broke; the guest waits at the destination for its "
            "memory.",
            "The client that migrates recovers it: `migrate-recover` there, then `migrate` with `resume` "
            "here. Killing either QEMU loses the guest.",
        ),
        "postcopy-recover-setup": Said("A postcopy migration is about to recover its connection."),
        "postcopy-recover": Said("A postcopy migration is recovering its connection."),
        "colo": Said("The guest is one of a COLO pair."),
        "wait-unplug": Said("QEMU waits until the guest has released a device that cannot be migrated."),
    }
)
"""Meaning of each state of a migration, as `status` prints it."""
