from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Changed, CommandFailed
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.plan.commands.state import delvm, loadvm, savevm, stop_for_load
from qmpsnap.run import hmp
from qmpsnap.run import session as sessions
from qmpsnap.testing.server import Return

if TYPE_CHECKING:
    from qmpsnap.model.step import Step
    from qmpsnap.testing.server import QmpServer

STEPS = [savevm("c1", ("vda",)), loadvm("c1"), delvm("c1", ("vda",))]
HMP = "human-monitor-command"


@pytest.fixture
def running(server: QmpServer) -> QmpServer:
    server.answer("query-status", Return({"status": "running", "running": True}))
    server.answer("cont", Return())
    return server


async def run(server: QmpServer, step: Step) -> None:
    async with sessions.connect(server.path) as session:
        await (hmp.load if step.way == "loadvm" else hmp.manage)(session, step)


@pytest.mark.parametrize("step", STEPS)
async def test_checkpoint_succeeds_when_nothing_is_said(running: QmpServer, step: Step) -> None:
    running.answer(HMP, Return(""))
    await run(running, step)
    assert running.commands.count(HMP) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_checkpoint_fails_when_anything_is_said(running: QmpServer, step: Step) -> None:
    running.answer(HMP, Return("one line\r\nError: another\r\n"))
    with pytest.raises(CommandFailed) as caught:
        await run(running, step)
    assert caught.value.desc == "one line Error: another"
    assert caught.value.changed is (Changed.YES if step.way == "loadvm" else Changed.NO)
    assert "cont" not in running.commands


async def test_load_that_failed_before_the_disks_moved_says_so_and_sends_no_more(running: QmpServer) -> None:
    running.answer(HMP, Return("Error: Snapshot 'c1' does not exist in one or more devices\r\n"))
    with pytest.raises(CommandFailed) as caught:
        await run(running, loadvm("c1", running=True))
    assert caught.value.changed is Changed.NO
    assert running.commands.count(HMP) == 1
    assert "cont" not in running.commands  # that is for the step's on_failure


STOP = stop_for_load("qmpsnap/none/1")
NOT_THERE = "Error: Snapshot 'qmpsnap/none/1' does not exist in one or more devices\r\n"


class Guest:
    """A guest that runs until a load stops it, in that run state; and what QEMU says to the load."""

    def __init__(self, server: QmpServer, *, said: str, state: str, ran: bool = True) -> None:
        self.status = "running" if ran else "paused"
        self._said, self._state = said, state
        server.compute("query-status", lambda _: {"status": self.status, "running": self.status == "running"})
        server.compute(HMP, self._load)
        server.compute("cont", self._cont)

    def _load(self, _: object) -> str:
        self.status = self._state
        return self._said

    def _cont(self, _: object) -> dict[str, object]:
        self.status = "running"
        return {}


async def stopped(server: QmpServer) -> CommandFailed | None:
    async with sessions.connect(server.path) as session:
        try:
            await hmp.stop_for_load(session, STOP)
        except CommandFailed as error:
            return error
    return None


async def test_stop_for_load_is_done_when_a_load_failed_and_the_guest_is_paused_for_it(
    server: QmpServer,
) -> None:
    guest = Guest(server, said=NOT_THERE, state=FOR_A_LOAD)
    assert await stopped(server) is None
    assert guest.status == FOR_A_LOAD
    assert server.commands.count(HMP) == 1
    assert "cont" not in server.commands


async def test_stop_for_load_sends_nothing_to_a_paused_guest(server: QmpServer) -> None:
    guest = Guest(server, said=NOT_THERE, state="paused", ran=False)
    error = await stopped(server)
    assert error is not None
    assert (error.changed, guest.status) == (Changed.NO, "paused")
    assert not {HMP, "cont"} & set(server.commands)


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_stop_for_load_lets_the_guest_run_on_where_qemu_did_something_else(
    server: QmpServer, state: str
) -> None:
    guest = Guest(server, said="unknown command: 'loadvm'", state=state)
    error = await stopped(server)
    assert error is not None
    assert (error.changed, error.desc, guest.status) == (Changed.NO, "unknown command: 'loadvm'", "running")
    assert server.commands.count("cont") == (state != "running")


async def test_stop_for_load_says_so_when_something_was_loaded(server: QmpServer) -> None:
    guest = Guest(server, said="", state="running")
    error = await stopped(server)
    assert error is not None
    assert (error.changed, guest.status) == (Changed.YES, "running")
    assert "revert again" in error.hint
