"""Which of two QEMUs a test gets, and when the other one is reset."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from qmpsnap.errors import GuestFailed
from qmpsnap.testing.shared.account import Account
from qmpsnap.testing.shared.spare import Turns

pytestmark = pytest.mark.anyio


class Fake:
    """A machine that notes its calls; a reset ends when the test lets it."""

    vm = None

    def __init__(self, name, calls, usual=None):
        self.name, self.calls, self.usual = name, calls, usual
        self.account = Account()
        self.may_end = anyio.Event()
        self.error: Exception | None = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.calls.append(f"{self.name} leaves")

    def reset_by(self, reset):
        self.usual = reset

    async def begin(self, wanted, *, test):
        self.calls.append(f"{test} on {self.name}" + (f" by {wanted}" if wanted else ""))
        self.usual = self.usual or "memory"
        if self.error:
            raise self.error
        return self

    async def prepare(self):
        self.calls.append(f"{self.name} begins")
        await self.may_end.wait()
        self.may_end = anyio.Event()
        if self.error:
            raise self.error
        self.calls.append(f"{self.name} is ready")

    async def end(self):
        self.calls.append(f"{self.name} ends")


class Trial:
    def __init__(self, turns, machine, spare, calls):
        self.turns, self.machine, self.spare, self.calls = turns, machine, spare, calls

    async def test(self, name, wanted=None):
        await self.turns.begin(wanted, test=name)
        await settle()

    async def ready(self, fake):
        fake.may_end.set()
        await settle()


async def settle():
    for _ in range(20):
        await checkpoint()


@asynccontextmanager
async def trial(*, usual=None, room=True):
    calls: list[str] = []

    async def has_room(_):
        calls.append("is there room?")
        return room

    one, two = Fake("one", calls, usual), Fake("two", calls)
    async with Turns(cast("Any", one), cast("Any", two), has_room=has_room) as turns:
        yield Trial(turns, one, two, calls)


async def test_second_qemu_boots_while_the_first_test_runs_and_then_they_take_turns():
    async with trial() as t:
        await t.test("a")
        await t.ready(t.spare)
        await t.test("c")
        await t.ready(t.machine)
        await t.test("d")
        await t.ready(t.spare)
        await t.test("e")
    assert t.calls == [
        "a on one", "is there room?", "two begins", "two is ready",
        "c on two", "one begins", "one is ready",
        "d on one", "two begins", "two is ready",
        "e on two", "one begins",
        "two leaves", "one leaves",
    ]  # fmt: skip


async def test_whichever_is_ready_first_is_taken():
    async with trial() as t, anyio.create_task_group() as tasks:
        await t.test("a")
        tasks.start_soon(t.test, "c")
        await settle()
        assert t.calls[-2:] == ["two begins", "one begins"]
        await t.ready(t.machine)
        assert t.calls[-2:] == ["one is ready", "c on one"]


async def test_reset_of_a_test_that_was_given_up_serves_the_next():
    async with trial() as t:
        await t.test("a")
        with anyio.move_on_after(0.01):
            await t.test("c")
        await t.ready(t.machine)
        await t.test("d")
        await settle()
    assert t.calls[2:-2] == ["two begins", "one begins", "one is ready", "d on one"]


async def test_state_that_stays_is_that_of_the_test_before_and_another_reset_takes_its_qemu():
    async with trial() as t:
        await t.test("a")
        await t.ready(t.spare)
        await t.test("c")
        del t.calls[:]
        await t.test("d", "none")
        await t.test("e", "boot")
        await t.ready(t.machine)
        await t.test("f", "memory")
    assert t.calls[:5] == [
        "d on two by none", "e on two by boot", "one is ready", "f on one by memory", "two begins",
    ]  # fmt: skip


async def test_second_qemu_that_fails_is_ended_and_the_first_goes_on_alone():
    async with trial() as t:
        await t.test("a")
        t.spare.error = OSError("the port is in use\nand more")
        await t.ready(t.spare)
        await t.test("c")
    assert t.calls[2:-2] == ["two begins", "two ends", "c on one"]
    assert t.machine.account.spare == "one QEMU again: the port is in use"


async def test_first_qemu_that_fails_leaves_the_second():
    async with trial() as t:
        await t.test("a")
        await t.ready(t.spare)
        await t.test("c")
        t.machine.error = GuestFailed("the guest was not ready", script="")
        await t.ready(t.machine)
        await t.test("d")
    assert t.calls[4:-2] == ["c on two", "one begins", "one ends", "d on two"]


async def test_test_that_waits_gets_the_other_one_when_a_reset_fails():
    async with trial() as t, anyio.create_task_group() as tasks:
        await t.test("a")
        tasks.start_soon(t.test, "c")
        await settle()
        t.machine.error = GuestFailed("the guest was not ready", script="")
        await t.ready(t.machine)
        await t.ready(t.spare)
    assert t.calls[2:-2] == ["two begins", "one begins", "one ends", "two is ready", "c on two"]


@pytest.mark.parametrize(("usual", "room"), [("none", True), ("memory", False)])
async def test_one_qemu_is_all_where_nothing_is_reset_or_there_is_no_room(usual, room):
    async with trial(usual=usual, room=room) as t:
        for name in "abcd":
            await t.test(name)
    assert [call for call in t.calls if call != "is there room?"][:-2] == [
        "a on one", "b on one", "c on one", "d on one",
    ]  # fmt: skip
    assert t.machine.account.spare == ""
