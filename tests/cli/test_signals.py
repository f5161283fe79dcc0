"""What the first and the second interrupt do, by what is running; and what is said at a hard end."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from qmpsnap.cli.app import App
from qmpsnap.cli.signals import Signals, detached, no_answer
from qmpsnap.errors import Changed, Interrupted
from qmpsnap.plan.intent import Checkpoint, Commit, Save
from tests.each import each
from tests.run.operations import vm_of
from tests.run.states import fake_of

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent
    from qmpsnap.plan.plan import Plan

pytestmark = pytest.mark.timeout(60)

COPY = Commit("vda")
IN_PLACE = Checkpoint("c1", "in-place")
STOP = Checkpoint("c1", "stop")
BACKGROUND = Checkpoint("c1", "background")


async def plan_for(intent: Intent, *, running: bool = True) -> Plan:
    return await vm_of(fake_of(running=running)).plan(intent)


async def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.01)


async def test_first_interrupt_cancels_and_says_what_a_second_one_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy, state = await plan_for(COPY), await plan_for(IN_PLACE)
    for plan, message in (
        (copy, f"stopping and rolling back; interrupt again to leave job {copy.job_id} running\n"),
        (
            state,
            "stopping: what was begun is rolled back, or else finished; interrupt again to leave it\n",
        ),
        (await plan_for(STOP), "stopping and rolling back\n"),
        (await plan_for(BACKGROUND), "stopping: what was begun is rolled back, or else finished\n"),
    ):
        with Signals(App()) as signals, signals.operation(plan):
            await interrupt()
            assert (signals.cancel.is_set(), signals.detach.is_set()) == (True, False)
        assert capsys.readouterr().err == message


async def test_second_interrupt_leaves_a_job_that_copies_and_no_other() -> None:
    for intent, leaves in ((COPY, True), (IN_PLACE, False)):
        with Signals(App()) as signals, signals.operation(await plan_for(intent)):
            await interrupt()
            await interrupt()
            assert (signals.cancel.is_set(), signals.detach.is_set()) == (True, leaves)


async def test_second_interrupt_without_a_job_goes_on_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    with Signals(App()) as signals, signals.operation(await plan_for(STOP)):
        await interrupt()
        await interrupt()
        assert not signals.detach.is_set()
    assert "there is no job to leave running; waiting for QEMU's answer" in capsys.readouterr().err


async def test_interrupt_of_what_undoes_itself_waits_for_that(capsys: pytest.CaptureFixture[str]) -> None:
    undone: list[str] = []

    async def work() -> None:
        with Signals(App()) as signals, signals.undone():
            try:
                await interrupt()
                await asyncio.sleep(1)
            finally:
                await interrupt()
                undone.append("all")

    with pytest.raises(Interrupted, match="stopped as requested, and rolled back") as caught:
        await asyncio.create_task(work())
    assert (caught.value.changed, undone) == (Changed.NO, ["all"])
    assert capsys.readouterr().err == "what was begun is being rolled back: please wait\n"


async def test_interrupt_ends_what_lasts_until_it_comes() -> None:
    with Signals(App()) as signals, signals.ends() as end:
        await interrupt()
        assert (end.is_set(), signals.cancel.is_set()) == (True, False)


async def test_left_says_that_the_guest_may_be_paused_and_what_resumes_it() -> None:
    plan = await plan_for(IN_PLACE)
    error = detached(plan, plan.operation_id, cancelled=True)
    assert (error.job_id, error.changed) == (plan.job_id, Changed.UNKNOWN)
    assert f"in the middle of {plan.job_id}" in error.message
    assert "the guest may stay paused" in error.message
    assert error.hint == (
        f"qmpsnap job wait {plan.job_id} finishes it, and resumes the guest if it was running"
    )


@each("intent", [IN_PLACE, Checkpoint("c1", "internal", leave=("vdb",), via="jobs")])
async def test_left_says_nothing_of_a_guest_that_the_plan_does_not_stop(intent: Intent) -> None:
    plan = await plan_for(intent, running=intent is not IN_PLACE)
    error = detached(plan, plan.operation_id, cancelled=True)
    assert plan.job_id in error.message
    assert "the guest" not in error.message + error.hint


async def test_left_speaks_of_a_job_that_copies_as_of_one_that_goes_on() -> None:
    plan = await plan_for(COPY)
    error = detached(plan, plan.job_id, cancelled=False)
    assert (error.message, error.changed) == (f"left job {plan.job_id}; it was about to finish", Changed.YES)
    assert f"job wait {plan.job_id}" in error.hint


async def test_given_up_says_how_a_paused_guest_is_resumed_without_a_job_too() -> None:
    plan = await plan_for(STOP)
    error = no_answer(plan, plan.operation_id)
    assert (plan.job_id, error.changed) == ("", Changed.UNKNOWN)
    assert "the guest may be paused" in error.message
    assert (
        f"qmpsnap job wait {plan.operation_id} finishes it, and resumes the guest if it was running"
        in error.hint
    )


async def test_given_up_promises_no_run_to_a_guest_that_is_saved() -> None:
    plan = await plan_for(Save("/images/m"))
    assert "run on" not in no_answer(plan, plan.operation_id).hint


async def test_given_up_says_nothing_of_the_guest_where_none_was_stopped() -> None:
    plan = await plan_for(COPY)
    for error in (no_answer(plan, plan.operation_id), no_answer(None, "")):
        assert "the guest" not in error.message + error.hint
