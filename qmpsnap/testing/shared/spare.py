"""The QEMUs of a shared machine: while a test uses one, the other is reset for the next test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, Self

import anyio

from qmpsnap.base_error import first_line
from qmpsnap.testing.shared.machine import SharedMachine
from qmpsnap.testing.shared.reset import Booted
from qmpsnap.testing.shared.standing import Reset
from qmpsnap.vm import VM

if TYPE_CHECKING:
    from anyio.abc import TaskGroup


class Turns:
    """A shared machine with one QEMU, or with two that tests use in turn; use it in an `async with` block.

    Args:
        machine: The machine.
        spare: The same machine in another directory, whose QEMU boots while the first test runs; None: there
            is no second QEMU.
        has_room: Says whether the host has room for the second QEMU; called once, with the first one.
    """

    def __init__(
        self,
        machine: SharedMachine,
        spare: SharedMachine | None,
        *,
        has_room: Callable[[VM], Awaitable[bool]],
    ) -> None:
        self._all: Final = [machine, *([spare] if spare else [])]
        self._machines = [machine]
        self._last = machine
        self._spare = spare
        self._has_room = has_room
        self._account = machine.account
        self._prepared: list[SharedMachine] = []
        self._preparing: set[SharedMachine] = set()
        self._changed = anyio.Event()
        self._stack = AsyncExitStack()
        self._group: TaskGroup

    async def __aenter__(self) -> Self:
        for machine in self._all:
            await self._stack.enter_async_context(machine)
        self._group = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._group.cancel_scope.cancel()
        await self._stack.aclose()

    async def begin(self, wanted: Reset | None = None, *, test: str = "") -> tuple[SharedMachine, Booted]:
        """Return a machine in its first state, and its QEMU; see `SharedMachine.begin`.

        A test that demands another reset than the session's gets the QEMU of the test before.
        """
        in_turn = len(self._machines) > 1 and wanted in {None, self._last.usual}
        machine = await self._next() if in_turn else self._last
        booted = await machine.begin(wanted, test=test)
        self._last = machine
        if self._spare is not None and (reset := machine.usual) is not None:
            spare, self._spare = self._spare, None
            if reset != "none" and await self._has_room(booted.vm):
                spare.reset_by(reset)
                self._account.spare = "two QEMUs in turn: one is reset while a test uses the other"
                self._machines.append(spare)
                self._prepare(spare)
        return machine, booted

    def _prepare(self, machine: SharedMachine) -> None:
        if machine not in self._preparing and machine not in self._prepared:
            self._preparing.add(machine)
            self._group.start_soon(self._reset, machine)

    async def _reset(self, machine: SharedMachine) -> None:
        try:
            await machine.prepare()
        except Exception as error:  # noqa: BLE001 - of the only QEMU, `begin` raises it
            if len(self._machines) > 1:
                self._machines.remove(machine)
                self._account.spare = f"one QEMU again: {first_line(error)}"
                await machine.end()
                return
        finally:
            self._preparing.discard(machine)
        self._prepared.append(machine)
        self._changed.set()

    async def _next(self) -> SharedMachine:
        """Return the QEMU that is reset first, that of the test before included."""
        self._prepare(self._last)
        while not self._prepared:
            self._changed = anyio.Event()
            await self._changed.wait()
        return self._prepared.pop()
