"""The shared machines of a pytest session, in an event loop in a thread of their own."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio
import anyio.from_thread

from qmpsnap.entry import connect
from qmpsnap.errors import GuestFailed
from qmpsnap.model.start import Start
from qmpsnap.run.scratch import scratch
from qmpsnap.testing.guest import Guest, open_guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.shared.account import Account
from qmpsnap.testing.shared.calls import Calls
from qmpsnap.testing.shared.faces import Face
from qmpsnap.testing.shared.guest_port import has_port, open_woken
from qmpsnap.testing.shared.kept import keep
from qmpsnap.testing.shared.machine import Ready, SharedMachine
from qmpsnap.testing.shared.monitors import monitors
from qmpsnap.testing.shared.place import Base, private_directory, read_bases, unwritable
from qmpsnap.testing.shared.reset import RECORDS, Booted, console_end, console_text
from qmpsnap.testing.shared.room import has_room
from qmpsnap.testing.shared.spare import Turns
from qmpsnap.testing.shared.standing import Reset
from qmpsnap.testing.shell import Ran
from qmpsnap.testing.witness import Witness
from qmpsnap.vm import VM, Launcher

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")
_WORTH: Final = 20  # tests that save the time in which a second QEMU boots; fewer on a fast host
_AT_ONCE: Final = 4  # machines; the least recently used one ends when a further one is needed


class Source:
    """A machine as a test suite describes it.

    Attributes:
        launcher: Starts it.
        disks: The image of each disk.
        formats: "raw" or "qcow2" of each image; needed unless its name ends in ".qcow2".
        ready: Text on the console of a guest that is ready, or a coroutine function that is called with the
            VM and returns then; None: our own guest is ready when it answers, any other at once.
        cwd: The directory that relative paths of images count from; "": the current one.
        repeatable: Whether two can run at once: neither names a port or a file of the host that the other
            names, too, except for the images.
    """

    def __init__(
        self,
        launcher: Launcher,
        disks: Mapping[str, str],
        formats: Mapping[str, str],
        ready: str | Callable[[VM], Awaitable[object]] | None,
        *,
        cwd: str = "",
        repeatable: bool = False,
    ) -> None:
        self.launcher: Final = launcher
        self.disks: Final = disks
        self.formats: Final = formats
        self.ready: Final = ready
        self.cwd: Final = cwd
        self.repeatable: Final = repeatable


class Pool:
    """All shared machines of this process; use it in a `with` block.

    Args:
        reset: How machines are reset; None: the fastest way that works for each.
        boot_limit: Seconds that a guest may take to be ready.
        spare: Whether each machine has a second QEMU, which is reset while a test uses the first; None: if
            there are enough tests, the machine is repeatable, and the host has room.
        workers: Number of processes with such a pool.
        tests: Number of tests that use it, in all of them.
    """

    def __init__(
        self,
        *,
        reset: Reset | None = None,
        boot_limit: float = 120.0,
        spare: bool | None = None,
        workers: int = 1,
        tests: int = 0,
    ) -> None:
        self._reset = reset
        self._boot_limit = boot_limit
        self._spare = spare
        self._workers = workers
        self._pays = tests >= _WORTH * workers
        self._stack = ExitStack()
        self._machines: list[_Owned] = []
        self._accounts: list[Account] = []
        self._added = 0
        self._calls: Calls
        self._directory: Path
        self._pid: int

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        self._directory = self._stack.enter_context(private_directory())
        portal = self._stack.enter_context(anyio.from_thread.start_blocking_portal("asyncio"))
        self._stack.callback(portal.call, partial(portal.stop, cancel_remaining=True))
        self._calls = Calls(portal)
        return self

    def __exit__(self, *_: object) -> None:
        if os.getpid() != self._pid:  # a process that a test has forked: nothing here is its own
            return
        with self._stack:
            while self._machines:
                self._machines.pop().stack.close()

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The boots and resets of each machine."""
        return tuple(self._accounts)

    def begin(self, key: object, source: Source, wanted: Reset | None, *, test: str) -> InUse:
        """Reset a machine to its first state for a test.

        Args:
            key: Identifies the machine; equal keys are the same machine.
            source: Its description, if it does not exist yet.
            wanted: How it is reset; None: the session's way.
            test: The test's name, for the report.
        """
        owned = next((owned for owned in self._machines if owned.key == key), None)
        if owned is None:
            while len(self._machines) >= _AT_ONCE:
                self._machines.pop(0).stack.close()
            owned = self._add(key, source)
        else:
            self._machines.remove(owned)
        self._machines.append(owned)
        turns = owned.turns
        machine, booted = self._calls.call(lambda: turns.begin(wanted, test=test))
        return InUse(self._calls, machine, booted)

    def _add(self, key: object, source: Source) -> _Owned:
        bases = self._calls.call(partial(read_bases, source.disks, source.formats, cwd=source.cwd))
        with ExitStack() as stack:
            stack.enter_context(unwritable([file for base in bases for file in base.files]))
            machine = self._machine(source, bases, None)
            is_wanted = self._pays and source.repeatable if self._spare is None else self._spare
            spare = self._machine(source, bases, machine.account) if is_wanted else None
            turns = Turns(machine, spare, has_room=self._has_room)
            stack.enter_context(self._calls.portal.wrap_async_context_manager(turns))
            self._accounts.append(machine.account)
            return _Owned(key, turns, stack.pop_all())

    def _machine(self, source: Source, bases: Collection[Base], account: Account | None) -> SharedMachine:
        self._added += 1
        directory = self._directory / str(self._added)
        directory.mkdir()
        return SharedMachine(
            source.launcher,
            bases,
            directory,
            ready=_ready(source.ready, self._boot_limit),
            reset=self._reset,
            boot_limit=self._boot_limit,
            account=account,
        )

    async def _has_room(self, vm: VM) -> bool:
        return bool(self._spare) or await has_room(vm, self._directory, workers=self._workers)


