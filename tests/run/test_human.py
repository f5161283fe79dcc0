from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Changed, CommandFailed
from qmpsnap.plan.human_steps import DelVm, LoadVm, SaveVm
from qmpsnap.run import session as sessions
from qmpsnap.run.human import checkpoint
from qmpsnap.testing.server import Return

if TYPE_CHECKING:
    from qmpsnap.testing.server import QmpServer

STEPS = [SaveVm("c1", ("vda",)), LoadVm("c1"), DelVm("c1", ("vda",))]
HMP = "human-monitor-command"


@pytest.fixture
def running(server: QmpServer) -> QmpServer:
    server.answer("query-status", Return({"status": "running", "running": True}))
    server.answer("cont", Return())
    return server


async def run(server: QmpServer, step: SaveVm | LoadVm | DelVm) -> None:
    async with sessions.connect(server.path) as session:
        await checkpoint(session, step)


@pytest.mark.parametrize("step", STEPS)
async def test_checkpoint_succeeds_when_nothing_is_said(running: QmpServer, step: SaveVm) -> None:
    running.answer(HMP, Return(""))
    await run(running, step)
    assert running.commands.count(HMP) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_checkpoint_fails_when_anything_is_said(running: QmpServer, step: SaveVm) -> None:
    running.answer(HMP, Return("one line\r\nError: another\r\n"))
    with pytest.raises(CommandFailed) as caught:
        await run(running, step)
    assert caught.value.desc == "one line Error: another"
    assert caught.value.changed is (Changed.YES if isinstance(step, LoadVm) else Changed.NO)
    assert "cont" not in running.commands


@pytest.mark.parametrize("ran", [True, False])
async def test_load_that_failed_before_the_disks_moved_lets_a_guest_run_on_that_ran(
    running: QmpServer, ran: bool
) -> None:
    running.answer("query-status", Return({"status": "x", "running": ran}))
    running.answer(HMP, Return("Error: Snapshot 'c1' does not exist in one or more devices\r\n"))
    with pytest.raises(CommandFailed) as caught:
        await run(running, LoadVm("c1"))
    assert caught.value.changed is Changed.NO
    assert running.commands.count("cont") == ran
