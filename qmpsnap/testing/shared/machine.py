"""A machine that boots once, and is put back before each test; lives in one event loop.

Its images are overlays in a private directory: those that it was described with are never written to. What
cannot be put back exactly as it was is ended, and a new QEMU boots.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import anyio

from qmpsnap.entry import connect
from qmpsnap.errors import GuestFailed, MachineDiffers, QmpsnapError
from qmpsnap.model.start import Start
from qmpsnap.testing.shared import leftovers
from qmpsnap.testing.shared.place import Base, overlay_each
from qmpsnap.testing.shared.standing import Reset, Standing, differences, pictures
from qmpsnap.vm import VM, Launcher

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

MONITORS: Final = 4
"""How many monitors each QEMU has: the first is ours, the others are for tests."""

READY: Final = "qmpsnap-ready"
"""Name of the checkpoint of the guest that has booted; of the disks alone, `START`."""

START: Final = "qmpsnap-start"

RECORDS: Final = "records"
"""Name of the directory there that has the records of its snapshots."""

Ready = Callable[[VM, Path, int], Awaitable[None]]
"""Returns once the guest is ready.

It gets the machine, the directory of its sockets and logs, and how many bytes of its console's log are older
than this start.
"""

CONSOLE_LOG: Final = "console.log"
"""Name of the file, in the directory of a QEMU, that gets what the guest writes to its console."""

_FAILURES = (QmpsnapError, OSError, TimeoutError)
_TRIED: Final[tuple[Reset, ...]] = ("memory", "disks")
_CONSOLE_LINES = 15


@dataclass
class Booted:
    """A QEMU that runs.

    Attributes:
        vm: Our own connection to it.
        directory: Its sockets, logs and images.
        mode: How it can be put back.
        leave, ended: Set to let it end, and once it has.
    """

    vm: VM
    directory: Path
    mode: Reset
    leave: anyio.Event
    ended: anyio.Event
    standing: Standing | None = None
    files: dict[Path, tuple[int, int]] = field(default_factory=dict)
    records: dict[Path, bytes] = field(default_factory=dict)
    used: bool = False
    chains: str = ""


@dataclass
class Account:
    """What was done, for the report.

    Attributes:
        reset: How the machine is put back by default, and why.
        boots: Seconds of each boot.
        resets: Seconds of each reset.
        again: Why it was booted anew, one line each.
    """

    reset: str = ""
    boots: list[float] = field(default_factory=list)
    resets: list[float] = field(default_factory=list)
    again: list[str] = field(default_factory=list)


class SharedMachine:
    """One machine that tests share, one after the other; enter it before use.

    Args:
        launcher: Starts it.
        bases: The images of its disks.
        directory: An empty directory of ours, with a short path.
        ready: When the guest has booted.
        reset: How it is put back unless a test says otherwise; None: the fastest way that works.
        boot_limit: Seconds until the guest must be ready.
    """

    def __init__(
        self,
        launcher: Launcher,
        bases: Collection[Base],
        directory: Path,
        *,
        ready: Ready,
        reset: Reset | None = None,
        boot_limit: float = 120.0,
    ) -> None:
        self.account: Final = Account(reset=f"{reset}, as chosen" if reset else "")
        self._launcher = launcher
        self._bases = bases
        self._directory = directory
        self._ready = ready
        self._reset = reset
        self._boot_limit = boot_limit
        self._booted: Booted | None = None
        self._failed = ""
        self._lock = anyio.Lock()
        self._stack = AsyncExitStack()
        self._group: TaskGroup

    async def __aenter__(self) -> Self:
        self._group = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._end()
        await self._stack.aclose()

    @property
    def booted(self) -> Booted:
        """The QEMU that runs; only after `begin`."""
        if self._booted is None:
            raise GuestFailed("the machine was not started", script="")
        return self._booted

    async def begin(self, wanted: Reset | None = None, *, test: str = "") -> Booted:
        """Put the machine in its first state, or boot it.

        Args:
            wanted: How; None: the session's way.
            test: The test that is about to use it, for the report.

        Raises:
            QmpsnapError: When QEMU does not start, or the guest is not ready in time. After that every call
                is refused at once.
        """
        async with self._lock:
            if self._failed:
                raise GuestFailed(f"the machine could not be booted before: {self._failed}", script="")
            try:
                booted = await self._begin(wanted or self._reset, test)
            except _FAILURES as error:
                self._failed = str(error).splitlines()[0]
                raise
            booted.used = True
            return booted

    async def _begin(self, wanted: Reset | None, test: str) -> Booted:
        if wanted is None:
            return await self._choose()
        booted = self._booted
        if booted is not None and not booted.used and wanted in {booted.mode, "boot", "none"}:
            return booted
        if booted is None or wanted == "boot" or wanted not in {"none", booted.mode}:
            return await self._boot("boot" if wanted == "none" else wanted)
        started = time.monotonic()
        try:
            await self._put_back(booted, wanted)
        except _FAILURES as error:
            self.account.again.append(f"{test}: {_line(error)}" if test else _line(error))
            return await self._boot(booted.mode)
        self.account.resets.append(time.monotonic() - started)
        return booted

    async def _choose(self) -> Booted:
        """Boot, and choose the fastest way that puts the machine back."""
        reasons: list[str] = []
        for mode in _TRIED:
            try:
                booted = await self._boot(mode)
            except GuestFailed:
                raise
            except _FAILURES as error:
                reasons.append(f"not {mode}: {_line(error)}")
                continue
            started = time.monotonic()
            try:
                await self._put_back(booted, mode)
            except _FAILURES as error:
                reasons.append(f"not {mode}: {_line(error)}")
                continue
            self._reset = mode
            trial = f"{mode}, a trial took {time.monotonic() - started:.2f} s"
            self.account.reset = "; ".join([trial, *reasons])
            return booted
        self._reset = "boot"
        self.account.reset = "; ".join(["boot", *reasons])
        return await self._boot("boot")

    # -- boot ------------------------------------------------------------------------------------------

    async def _boot(self, mode: Reset) -> Booted:
        await self._end()
        started = time.monotonic()
        directory = self._directory / str(len(self.account.boots) + 1)
        for path in (directory, directory / RECORDS):
            path.mkdir()
        disks = await overlay_each(self._bases, directory)
        start = Start(
            disks=disks, directory=str(directory), monitors=monitors(directory), paused=mode == "disks"
        )
        booted: Booted = await self._group.start(self._hold, start, mode)
        self._booted = booted
        try:
            if mode == "disks":
                await booted.vm.snapshot(START)
                await booted.vm.cont()
            await self._await_ready(booted)
            if mode == "memory":
                memory = booted.directory / "ready.vmstate.qcow2"
                await booted.vm.checkpoint(READY, mode="in-place", memory=memory)
                await self._note(booted)
            elif mode == "disks":
                await self._note(booted)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._end()
            raise
        self.account.boots.append(time.monotonic() - started)
        booted.chains = pictures(await booted.vm.graph())
        return booted

    async def _hold(self, start: Start, mode: Reset, *, task_status: TaskStatus[Booted]) -> None:
        """Own a QEMU from its start to its end: both are in one task."""
        leave, ended, begun = anyio.Event(), anyio.Event(), False
        try:
            async with (
                self._launcher(start),
                connect(start.monitors[0], state_dir=Path(start.directory) / RECORDS) as vm,
            ):
                begun = True
                task_status.started(Booted(vm, Path(start.directory), mode, leave, ended))
                await leave.wait()
        except _FAILURES:
            if not begun:
                raise
        finally:
            ended.set()

    async def _await_ready(self, booted: Booted, *, since: int = 0) -> None:
        try:
            with anyio.fail_after(self._boot_limit):
                await self._ready(booted.vm, booted.directory, since)
        except (TimeoutError, QmpsnapError) as error:
            text = _line(error) if str(error) else f"the guest was not ready after {self._boot_limit:g} s"
            raise GuestFailed(f"{text}\n{self.last_lines(booted)}", script="") from error

    async def _note(self, booted: Booted) -> None:
        booted.standing = await leftovers.read_standing(booted.vm)
        active = {Path(disk.active.file) for disk in (await booted.vm.graph()).disks.values() if disk.layers}
        booted.records = _records(booted.directory)
        booted.files = {path: _stamp(path) for path in _files(booted.directory) if path not in active}

    async def _end(self) -> None:
        booted, self._booted = self._booted, None
        if booted is not None:
            booted.leave.set()
            await booted.ended.wait()

    # -- reset -----------------------------------------------------------------------------------------

    async def _put_back(self, booted: Booted, mode: Reset) -> None:
        """Put the machine back; when this fails, it is to be booted anew."""
        if mode == "none":
            await booted.vm.status()
            return
        if mode == "boot" or booted.standing is None:
            raise MachineDiffers("it was not prepared for a reset", differences=())
        self._check_files(booted)
        since = console_size(booted.directory) if mode == "disks" else 0
        await leftovers.end_jobs(booted.vm)
        leftovers.put_back_records(booted.directory / RECORDS, booted.records)
        await leftovers.resume(booted.vm)
        name = READY if mode == "memory" else START
        await booted.vm.revert(name)
        await leftovers.drop_nodes(booted.vm, booted.standing.nodes)
        await leftovers.resume(booted.vm)
        found = differences(booted.standing, await leftovers.read_standing(booted.vm))
        if found:
            names = [str(difference) for difference in found]
            raise MachineDiffers(f"after the reset it differs: {'; '.join(names)}", differences=names)
        graph = await booted.vm.graph()
        active = {disk.active.file for disk in graph.disks.values() if disk.layers}
        booted.records = leftovers.record_now(booted.directory / RECORDS, name, active=active)
        leftovers.put_back_records(booted.directory / RECORDS, booted.records)
        keep = booted.files.keys() | booted.records.keys() | {Path(file) for file in active}
        leftovers.remove_more(booted.directory, keep)
        booted.chains = pictures(graph)
        await self._await_ready(booted, since=since)

    def _check_files(self, booted: Booted) -> None:
        """Refuse when a layer that the reset needs was written to: its moment is lost."""
        assert booted.standing is not None  # noqa: S101
        layers = {Path(file) for files in booted.standing.chains.values() for file in files}
        for path in booted.files.keys() & layers:
            if not path.exists() or _stamp(path) != booted.files[path]:
                raise MachineDiffers(
                    f"{path.name} was changed, which the reset needs", differences=[str(path)]
                )

    def last_lines(self, booted: Booted) -> str:
        """The end of what the guest wrote to its console."""
        text = console_text(booted.directory)
        lines = [line for line in text.splitlines() if line.strip()][-_CONSOLE_LINES:]
        if not lines:
            return "it wrote nothing to its console"
        return "\n".join(["the end of its console:", *(f"  {line}" for line in lines)])


@asynccontextmanager
async def shared_machine(
    launcher: Launcher,
    bases: Collection[Base],
    directory: Path,
    *,
    ready: Ready,
    reset: Reset | None,
    boot_limit: float,
) -> AsyncIterator[SharedMachine]:
    """A `SharedMachine` for the block; see there."""
    machine = SharedMachine(launcher, bases, directory, ready=ready, reset=reset, boot_limit=boot_limit)
    async with machine:
        yield machine


def monitors(directory: Path) -> tuple[str, ...]:
    """Paths of the monitors of a QEMU."""
    return tuple(str(directory / f"qmp{number}") for number in range(MONITORS))


def console_text(directory: Path, since: int = 0) -> str:
    """What the guest wrote to its console after the first bytes; "" if there is no log of it."""
    try:
        return (directory / CONSOLE_LOG).read_bytes()[since:].decode(errors="replace")
    except OSError:
        return ""


def console_size(directory: Path) -> int:
    """Bytes in the log of the console."""
    log = directory / CONSOLE_LOG
    return log.stat().st_size if log.exists() else 0


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]


def _records(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in _files(directory / RECORDS)}


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
