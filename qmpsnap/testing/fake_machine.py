"""The state of a fake machine: its guest runs or is paused, and VM state is transferred in no time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio
from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.machine import FOR_A_LOAD, Device, Fingerprint, Machine, Status
from qmpsnap.model.step import Step
from qmpsnap.run.progress import Progress

__all__ = ["COMMANDS", "IMAGE_COMMANDS", "FakeMachine", "a_machine"]

COMMANDS = frozenset({
    "block-commit", "block-job-cancel", "block-stream", "blockdev-add", "blockdev-del", "blockdev-mirror",
    "blockdev-snapshot", "blockdev-snapshot-delete-internal-sync",
    "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync", "drive-mirror",
    "device_add", "human-monitor-command", "job-cancel", "job-complete", "job-dismiss", "job-finalize",
    "snapshot-delete", "snapshot-load", "snapshot-save", "transaction",
})  # fmt: skip
"""The commands that a fake QEMU has by default."""

IMAGE_COMMANDS = frozenset({
    "block-commit", "block-job-cancel", "block-stream", "blockdev-add", "blockdev-del", "blockdev-mirror",
    "blockdev-reopen", "blockdev-snapshot", "blockdev-snapshot-delete-internal-sync",
    "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync", "drive-mirror", "job-cancel",
    "job-complete", "job-dismiss", "job-finalize", "transaction",
})  # fmt: skip
"""The commands that qemu-storage-daemon has of those that we send; the same on 7.2, 10.0 and 11.1."""

CAPABILITIES = {"events": False, "background-snapshot": False, "mapped-ram": False}
STANDSTILL = 0.25  # seconds for which each stop pauses the fake guest


def a_machine(graph: Graph, *, running: bool = True, **more: object) -> Machine:
    """A machine with the disks of that graph, each a virtio disk.

    Args:
        graph: The drawn graph.
        running: Whether its guest is running.
        more: Other fields of `Machine`, by name.
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
    return replace(machine, **more)  # the caller names fields


class FakeMachine:
    """A machine that performs steps.

    Args:
        machine: Its state at the beginning.

    Attributes:
        now: Its present state.
        passed: Numbers of the files that it was given and has not released.
        seconds: How long its guest has been paused since `stops()`; None: it was not.
        state_bytes: Bytes of the VM state file that was written last.
    """

    def __init__(self, machine: Machine) -> None:
        self.now = machine
        self.passed: set[int] = set()
        self.seconds: float | None = None
        self.state_bytes = 0

    async def machine(self, graph: Graph, *, occupied: bool = False) -> Machine:  # noqa: ARG002 - of the Protocol
        """The machine, as of now."""
        await anyio.lowlevel.checkpoint()
        return self.now

    async def status(self) -> Status:
        """Whether it runs and migrates."""
        return self.now.guest

    async def run_state(self) -> str:
        """Its run state."""
        return self.now.status

    @contextmanager
    def stops(self) -> Iterator[FakeMachine]:
        """Listen to how long it is paused."""
        self.seconds = None
        yield self

    async def memory_progress(self, interval: float) -> AsyncIterator[Progress]:
        """Report VM state that is moved: once, for it takes no time."""
        yield Progress(Job("memory", "migrate", JobStatus.RUNNING, offset=4, length=8), None, None)
        await anyio.sleep(interval)

    def blink(self) -> None:
        """Pause and resume a running guest, as QEMU does by itself during some commands."""
        if self.now.running:
            self.seconds = (self.seconds or 0.0) + STANDSTILL

    def perform(self, step: Step) -> None:
        """Perform one step."""
        arguments, now = step.arguments, self.now
        match step.way:
            case "stop":
                self._set("paused", running=False)
            case "stop-for-load":
                self._set(FOR_A_LOAD, running=False)
            case "cont":
                if not now.running:
                    self.seconds = (self.seconds or 0.0) + STANDSTILL
                self._set("running", running=True)
            case "set" if "capabilities" in arguments:
                states = {item["capability"]: item["state"] for item in arguments["capabilities"]}
                self.now = replace(now, capabilities=Frozen({**now.capabilities, **states}))
            case "set":
                self.now = replace(now, parameters=Frozen({**now.parameters, **arguments}))
            case "pass-file":
                self.passed.add(step.detail["number"])
            case "release-file":
                self.passed.discard(step.detail["number"])
            case "migrate":
                self._consume(arguments["uri"])
                self.now = replace(now, migration="completed")
                if not now.capabilities.get("background-snapshot", False):
                    self._set("postmigrate", running=False)
            case "migrate-incoming":
                self._consume(arguments["uri"])
                self.now = replace(now, migration="completed")
                self._set("paused", running=False)
            case "migrate_cancel":
                if now.migrating:
                    self.now = replace(now, migration="cancelled")
            case way:
                assert way in {"await-migration", "await-closed", "system_reset"}, way  # noqa: S101

    def _consume(self, uri: str) -> None:
        """A migration closes its descriptor by itself; a set of files stays until it is released."""
        if uri.startswith("fd:"):
            self.passed.discard(int(uri.rpartition("-")[2]))

    def _set(self, status: str, *, running: bool) -> None:
        self.now = replace(self.now, status=status, running=running)
