"""A command that was sent and changes something: its reply is awaited even if the caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import anyio
from msgspec import Struct

from qmpsnap.errors import CommandFailed, LinkLost
from qmpsnap.run.log import get_logger

_log = get_logger("qmpsnap.session")


class Limits(Struct, frozen=True):
    """Time limits of a session.

    Attributes:
        reply: Seconds that a query may take.
        silence: Seconds after which a silent monitor is logged, whatever it was asked.
        warning: Seconds after which a command that changes something is logged once more.
        cancelled: Seconds that a reply is awaited after a cancellation.
    """

    reply: float = 60.0
    silence: float = 3.0
    warning: float = 10.0
    cancelled: float = 30.0


class Outcome(StrEnum):
    """What is known of a command that changes something."""

    PENDING = "pending"  # sent, no reply yet
    DONE = "done"  # QEMU did it
    FAILED = "failed"  # QEMU said no
    UNKNOWN = "unknown"  # the link was lost, the reply was not QMP, or nobody waits any more


class Change:
    """A command that was sent and changes something; made by `Session.begin`.

    Attributes:
        command: Its name.
        arguments: What it was sent with.
    """

    def __init__(
        self,
        call: asyncio.Task[object],
        command: str,
        arguments: Mapping[str, object],
        *,
        address: str,
        limits: Limits,
    ) -> None:
        self.command = command
        self.arguments = arguments
        self._call = call
        self._address = address
        self._limits = limits
        self._given_up = False

    @property
    def outcome(self) -> Outcome:
        """What is known of it now; after a cancelled `reply`, its final outcome."""
        if not self._call.done():
            return Outcome.UNKNOWN if self._given_up else Outcome.PENDING
        if self._call.cancelled():
            return Outcome.UNKNOWN
        match self._call.exception():
            case None:
                return Outcome.DONE
            case CommandFailed():
                return Outcome.FAILED
            case _:
                return Outcome.UNKNOWN

    async def reply(self) -> object:
        """Wait for the reply and return its value, however long it takes.

        When cancelled, it waits for at most 30 s more, then raises the cancellation.

        Raises:
            CommandFailed: When QEMU answered with an error.
            LinkLost: When the link is lost before the reply, or no reply came after a cancellation.
            Malformed: When the reply is not QMP.
        """
        try:
            waited = 0.0
            for seconds in (self._limits.silence, self._limits.warning):
                await asyncio.wait({self._call}, timeout=max(seconds - waited, 0))
                if self._call.done():
                    break
                waited = seconds
                _log.warning("command.delayed", vm=self._address, command=self.command, seconds=seconds)
            await asyncio.wait({self._call})
        except asyncio.CancelledError as cancelled:
            await settled(self._call, limit=self._limits.cancelled)
            if self.outcome in {Outcome.DONE, Outcome.FAILED}:
                raise
            self._given_up = True
            if self._call.done():
                return self._call.result()  # raises: the link went, and that says more
            raise LinkLost(
                f"cancelled with {self.command!r} in flight, no reply within {self._limits.cancelled:g} s",
                step=repr(self.command),
                hint="its outcome is unknown: check with qmpsnap chain and qmpsnap jobs",
            ) from cancelled
        return self._call.result()


async def settled(task: asyncio.Future[Any], *, limit: float | None = None) -> None:
    """Wait until the task is done, even if the caller is cancelled meanwhile.

    A cancellation that asyncio delivered in between is raised at the end, unless a limit is given:
    that is for callers who are in the middle of one.

    Args:
        task: The task; it is not cancelled.
        limit: Seconds to wait; None for ever.
    """
    came: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        ends = None if limit is None else anyio.current_time() + limit
        while not task.done():
            left = None if ends is None else ends - anyio.current_time()
            if left is not None and left <= 0:
                break
            try:
                await asyncio.wait({task}, timeout=left)
            except asyncio.CancelledError as error:
                came = error
    if came is not None and limit is None:
        raise came
