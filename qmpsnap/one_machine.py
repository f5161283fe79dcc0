"""The methods of `VM` that the modules below it use: they cannot import `VM`, which imports them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from qmpsnap.jobs import Jobs
from qmpsnap.model.graph import Graph
from qmpsnap.model.machine import Status
from qmpsnap.model.moments import Moments
from qmpsnap.model.start import Start
from qmpsnap.model.view import DiskView
from qmpsnap.plan.intent import Intent
from qmpsnap.plan.plan import Plan
from qmpsnap.run.outcome import Done, Hooks


class OneMachine(Protocol):
    """A machine; each method is that of `VM`."""

    name: str
    jobs: Jobs

    @property
    def pid(self) -> int | None:
        """QEMU's process if it is known, else None."""

    def records_in(self, directory: str) -> None:
        """Write records to this directory, unless the machine was opened with another one."""

    async def graph(self) -> Graph:
        """Return every disk with its chain, and every node, as QEMU has them now."""

    async def moments(self) -> Moments:
        """Return every snapshot of the disks, as of now."""

    async def views(self, name: str, *, disks: Sequence[str] = ()) -> tuple[DiskView, ...]:
        """Return how to read disks as they were at a snapshot."""

    async def status(self) -> Status:
        """Return whether the guest is running, and its run state, as of now."""

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Send any QMP command as it is; return what QEMU returns."""

    async def plan(self, intent: Intent) -> Plan:
        """Plan an intent."""

    async def do(self, intent: Intent, hooks: Hooks | None = None, *, wait: bool = False) -> Done:
        """Plan an intent and run the plan at once."""

    async def run(self, plan: Plan, hooks: Hooks | None = None, *, wait: bool = False) -> Done:
        """Run a plan."""


M = TypeVar("M", bound=OneMachine)

Starter = Callable[[Start], AbstractAsyncContextManager[M]]
"""Starts another QEMU of a machine; `Launcher` is the type for a `VM`."""
