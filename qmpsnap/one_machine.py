"""What the modules beneath `VM` ask of a machine, which is a `VM`: they cannot import what imports them."""

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
    """One machine; each member is as in `VM`."""

    name: str
    jobs: Jobs

    def records_in(self, directory: str) -> None:
        """Keep records in this directory, unless the machine was opened with another one."""

    async def graph(self) -> Graph:
        """Every disk with its chain, and every node, as QEMU has them now."""

    async def moments(self) -> Moments:
        """Every snapshot of the disks, as of now."""

    async def views(self, name: str, *, disks: Sequence[str] = ()) -> tuple[DiskView, ...]:
        """How to read disks as they were at a snapshot."""

    async def status(self) -> Status:
        """Whether the guest is running, and its run state, as of now."""

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Send any QMP command as it is; return what QEMU returns."""

    async def plan(self, intent: Intent) -> Plan:
        """What would be done."""

    async def run(self, plan: Plan, hooks: Hooks | None = None, *, wait: bool = False) -> Done:
        """Run a plan."""


M = TypeVar("M", bound=OneMachine)

Starter = Callable[[Start], AbstractAsyncContextManager[M]]
"""Starts another machine like one; `Launcher` is one that starts a `VM`."""
