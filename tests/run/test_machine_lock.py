"""The lock that keeps the clients of one machine apart; this process stands for QEMU."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest

from qmpsnap.errors import Busy, Changed, GraphMismatch, JobFailed, LinkLost, NotFound
from qmpsnap.plan.intent import Snapshot
from qmpsnap.run import machine_lock
from qmpsnap.run.executor import Executor
from qmpsnap.run.machine_lock import Hold, MachineLock
from qmpsnap.run.outcome import Hooks
from qmpsnap.testing.fake import FakeTarget
from tests.run.operations import MACHINE, machine, plan_of, vm_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpsnap.model.step import Step
    from qmpsnap.plan.plan import Plan


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a lock that another client holds."""
    monkeypatch.setattr(machine_lock, "_LIMIT", -1.0)


def client() -> MachineLock:
    return MachineLock(os.getpid)


async def test_lock_is_taken_by_one_client_and_names_it_to_the_others(at_once: None) -> None:
    first, second = client(), client()
    await first.take()
    with pytest.raises(Busy, match=rf"another client is changing the machine: process {os.getpid()} \(") as e:
        await second.take()
    assert (e.value.changed, e.value.hint) == (Changed.NO, "wait until it is done")
    first.give()
    await second.take()
    second.give()


async def test_lock_is_shared_by_the_operations_of_one_client(at_once: None) -> None:
    lock, other = client(), client()
    holds = [Hold(lock), Hold(lock)]
    for hold in holds:
        await hold.take()
        await hold.take()  # it has it already
    holds[0].give()
    holds[0].give()
    with pytest.raises(Busy):
        await other.take()
    holds[1].give()
    await other.take()
    other.give()


async def test_lock_that_is_given_meanwhile_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = client(), client()
    await first.take()
    waited: list[int] = []

    async def sleep(_: float) -> None:
        waited.append(len(waited))
        if len(waited) == 3:
            first.give()

    monkeypatch.setattr(anyio, "sleep", sleep)
    await second.take()
    assert waited == [0, 1, 2]
    second.give()


@pytest.mark.parametrize("pid", [None, 1 << 30])
async def test_machine_of_no_process_here_has_no_lock(at_once: None, pid: int | None) -> None:
    locks = [MachineLock(lambda: pid), MachineLock(lambda: pid)]
    for lock in locks:
        await lock.take()
    for lock in locks:
        lock.give()


async def test_lock_is_given_while_something_is_waited_for_and_taken_again(at_once: None) -> None:
    hold, other = Hold(client()), client()
    await hold.take()

    async def waits(error: Exception | None) -> str:
        await other.take()
        other.give()
        if error is not None:
            raise error
        return "waited"

    assert await hold.given_for(partial(waits, None)) == "waited"
    with pytest.raises(Busy):
        await other.take()
    with pytest.raises(JobFailed):
        await hold.given_for(partial(waits, JobFailed("it failed", job_id="j", error="e")))
    with pytest.raises(Busy):
        await other.take()
    with pytest.raises(LinkLost):
        await hold.given_for(partial(waits, LinkLost("it is gone", step="await-job")))
    await other.take()
    other.give()


async def test_rest_of_an_operation_does_not_fail_by_the_lock(
    at_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    hold, other = Hold(client()), client()
    await hold.take()
    await hold.given_for(partial(anyio.sleep, 0))
    await hold.given_for(other.take)
    assert "machine.not_locked" in caplog.text
    hold.give()
    other.give()


def fake_machine() -> FakeTarget:
    fake = FakeTarget(MACHINE)
    fake.pid = os.getpid()
    return fake


async def until_it_waits(fake: FakeTarget) -> None:
    while not any(step.command == "await-job" for step in fake.performed):  # noqa: ASYNC110 - of the fake's turns
        await asyncio.sleep(0)


async def test_other_clients_neither_plan_nor_run_while_an_operation_does(at_once: None) -> None:
    fake, other = fake_machine(), fake_machine()
    refused = []

    async def before(step: Step) -> None:
        with pytest.raises(Busy, match="the operation from whose call-back it was called"):
            await vm_of(other).snapshot("b")
        refused.append(step.command)

    await vm_of(fake).snapshot("a", hooks=Hooks(before=before))
    assert "transaction" in refused
    assert other.performed == []
    plan = await vm_of(other).plan(Snapshot("b"))
    await vm_of(fake).run(await vm_of(fake).plan(Snapshot("c")), Hooks(before=before))
    await vm_of(other).run(plan)


@pytest.mark.parametrize("op", ["stream", "mirror-pivot", "commit"])
async def test_other_clients_work_on_a_machine_while_a_job_copies_and_not_before_or_after(
    at_once: None, op: str
) -> None:
    fake, other = machine(op), client()
    fake.pid = os.getpid()
    fake.hold = True
    steps = []

    async def before(step: Step) -> None:
        steps.append(step.command)
        with pytest.raises(Busy):
            await other.take()

    task = asyncio.create_task(vm_of(fake).run(await plan_of(op, fake), Hooks(before=before)))
    await until_it_waits(fake)
    await other.take()
    other.give()
    before_it = len(steps)
    fake.let_go()
    await task
    assert 0 < before_it < len(steps)
    await other.take()
    other.give()


async def test_operation_that_waits_for_another_of_its_client_does_not_keep_the_lock(at_once: None) -> None:
    fake, other = machine("stream"), client()
    fake.pid, fake.hold = os.getpid(), True
    executor, plan = Executor(fake), await plan_of("stream", fake)
    first = asyncio.create_task(executor.run(plan))
    await until_it_waits(fake)
    second = asyncio.create_task(executor.run(plan, wait=True))
    await anyio.wait_all_tasks_blocked()
    await other.take()
    other.give()
    fake.let_go()
    await first
    with pytest.raises(GraphMismatch):
        await second


async def test_operation_that_waits_for_a_job_does_not_keep_the_lock(at_once: None) -> None:
    fake, other = machine("stream"), client()
    fake.pid, fake.hold = os.getpid(), True
    executor = Executor(fake)
    waited: list[str] = []

    async def make() -> Plan:
        if not waited:
            raise Busy("a job is in the way", node="", job_id="job")
        return await plan_of("stream", fake)

    async def when(planned: Callable[[], Awaitable[Plan]]) -> Plan:
        with pytest.raises(Busy, match="a job is in the way"):
            await planned()
        await other.take()
        other.give()
        waited.append("waited")
        plan = await planned()
        with pytest.raises(Busy, match="another client"):
            await other.take()
        return plan

    fake.hold = False
    await executor.do(make, when=when)
    assert waited == ["waited"]


async def test_lock_is_given_when_planning_fails_or_is_cancelled(at_once: None) -> None:
    executor, other = Executor(fake_machine()), client()

    async def fails() -> Plan:
        raise NotFound("there is none")

    async def waits() -> Plan:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(NotFound):
        await executor.do(fails)
    task = asyncio.create_task(executor.do(waits))
    await anyio.wait_all_tasks_blocked()
    with pytest.raises(Busy):
        await other.take()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await other.take()
    other.give()
