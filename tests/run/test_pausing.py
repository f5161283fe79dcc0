"""How a guest is paused that an operation will resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Changed, CommandFailed
from qmpsnap.plan.commands.state import stop as stop_step
from qmpsnap.run import session as sessions
from qmpsnap.run.pausing import stop
from qmpsnap.testing.server import Return

if TYPE_CHECKING:
    from qmpsnap.testing.server import QmpServer

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]


def stands(server: QmpServer, status: str) -> None:
    server.answer("query-status", Return({"status": status, "running": status == "running"}))
    server.answer("stop", Return())


@pytest.mark.parametrize("status", ["running", "suspended", "restore-vm"])
async def test_guest_that_nobody_has_paused_is_paused(server: QmpServer, status: str) -> None:
    """A failed load of VM state leaves a guest in restore-vm that ran before."""
    stands(server, status)
    async with sessions.connect(server.path) as session:
        await stop(session, stop_step())
    assert server.commands == ["query-status", "stop"]


@pytest.mark.parametrize("status", ["paused", "shutdown", "io-error", "guest-panicked"])
async def test_guest_that_stands_already_is_left_alone(server: QmpServer, status: str) -> None:
    stands(server, status)
    async with sessions.connect(server.path) as session:
        with pytest.raises(
            CommandFailed, match=f"paused already when it was to be paused: {status}"
        ) as caught:
            await stop(session, stop_step())
    assert (server.commands, caught.value.changed) == (["query-status"], Changed.NO)


async def test_guest_that_stays_paused_is_paused_again_unasked(server: QmpServer) -> None:
    stands(server, "paused")
    async with sessions.connect(server.path) as session:
        await stop(session, stop_step(ran=False))
    assert server.commands == ["stop"]
