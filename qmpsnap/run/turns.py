"""Schedules operations: they run concurrently if their disks have nothing in common, else in turn.

This file alone decides which operations exclude each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from msgspec import Struct

from qmpsnap.errors import Busy
from qmpsnap.plan.plan import Plan
from qmpsnap.run.current_operation import PATIENCE, callback, waits_for_itself
from qmpsnap.run.machine_lock import Hold


class Claim(Struct, frozen=True):
    """What an operation needs exclusively.

    Attributes:
        disks: Names of the disks that it works on.
        files: Every layer of their chains, as of now and as predicted: two disks may share some.
        writes: Those of them that it may write to although another disk reads them.
        everything: Whether it works on the whole machine.
    """

    disks: frozenset[str]
    files: frozenset[str]
    writes: frozenset[str] = frozenset()
    everything: bool = False

    def meets(self, other: Claim) -> bool:
        """Whether the two exclude each other."""
        if self.everything or other.everything:
            return True
        return bool(self.disks & other.disks or self.writes & other.files or other.writes & self.files)

    def covers(self, other: Claim) -> bool:
        """Whether this claim includes the other."""
        return self.everything or (
            not other.everything
            and self.disks >= other.disks
            and self.files >= other.files
            and self.writes >= other.writes
        )


def claim_of(plan: Plan) -> Claim:
    """What running a plan needs exclusively: its disks, or the whole machine if it works on the guest."""
    parts = plan.parts
    everything = any(part.on_guest or not part.disks or part.prepared for part in parts)
    chains = [
        chain for part in parts for chain in (*part.chains_before.values(), *part.chains_after.values())
    ]
    files = frozenset(file for chain in chains for file in chain)
    writes = files if any(part.invalid_if_stopped for part in parts) else frozenset[str]()
    return Claim(frozenset(disk for part in parts for disk in part.disks), files, writes, everything)


class _Turn:
    def __init__(self, plan: Plan, hold: Hold) -> None:
        self.plan = plan
        self.hold = hold
        self.claim = claim_of(plan)
        self.ended = anyio.Event()


class Turns:
    """The running and waiting operations of one machine, in the order of their arrival.

    Attributes:
        count: How many have begun or ended.
    """

    def __init__(self) -> None:
        self.count = 0
        self._all: list[_Turn] = []

    def holds(self, job_id: str) -> bool:
        """Whether the job belongs to an operation that is running in this process."""
        return any(part.job_id == job_id for turn in self._all for part in turn.plan.parts)

    async def one_ended(self) -> bool:
        """Wait until one of the running operations has ended; False if none is running."""
        if not self._all:
            return False
        await self._all[0].ended.wait()
        return True

    @asynccontextmanager
    async def of(self, plan: Plan, *, wait: bool, hold: Hold) -> AsyncIterator[Claim]:
        """Hold what the plan works on while the block lasts.

        Short operations are always waited for. An operation never overtakes an earlier one that waits for the
        same disks.

        Args:
            plan: What is to be run.
            wait: Whether to wait also for an operation that copies whole layers.
            hold: The operation's part of the machine's lock, given before it waits.

        Raises:
            Busy: When such an operation is ahead, and `wait` is False; or the one from whose call-back this
                was called.
        """
        turn = _Turn(plan, hold)
        earlier = [other for other in self._all if other.claim.meets(turn.claim)]
        if not wait:
            for other in earlier:
                _refuse_copying(turn, other)
        self._all.append(turn)
        try:
            if earlier:
                hold.give()
            for other in earlier:
                await _ended(other, hold)
            self.count += 1
            yield turn.claim
        finally:
            self.count += 1
            self._all.remove(turn)
            turn.ended.set()


async def _ended(before: _Turn, hold: Hold) -> None:
    """Wait until it has ended.

    Raises:
        Busy: When that one waits for the call-back in which this operation was called.
    """
    called = callback()
    if called is None or not hold.within(before.hold):
        await before.ended.wait()
        return
    while not before.ended.is_set():
        if called.is_here:
            raise waits_for_itself()
        with anyio.move_on_after(PATIENCE):
            await before.ended.wait()
        if called.runs and not before.ended.is_set():
            raise waits_for_itself()


def _refuse_copying(turn: _Turn, before: _Turn) -> None:
    if not before.plan.can_be_left:
        return
    job_id, disks = before.plan.job_id, ", ".join(map(repr, before.plan.disks))
    raise Busy(
        f"{turn.plan.op} has to wait for the {before.plan.op} of {disks}, running as {job_id!r}",
        node="",
        job_id=job_id,
        hint=f"wait=True waits until it ends; qmpsnap job wait {job_id}, or qmpsnap job cancel {job_id}",
    )
