"""Forks: machines that go on from the present state of another one, which is not changed by that."""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Generic

import anyio

from qmpsnap.cloning import memory_of, resuming, waiting, wake_clone
from qmpsnap.errors import ConnectFailed, QmpsnapError
from qmpsnap.helper import source_of
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.start import GuestMemory
from qmpsnap.model.view import DiskView
from qmpsnap.one_machine import M, OneMachine, Starter
from qmpsnap.own_checkpoint import Own, own, planned
from qmpsnap.plan.plan import Plan
from qmpsnap.run.disk import in_thread
from qmpsnap.run.fast_place import fast_place
from qmpsnap.run.file_limit import OPERATION, require_room
from qmpsnap.run.guard import removed_at_death
from qmpsnap.run.log import get_logger
from qmpsnap.run.scratch import in_scratch
from qmpsnap.run.view_lock import Locks
from qmpsnap.template import Template
from qmpsnap.template_making import template_of
from qmpsnap.waking import Waker

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

_log = get_logger("qmpsnap.fork")
_PREFIX: Final = "fork-"
_OPEN_FILES: Final = 8  # of this process, for each child that `launch` starts


@dataclass(frozen=True, slots=True)
class Child(Generic[M]):
    """One of the machines of a fork.

    Attributes:
        number: 0 for the first.
        machine: The machine, whose guest runs; None: it could not be started.
        error: Why it could not be started; None: it runs.
    """

    number: int
    machine: M | None = None
    error: QmpsnapError | None = None

    @property
    def vm(self) -> M:
        """The machine, whose guest runs.

        Raises:
            QmpsnapError: When it could not be started; the error says why.
        """
        if self.error is not None:
            raise self.error
        assert self.machine is not None  # noqa: S101 - one of the two is there
        return self.machine


class Children(Generic[M]):
    """The machines of a fork, in the order in which they begin to run; `async for child in children`.

    Attributes:
        count: How many there are.
        standstill_s: Seconds for which the guest was paused; None: the fork is from an earlier checkpoint.
    """

    def __init__(self, count: int, standstill_s: float | None = None) -> None:
        self.count = count
        self.standstill_s = standstill_s
        self._children: list[Child[M]] = []
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        return f"<Children: {len(self._children)} of {self.count} so far>"

    async def __aiter__(self) -> AsyncIterator[Child[M]]:
        """Yield each machine as soon as it runs or could not be started."""
        index = 0
        while index < self.count:
            changed = self._changed
            for child in self._children[index:]:
                index += 1
                yield child
            if index < self.count:
                await changed.wait()

    def tell(self, child: Child[M]) -> None:
        """Add the next child."""
        self._children.append(child)
        self._changed.set()
        self._changed = anyio.Event()


class _Fork(Generic[M]):
    """Starts and ends the children; they wait until the template is complete."""

    def __init__(
        self, children: Children[M], launcher: Starter[M], place: str, wake: Waker[M] | None
    ) -> None:
        self._children = children
        self._launcher = launcher
        self._place = place
        self._wake = wake
        self._template: Template[M] | None = None
        self._complete = anyio.Event()
        self._over = anyio.Event()
        self._starting: set[anyio.CancelScope] = set()
        cpus = max(2, os.cpu_count() or 2)
        self._starts = anyio.CapacityLimiter(cpus - 1)  # one is left to the QEMU for which all wait
        self._loads = anyio.CapacityLimiter(4 * cpus)  # a guest that runs already slows all others down

    def begin(
        self, tasks: TaskGroup, views: Sequence[DiskView], memory: GuestMemory, name: str, state: KeptState
    ) -> None:
        """Start all QEMUs, on the template's memory, which is still being written, as its state will be."""
        for number in range(self._children.count):
            tasks.start_soon(self._live, number, views, memory, name, state)

    def complete(self, template: Template[M]) -> None:
        """Let their guests run."""
        self._template = template
        self._complete.set()

    async def _live(
        self, number: int, views: Sequence[DiskView], memory: GuestMemory, name: str, state: KeptState
    ) -> None:
        """Start a child, and keep it until all end; if it fails, only its own result says so."""
        if self._over.is_set():  # the template failed before this task began
            return
        try:
            async with AsyncExitStack() as stack:
                with anyio.CancelScope() as scope:
                    self._starting.add(scope)
                    async with self._starts:
                        clone = await stack.enter_async_context(
                            waiting(self._launcher, views, memory, directory=self._place)
                        )
                    async with resuming(clone, name, state) as go_on:
                        await self._complete.wait()
                        assert self._template is not None  # noqa: S101 - it is set first
                        async with self._loads:
                            await go_on(self._template.directory, self._template.record)
                    await wake_clone(clone.vm, self._wake, of=name)
                self._starting.discard(scope)
                if not scope.cancelled_caught:
                    self._children.tell(Child(number, clone.vm))
                    await self._over.wait()
        except Exception as error:  # noqa: BLE001 - a launcher of the caller's may raise anything
            failure = _of_launcher(error)
            if self._over.is_set():
                _log.warning("child.ended", number=number, reason=str(failure))
            else:
                self._children.tell(Child(number, error=failure))

    def end(self) -> None:
        """End all children."""
        self._over.set()
        for scope in self._starting:
            scope.cancel()