@dataclass(frozen=True)
class _Owned:
    """A machine of the pool, its key, and what ends it."""

    key: object
    turns: Turns
    stack: ExitStack


class InUse:
    """A machine while one test uses it.

    Attributes:
        vm: Its VM.
        guest: Runs commands in its guest.
        directory: Sockets, logs and images of its QEMU.
    """

    def __init__(self, calls: Calls, machine: SharedMachine, booted: Booted) -> None:
        self._calls = calls
        self._machine = machine
        self._booted = booted
        self._free = [path for path in monitors(booted.directory)[1:] if path not in booted.busy]
        self.directory: Final = booted.directory
        self.vm: Final = Face[VM](calls.portal, self._connect)
        through = partial(_GuestThere, calls.portal)
        self.guest: Final = Face[Guest](calls.portal, self._open_guest, through=through)

    def monitor(self) -> str:
        """Return the path of a monitor that is not in use.

        Raises:
            GuestFailed: When there is none left.
        """
        if not self._free:
            raise GuestFailed("all monitors of the machine are in use", script="")
        return self._free.pop()

    def close(self) -> None:
        """Leave whatever plain code has entered, and close its connections."""
        try:
            self.guest.close()
        finally:
            self.vm.close()

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[VM]:
        monitor = self.monitor()
        try:
            earlier = len(list(self.directory.glob("qmp-*.jsonl")))
            record = self.directory / f"qmp-{earlier + 1}.jsonl"
            records, name = self.directory / RECORDS, "the test's machine"
            async with connect(monitor, state_dir=records, record=record, name=name) as vm:
                vm.launcher = self._another
                yield vm
        finally:
            self._free.append(monitor)

    @asynccontextmanager
    async def _another(self, start: Start) -> AsyncIterator[VM]:
        """Start a QEMU like the machine, for a fork for example; its sockets and logs are in a directory."""
        with ExitStack() as stack:
            place = start.directory or stack.enter_context(scratch())
            async with self._machine.launcher(replace(start, directory=place)) as vm:
                if not start.directory:  # it goes on with the machine's own images, and their records
                    vm.records_in(str(self.directory / RECORDS))
                yield vm

    @asynccontextmanager
    async def _open_guest(self) -> AsyncIterator[Guest]:
        if not has_port(self._booted):
            await self._booted.vm.status()  # a QEMU that has ended has removed the port; then this raises
            port = self.directory / PORT_NAME
            other = GuestFailed(
                f"the machine does not run qmpsnap's own guest: it has no port {port}", script=""
            )
            other.hint = "open_agent() or open_console() runs commands in another guest"
            raise other
        async with open_woken(self._booted) as guest:
            yield guest

    # -- what is kept of a failed test -----------------------------------------------------------------

    def keep(self, folder: Path, *, overlays: bool) -> None:
        """Copy the logs and messages of a failed test into a folder, which is created."""
        self._calls.call(lambda: keep(self._booted, folder, overlays=overlays))


class _GuestThere(Guest):
    """Our guest for coroutines of any event loop; its port has a single client, in the plugin's loop."""

    def __init__(self, portal: BlockingPortal, guest: Guest) -> None:
        super().__init__(guest._stream)  # noqa: SLF001 - the same guest
        self._portal = portal
        self._original = guest

    async def _ask(self, script: str | Callable[[], str], **options: Any) -> Ran:  # noqa: ANN401 - as there
        return await self._there(partial(self._original._ask, script, **options))  # noqa: SLF001

    async def _wait_boot(self, *, not_this: str, limit: float) -> str:
        wait = partial(self._original._wait_boot, not_this=not_this, limit=limit)  # noqa: SLF001
        return await self._there(wait)

    async def _there(self, function: Callable[[], Awaitable[T]]) -> T:
        return await asyncio.wrap_future(self._portal.start_task_soon(function))


def _ready(condition: str | Callable[[VM], Awaitable[object]] | None, limit: float) -> Ready:
    async def ready(vm: VM, directory: Path) -> None:
        console = partial(console_end, directory)
        if condition is None:
            if (directory / PORT_NAME).exists():
                async with open_guest(directory / PORT_NAME, limit=limit, vm=vm, console=console):
                    pass
            return
        with Witness(vm, console).watch(doing="the boot", boots=True):
            if callable(condition):
                result: Any = condition(vm)
                if inspect.isawaitable(result):
                    await result
                return
            while condition not in console_text(directory):  # noqa: ASYNC110 - a file has no event for us
                await anyio.sleep(0.02)

    return ready
