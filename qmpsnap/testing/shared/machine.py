"""A machine that boots once, and is reset before each test. It belongs to a single event loop.

Its images are overlays in a private directory; the images in its description are never written to. If it
cannot be reset to exactly its first state, its QEMU is ended, and a new one boots.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Final, Self

import anyio

from qmpsnap.base_error import first_line
from qmpsnap.entry import connect
from qmpsnap.errors import ConnectFailed, GuestFailed, InvalidTarget, LinkLost, MachineDiffers, QmpsnapError
from qmpsnap.model.console_text import last_lines
from qmpsnap.model.start import Start
from qmpsnap.run.disk import in_thread
from qmpsnap.run.safe_open import remove_tree
from qmpsnap.template import Template
from qmpsnap.template_making import freeze
from qmpsnap.testing.shared import reset as resets
from qmpsnap.testing.shared.account import Account
from qmpsnap.testing.shared.guest_port import has_port, open_woken
from qmpsnap.testing.shared.memory_only import refuse_diskless, refuse_outside
from qmpsnap.testing.shared.monitors import monitors, still_connected
from qmpsnap.testing.shared.place import Base, overlay_each
from qmpsnap.testing.shared.reset import CONSOLE_LOG, RECORDS, Booted, console_end
from qmpsnap.testing.shared.standing import Reset, pictures
from qmpsnap.testing.witness import PRINTED
from qmpsnap.vm import VM, Launcher

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

Ready = Callable[[VM, Path], Awaitable[None]]
"""Returns once the guest is ready; called with the machine, and the directory of its sockets and logs."""

_FAILURES = (QmpsnapError, OSError, TimeoutError)
_TRIED: Final[tuple[Reset, ...]] = ("memory", "clone", "disks")
_LATE: Final = "give it more time (--qmpsnap-boot-limit), or run it by itself to see where it stops"
_NOTHING: Final = "it wrote nothing to its console"
# /dev/kvm can be there although a guest does not get to its first line under it.
_SILENT: Final = f"under KVM, try it without (--qmpsnap-accel=tcg); else {_LATE}"


class SharedMachine:
    """A machine that tests use one after the other; use it in an `async with` block.

    Args:
        launcher: Starts it.
        bases: The images of its disks.
        directory: An empty directory of ours, with a short path.
        ready: Waits until the guest has booted.
        reset: How it is reset unless a test demands another way; None: the fastest way that works.
        boot_limit: Seconds until the guest must be ready.
        account: Where boots and resets are noted; None: a new one.
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
        account: Account | None = None,
    ) -> None:
        self.account: Final = account or Account(reset=f"{reset}, as chosen" if reset else "")
        self.launcher: Final = launcher
        self._bases = bases
        self._directory = directory
        self._ready = ready
        self._reset = reset
        self._boot_limit = boot_limit
        self._booted: Booted | None = None
        self._template: Template[VM] | None = None
        self._starts = 0
        self._failure: Exception | None = None
        self._is_told = False
        self._failed = False
        self._test = ""
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
    def usual(self) -> Reset | None:
        """How it is reset unless a test demands another way; None: not chosen yet."""
        return self._reset

    def reset_by(self, reset: Reset) -> None:
        """Choose how it is reset unless a test demands another way."""
        self._reset = reset

    async def begin(self, wanted: Reset | None = None, *, test: str = "") -> Booted:
        """Reset the machine to its first state, or boot it.

        Args:
            wanted: How it is reset; None: the session's way.
            test: The test that is about to use it, for the report.

        Raises:
            InvalidTarget: When a file that it needs cannot be created.
            QmpsnapError: When QEMU does not start, or the guest is not ready in time. After that every call
                is refused at once; if it has booted before, only after a second failure.
        """
        async with self._lock:
            if self._failure is not None and self._is_told:
                line = first_line(self._failure)
                raise GuestFailed(f"the machine could not be booted before: {line}", script="")
            try:
                booted = await self._begin(wanted or self._reset)
            except _FAILURES:
                self._is_told = True
                raise
            booted.used, self._test = True, test
            return booted

    async def prepare(self) -> None:
        """Reset it in the session's way before a test asks for it, and wake qmpsnap's own guest.

        Raises:
            QmpsnapError, OSError: As `begin`, which raises the same again, or tries it once more.
        """
        async with self._lock:
            booted = await self._begin(self._reset)
            try:
                if has_port(booted):
                    async with open_woken(booted):
                        pass
            except _FAILURES as error:
                await self._boot_again(booted.mode, error)

    async def end(self) -> None:
        """End its QEMU."""
        async with self._lock:
            await self._end()

    async def _begin(self, wanted: Reset | None) -> Booted:
        if self._failure is not None:
            raise self._failure
        try:
            booted = await self._reset_or_boot(wanted)
        except InvalidTarget:  # a file cannot be created, as on a full disk; the next try may find room
            raise
        except _FAILURES as error:
            if self._failed or not self.account.boots:  # what has booted before may do so again, once
                self._failure = error
            self._failed = True
            raise
        self._failed = False
        return booted

    async def _reset_or_boot(self, wanted: Reset | None) -> Booted:
        if wanted is None:
            return await self._choose()
        booted = self._booted
        if booted is not None and wanted in {booted.mode, "boot", "none"} and await self._is_fresh(booted):
            return booted
        if booted is None or wanted == "boot" or wanted not in {"none", booted.mode}:
            return await self._boot("boot" if wanted == "none" else wanted)
        started, mode = time.monotonic(), booted.mode
        try:
            booted = await self._put_back(booted, wanted)
        except _FAILURES as error:
            return await self._boot_again(mode, error)
        booted.used = False
        self.account.resets.append(time.monotonic() - started)
        return booted

    async def _boot_again(self, mode: Reset, error: BaseException) -> Booted:
        """Boot because a reset failed, and note why, and which test had it before."""
        why = _why_again(error)
        self.account.again.append(f"{self._test}: {why}" if self._test else why)
        return await self._boot(mode)

    async def _is_fresh(self, booted: Booted) -> bool:
        """Say whether a QEMU has waited for a test since its boot or reset, and still answers."""
        if booted.used:
            return False
        try:
            await self._in_time(booted.vm.status())
        except _FAILURES:
            return False
        return True

    async def _choose(self) -> Booted:
        """Boot, and choose the fastest way that resets the machine."""
        reasons: dict[str, list[str]] = {}
        for mode in _TRIED:
            try:
                booted = await self._boot(mode, chosen=False)
            except _FAILURES as error:
                # A QEMU that does not start, or whose guest does not boot, does so for no other reset.
                if isinstance(error, GuestFailed) or (isinstance(error, ConnectFailed) and mode == "memory"):
                    raise
                reasons.setdefault(first_line(error), []).append(mode)
                continue
            started = time.monotonic()
            try:
                booted = await self._put_back(booted, mode)
                await self._await_ready(booted)
            except _FAILURES as error:
                reasons.setdefault(first_line(error), []).append(mode)
                continue
            seconds = time.monotonic() - started
            if seconds > self.account.boots[-1]:
                reasons[f"{seconds:.2f} s, slower than a boot"] = [mode]
                continue
            self._reset = mode
            self.account.reset = "; ".join([f"{mode}, a trial took {seconds:.2f} s", *_why(reasons)])
            return booted
        self._reset = "boot"
        self.account.reset = "; ".join(["boot", *_why(reasons)])
        return await self._boot("boot")

    # -- boot ------------------------------------------------------------------------------------------

    async def _boot(self, mode: Reset, *, chosen: bool = True) -> Booted:
        """Boot it so that it can be reset; unless that way was chosen, refuse one that is not safe."""
        await self._end()
        await self._remove_earlier()
        started = time.monotonic()
        self._starts += 1
        directory = self._directory / str(self._starts)
        directory.mkdir()
        disks = await overlay_each(self._bases, directory)
        start = Start(
            disks=disks,
            directory=str(directory),
            monitors=monitors(directory),
            paused=mode == "disks",
            alone=True,
        )
        try:
            booted = await self._start(self.launcher(start), [directory], mode)
            if mode in {"memory", "clone"} and not chosen:
                await refuse_outside(booted.vm)
            if mode in {"clone", "disks"}:
                await refuse_diskless(booted.vm, mode)
            if mode == "disks":
                await resets.keep_disks(booted)
            await self._await_ready(booted)
            if mode == "clone":
                # The images are locked, and nothing of ours may stay beside them.
                self._template = await freeze(
                    booted.vm, str(directory / "template"), resets.READY, self.launcher, keepers=False
                )
                booted = await self._clone()
            elif mode == "memory":
                await resets.keep_memory(booted)
            if mode in {"memory", "disks"}:
                await resets.note(booted)
            booted.chains = pictures(await booted.vm.graph())
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._end()
            raise
        self.account.boots.append(time.monotonic() - started)
        return booted

    async def _clone(self) -> Booted:
        """End the QEMU that runs, and start a clone of the template."""
        await self._end()
        if self._template is None:
            raise GuestFailed("there is no template", script="")
        places: list[Path] = []

        def launcher(start: Start) -> AbstractAsyncContextManager[VM]:
            places.append(Path(start.directory))
            return self.launcher(replace(start, monitors=monitors(places[0]), alone=True))

        clone = self._template.clone(launcher=launcher, directory=self._directory)
        booted = await self._start(clone, places, "clone")
        booted.wakes = True
        booted.chains = pictures(await booted.vm.graph())
        await self._await_ready(booted)
        return booted

    async def _start(
        self, machine: AbstractAsyncContextManager[object], places: list[Path], mode: Reset
    ) -> Booted:
        booted: Booted = await self._group.start(self._hold, machine, places, mode)
        self._booted = booted
        return booted

    async def _hold(
        self,
        machine: AbstractAsyncContextManager[object],
        places: list[Path],
        mode: Reset,
        *,
        task_status: TaskStatus[Booted],
    ) -> None:
        """Own a QEMU from its start to its end, which must be in the same task."""
        leave, ended, is_open = anyio.Event(), anyio.Event(), False
        try:
            async with machine:
                (place,) = places
                (place / RECORDS).mkdir(exist_ok=True)
                async with connect(monitors(place)[0], state_dir=place / RECORDS, name="the machine") as vm:
                    is_open = True
                    task_status.started(Booted(vm, place, mode, leave, ended))
                    await leave.wait()
        except _FAILURES:
            if not is_open:
                raise
        finally:
            ended.set()

    async def _await_ready(self, booted: Booted) -> None:
        try:
            with anyio.fail_after(self._boot_limit):
                await self._ready(booted.vm, booted.directory)
        except (TimeoutError, QmpsnapError) as error:
            is_late = not str(error)
            text = (
                f"the guest was not ready after {self._boot_limit:g} s"
                if is_late
                else first_line(error).removesuffix(PRINTED)
            )
            console = self.last_lines(booted)
            failed = GuestFailed(f"{text}\n{console}", script="")
            if is_late:
                failed.hint = _SILENT if console == _NOTHING else _LATE
            raise failed from error

    async def _end(self) -> None:
        booted, self._booted = self._booted, None
        if booted is not None:
            booted.leave.set()
            await booted.ended.wait()

    async def _remove_earlier(self) -> None:
        """Remove the files of earlier QEMUs: a test may have filled the file system with them."""
        for path in list(self._directory.iterdir()):
            await in_thread(partial(remove_tree, str(path)))

    async def _put_back(self, booted: Booted, mode: Reset) -> Booted:
        """Reset the machine; if this fails, it has to be booted again."""
        if mode == "none":
            await self._in_time(booted.vm.status())
            booted.busy = await still_connected(booted.directory)
            return booted
        if mode == "clone":
            return await self._clone()
        if clients := await still_connected(booted.directory):
            who = tuple(clients.values())
            raise MachineDiffers(f"its client is still connected: {'; '.join(who)}", differences=who)
        await self._in_time(resets.put_back(booted))
        booted.wakes = mode == "memory"
        if mode == "disks":  # a guest that goes on with its memory is ready
            await self._await_ready(booted)
        return booted

    async def _in_time(self, reset: Awaitable[object]) -> None:
        """Limit a reset to the time that a boot may take: a QEMU that hangs never answers its commands."""
        try:
            with anyio.fail_after(self._boot_limit):
                await reset
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"QEMU was not reset in {self._boot_limit:g} s") from error

    def last_lines(self, booted: Booted) -> str:
        """Return the last lines that the guest wrote to its console."""
        if lines := last_lines(console_end(booted.directory)):
            return f"the end of its console:\n{indent(lines, '  ')}"
        if (booted.directory / CONSOLE_LOG).exists():
            return _NOTHING
        return f"its console is not known: give QEMU -serial file:{CONSOLE_LOG}"


def _why(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """Why faster ways were not chosen, a text for each reason."""
    return [f"not {', '.join(modes)}: {reason}" for reason, modes in reasons.items()]


def _why_again(error: BaseException) -> str:
    """Why a machine has to boot again; of a lost machine without the command that we sent."""
    _, in_flight, why = first_line(error).partition(" in flight: ")
    is_lost = isinstance(error, LinkLost) and in_flight
    return f"it lost the machine: {why}" if is_lost else first_line(error)
