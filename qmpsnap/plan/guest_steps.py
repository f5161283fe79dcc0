"""Steps on the guest: it stands still, runs on, or begins anew. Part of the vocabulary in steps.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qmpsnap.plan.hmp_steps import quoted
from qmpsnap.plan.job_steps import QmpStep

__all__ = ["ContinueGuest", "GuestStep", "ResetGuest", "StopForLoad", "StopGuest"]

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class StopGuest(QmpStep):
    """Let a guest that runs stand still; does nothing when it stands. QAPI: stop (misc.json).

    It is sent to a paused guest as well: somebody may have let it run a moment ago.

    Attributes:
        ran: Whether the guest ran when the plan was made, and is to run on if this is taken back.
    """

    ran: bool = True
    command: ClassVar[str] = "stop"

    @property
    def arguments(self) -> Arguments:
        """None."""
        return {}


@dataclass(frozen=True, slots=True)
class StopForLoad(QmpStep):
    """Let a guest that runs stand still as QEMU does it for a load: by one that finds nothing. HMP: loadvm.

    For CPUs that QEMU emulates: what it has translated of the guest's code it forgets only when a load stops
    a guest that runs (`tcg_vm_change_state`, at RUN_STATE_RESTORE_VM). After `stop` it runs stale code: seen
    on 11.1, a guest that was rebooted since panics or hangs. Done when QEMU says that it failed and the run
    state is `restore-vm`; `cont` takes it back.

    Attributes:
        name: A name that no snapshot has; outside our grammar of names.
    """

    name: str
    command: ClassVar[str] = "human-monitor-command"

    @property
    def arguments(self) -> Arguments:
        """The line for the human monitor."""
        return {"command-line": f"loadvm {quoted(self.name)}"}


@dataclass(frozen=True, slots=True)
class ContinueGuest(QmpStep):
    """Let it run on; does nothing, and is no event, when it runs already. QAPI: cont (misc.json)."""

    command: ClassVar[str] = "cont"

    @property
    def arguments(self) -> Arguments:
        """None."""
        return {}


@dataclass(frozen=True, slots=True)
class ResetGuest(QmpStep):
    """Press its reset button: its memory belongs to other disks. QAPI: system_reset (machine.json)."""

    command: ClassVar[str] = "system_reset"

    @property
    def arguments(self) -> Arguments:
        """None."""
        return {}


GuestStep = StopGuest | StopForLoad | ContinueGuest | ResetGuest
