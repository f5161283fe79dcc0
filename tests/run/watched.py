"""A job that is watched, and what the tests of the monitor say about it."""

from __future__ import annotations

import asyncio
import contextlib

import anyio

from qmpsnap.testing.jobs import job_turns
from qmpsnap.testing.server import Emit

JOB = "qmpsnap-mirror-pivot-0a1b2c3d"
DONE = Emit("BLOCK_JOB_COMPLETED", {"device": JOB, "len": 8, "offset": 8, "speed": 0, "type": "mirror"})


def turns(*states, at=100.0):
    return job_turns(JOB, *states, at=at)


def io_error(action):
    return Emit("BLOCK_JOB_ERROR", {"device": JOB, "operation": "write", "action": action})


async def heard(monitor):
    """Return once every event that was sent has been heard."""
    await monitor._session.query("query-jobs")


@contextlib.asynccontextmanager
async def waiting(coroutine):
    """The coroutine runs as a task meanwhile, and ends with the block."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0.002)
    try:
        with anyio.fail_after(30):
            yield task
            await asyncio.wait({task})
    finally:
        task.cancel()
        await asyncio.wait({task})
