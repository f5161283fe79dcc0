"""Asks a guest's agent whether the guest's file systems are frozen, and thaws them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from qmpsnap.errors import CommandFailed, ConnectFailed, GuestFailed
from qmpsnap.run.agent import Agent
from qmpsnap.run.paths import absolute

_ANSWER_LIMIT = 2.0  # seconds for a question
_THAW_LIMIT = 30.0  # seconds


async def is_frozen(agent: str) -> bool | None:
    """Whether the guest's file systems are frozen; None when the agent cannot be reached or does not answer.

    QGA: guest-fsfreeze-status (qga/qapi-schema.json).
    """
    try:
        with anyio.fail_after(_ANSWER_LIMIT):
            async with _connected(agent) as found:
                return await found.execute("guest-fsfreeze-status") == "frozen"
    except (TimeoutError, ConnectFailed, CommandFailed, GuestFailed):
        return None


async def thaw(agent: str | os.PathLike[str]) -> int:
    """Thaw the guest's file systems; return how many were frozen. What is not frozen stays as it is.

    Args:
        agent: Path of the agent's socket: that of the chardev behind org.qemu.guest_agent.0.

    Raises:
        ConnectFailed: When nobody listens there, or the agent does not answer within 30 s. A guest that is
            paused cannot answer, and QEMU lets one client talk to the agent at a time.
        CommandFailed: When the agent refuses.

    QGA: guest-fsfreeze-thaw (qga/qapi-schema.json).
    """
    path = absolute("agent", agent)
    try:
        with anyio.fail_after(_THAW_LIMIT):
            async with _connected(path) as found:
                answer = await found.execute("guest-fsfreeze-thaw", limit=_THAW_LIMIT)
    except (TimeoutError, GuestFailed) as error:
        raise ConnectFailed(
            f"the guest's agent at {path} does not answer",
            hint="is the guest running, and its agent? Is another program connected to it?",
        ) from error
    return answer if isinstance(answer, int) else 0


@asynccontextmanager
async def _connected(path: str) -> AsyncIterator[Agent]:
    try:
        stream = await anyio.connect_unix(path)
    except (OSError, ValueError) as error:
        raise ConnectFailed(
            f"cannot connect to the guest's agent at {path}: {getattr(error, 'strerror', None) or error}",
            hint="give the path of the chardev behind the port org.qemu.guest_agent.0",
        ) from error
    async with stream:
        yield Agent(stream)
