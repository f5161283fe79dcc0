"""How a fake machine stands: its guest runs or not, and VM state moves in no time."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.machine import FOR_A_LOAD, Device, Fingerprint, Machine
from qmpsnap.plan.steps import (
    AwaitClosed,
    AwaitMigration,
    CancelMigration,
    ContinueGuest,
    LoadMemory,
    PassFile,
    ReleaseFile,
    ResetGuest,
    SaveMemory,
    SetCapabilities,
    SetParameters,
    StopForLoad,
    StopGuest,
)

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.steps import GuestStep, MigrationStep

__all__ = ["COMMANDS", "FakeMachine", "a_machine"]

COMMANDS = frozenset({
    "block-commit", "block-job-cancel", "block-stream", "blockdev-snapshot-delete-internal-sync",
    "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync", "drive-mirror",
    "human-monitor-command", "job-cancel", "job-complete", "job-dismiss", "job-finalize",
    "snapshot-delete", "snapshot-load", "snapshot-save", "transaction",
})  # fmt: skip
"""The commands that a fake QEMU has unless it is told otherwise."""

CAPABILITIES = {"events": False, "background-snapshot": False, "mapped-ram": False}
STANDSTILL = 0.25  # seconds that the fake guest stands still at each stop


def a_machine(graph: Graph, *, running: bool = True, **more: object) -> Machine:
    """A machine with the disks of that graph, each a virtio one.

    Args:
        graph: The drawn graph.
        running: Whether its guest runs.
        more: What else is not as usual, by the names of `Machine`.
    """
    machine = Machine(
        status="running" if running else "paused",
        running=running,
        migration="none",
        capabilities=CAPABILITIES,
        parameters={"max-bandwidth": 134_217_728},
        fingerprint=Fingerprint(
            machine="pc-q35-7.2-machine",
            memory=256 << 20,
            cpus=("x86_64:0",),
            devices=dict.fromkeys(graph.disks, "virtio-blk-pci"),
            disks={disk.name: disk.active.virtual_size for disk in graph.disks.values() if disk.layers},
            qemu="7.2.22",
        ),
        devices=Frozen(
            {
                name: Device(f"/machine/peripheral/{name}/virtio-backend", "virtio-blk-device")
                for name in graph.disks
            }
        ),
        process="1:1",
    )
    return replace(machine, **more)  # whoever calls it names fields


class FakeMachine:
    """A machine that stands as it is told.

    Args:
        machine: How it stands at the beginning.

    Attributes:
        now: How it stands.
        passed: Numbers of the files that it has been given and not released.
        seconds: How long its guest stood still since the last look; None: it did not.
    """

    def __init__(self, machine: Machine) -> None:
        self.now = machine
        self.passed: set[int] = set()
        self.seconds: float | None = None

    def blink(self) -> None:
        """Let a guest that runs stand still and run on, as QEMU does it by itself."""
        if self.now.running:
            self.seconds = (self.seconds or 0.0) + STANDSTILL

    def perform(self, step: GuestStep | MigrationStep) -> None:
        """Do one step."""
        match step:
            case StopGuest():
                self._stand("paused", running=False)
            case StopForLoad():
                self._stand(FOR_A_LOAD, running=False)
            case ContinueGuest():
                if not self.now.running:
                    self.seconds = (self.seconds or 0.0) + STANDSTILL
                self._stand("running", running=True)
            case SetCapabilities():
                self.now = replace(self.now, capabilities={**self.now.capabilities, **dict(step.values)})
            case SetParameters():
                self.now = replace(self.now, parameters={**self.now.parameters, **dict(step.values)})
            case PassFile():
                self.passed.add(step.number)
            case ReleaseFile():
                self.passed.discard(step.number)
            case SaveMemory():
                self._consume(step.uri)
                background = self.now.capabilities.get("background-snapshot", False)
                self.now = replace(self.now, migration="completed")
                if not background:
                    self._stand("postmigrate", running=False)
            case LoadMemory():
                self._consume(step.uri)
                self.now = replace(self.now, migration="completed")
                self._stand("paused", running=False)
            case CancelMigration():
                if self.now.migrating:
                    self.now = replace(self.now, migration="cancelled")
            case AwaitMigration() | AwaitClosed() | ResetGuest():
                pass
            case _:
                assert_never(step)

    def _consume(self, uri: str) -> None:
        """A migration by descriptor takes it for itself; a set of files stays until it is released."""
        if uri.startswith("fd:"):
            self.passed.discard(int(uri.rpartition("-")[2]))

    def _stand(self, status: str, *, running: bool) -> None:
        self.now = replace(self.now, status=status, running=running)