@asynccontextmanager
async def fork(
    vm: OneMachine,
    count: int,
    launcher: Starter[M],
    *,
    of: str = "",
    directory: str = "",
    wake: Waker[M] | None = None,
) -> AsyncIterator[Children[M]]:
    """Start machines that go on from the present state of this one, or from a checkpoint; see `VM.fork`.

    Args:
        vm: The machine.
        count: Number of machines to start.
        launcher: Starts each of them, and the helper QEMU.
        of: The checkpoint's name; "": a checkpoint is taken, and deleted at the end. The QEMUs of the helper
            and of the children start while its memory is written.
        directory: Directory for the temporary files; "": the system's.
        wake: Called with each of them once its guest runs; None: no function.
    """
    require_room(2 * OPERATION + count * _OPEN_FILES)
    memory_bytes = await memory_of(vm)
    async with AsyncExitStack() as stack:
        temporary = await stack.enter_async_context(AsyncExitStack())
        place = await temporary.enter_async_context(in_scratch(directory))
        if directory:  # where the next call may not come by
            stack.enter_context(removed_at_death(place))
        fast = "" if directory else await _fast_place(memory_bytes)
        memory_place = await temporary.enter_async_context(in_scratch(fast)) if fast else place
        children: Children[M] = Children(count)
        starter = _Fork(children, launcher, place, wake)
        checkpoint: Own | None = None
        if not of:
            name, memory = _new_name(), _memory_in(memory_place) if fast else ""
            marks = Locks(name)
            stack.callback(marks.close)
            checkpoint = await stack.enter_async_context(own(vm, name, memory=memory, marks=marks))
            # Before the checkpoint is deleted: the record of that does not know of them.
            stack.push_async_callback(temporary.aclose)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:

            async def finished(template: Template[M]) -> None:
                stack.push_async_callback(_remove, template)
                await stack.enter_async_context(template.in_use())
                starter.complete(template)

            try:
                make = partial(
                    template_of,
                    directory=posixpath.join(memory_place, "template"),
                    launcher=launcher,
                    scratch=place,
                    lasting=False,
                    began=partial(starter.begin, tasks),
                    finished=finished,
                )
                if checkpoint is None:
                    await make(await source_of(vm, of))
                else:
                    await checkpoint.take_while(make)
                    assert checkpoint.done is not None  # noqa: S101 - it was taken
                    children.standstill_s = checkpoint.done.standstill_s
                yield children
            except Exception as error:  # noqa: BLE001 - the task group would wrap what the block raised
                failure = error
            finally:
                starter.end()
        if failure is not None:
            raise failure


async def plan_fork(vm: OneMachine, *, of: str = "") -> Plan | None:
    """Plan the checkpoint that a fork takes, and refuse what the fork would; None: `of` exists already.

    Nothing is changed. The checkpoint of each fork has another name, and its memory another directory.

    Args:
        vm: The machine.
        of: As for `fork`.
    """
    memory_bytes = await memory_of(vm)
    if of:
        await source_of(vm, of)
        return None
    fast = await _fast_place(memory_bytes)
    if not fast:
        return await planned(vm, _new_name(), fork=True)
    async with in_scratch(fast, sweeps=False) as place:
        return await planned(vm, _new_name(), memory=_memory_in(place), fork=True)


def _of_launcher(error: Exception) -> QmpsnapError:
    """The error of a child; what is none of qmpsnap's own came from the launcher."""
    if isinstance(error, QmpsnapError):
        return error
    failure = ConnectFailed(f"the launcher has failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _new_name() -> str:
    return f"{_PREFIX}{secrets.token_hex(4)}"


def _memory_in(place: str) -> str:
    return posixpath.join(place, "checkpoint")


async def _fast_place(memory_bytes: int) -> str:
    """A directory in the host's memory with room for the guest's memory twice; "" if there is none."""
    return await in_thread(partial(fast_place, 2 * memory_bytes))


async def _remove(template: Template[M]) -> None:
    """Remove the template, which no child uses any more."""
    with anyio.CancelScope(shield=True):
        try:
            await template.remove()
        except QmpsnapError as error:
            _log.warning("template.left", directory=template.directory, reason=str(error))
