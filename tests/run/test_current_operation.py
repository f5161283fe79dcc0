"""Operations that are begun in a call-back of another one, which waits for the call-back."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Busy, Changed
from qmpsnap.run import machine_lock, turns
from qmpsnap.run.outcome import Hooks
from tests.each import each
from tests.run.operations import machine, vm_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpsnap.run.outcome import Done
    from qmpsnap.testing.fake import FakeTarget
    from qmpsnap.vm import VM

pytestmark = pytest.mark.timeout(60)

ITSELF = "wait for the operation from whose call-back it was called"


def locked() -> FakeTarget:
    """A machine that has a lock; this process stands for QEMU."""
    fake = machine("snapshot")
    fake.pid = os.getpid()
    return fake


def once(do: Callable[[], Awaitable[object]]) -> Callable[[object], Awaitable[None]]:
    called: list[None] = []

    async def call(_: object) -> None:
        if not called:
            called.append(None)
            await do()

    return call


@each("hook", ["before", "on_pivot"])
@each("same", [False, True])
async def test_operation_that_a_call_back_awaits_is_refused_at_once(hook: str, *, same: bool) -> None:
    fake = locked()
    vm = vm_of(fake)
    other = vm if same else vm_of(fake)
    errors = []

    async def inner() -> None:
        with pytest.raises(Busy, match=ITSELF) as refused:
            await other.snapshot("inner")
        errors.append(refused.value)

    done = await vm.snapshot(
        "outer", hooks=Hooks(before=once(inner)) if hook == "before" else Hooks(on_pivot=once(inner))
    )
    (error,) = errors
    assert (error.changed, error.hint) == (
        Changed.NO, "call it when that operation has ended, or in a task that the call-back does not await",
    )  # fmt: skip
    assert fake.state.disks["vda"].files == done.chains["vda"]
    assert (await other.snapshot("later")).chains["vda"][1:] == done.chains["vda"]


@each("same", [False, True])
async def test_task_that_a_call_back_awaits_is_refused_after_a_while(
    monkeypatch: pytest.MonkeyPatch, *, same: bool
) -> None:
    monkeypatch.setattr(machine_lock, "_LIMIT", 0.05)
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    fake = locked()
    vm = vm_of(fake)
    other = vm if same else vm_of(fake)

    async def inner() -> None:
        with pytest.raises(Busy, match=ITSELF):
            await asyncio.create_task(other.snapshot("inner"))

    await vm.snapshot("outer", hooks=Hooks(before=once(inner)))


@each("same", [False, True])
async def test_task_that_a_call_back_starts_and_does_not_await_waits_for_its_operation(*, same: bool) -> None:
    fake = locked()
    vm = vm_of(fake)
    other = vm if same else vm_of(fake)
    tasks: list[asyncio.Task[Done]] = []

    async def start() -> None:
        tasks.append(asyncio.create_task(other.snapshot("inner")))
        await asyncio.sleep(0.05)

    done = await vm.snapshot("outer", hooks=Hooks(before=once(start)))
    assert (await tasks[0]).chains["vda"][1:] == done.chains["vda"]


async def test_call_back_may_await_an_operation_on_another_machine() -> None:
    other = vm_of(machine("snapshot"))
    files = []

    async def inner() -> None:
        files.append((await other.snapshot("inner")).chains["vda"])

    await vm_of(locked()).snapshot("outer", hooks=Hooks(before=once(inner)))
    assert len(files) == 1


async def test_call_back_of_an_operation_in_a_call_back_does_not_wait_for_the_outer_one() -> None:
    fake, inner_vm = locked(), vm_of(machine("snapshot"))
    vm: VM = vm_of(fake)

    async def innermost() -> None:
        with pytest.raises(Busy, match=ITSELF):
            await vm.snapshot("innermost")

    async def inner() -> None:
        await inner_vm.snapshot("inner", hooks=Hooks(before=once(innermost)))

    await vm.snapshot("outer", hooks=Hooks(before=once(inner)))
