"""Migrations to and from files of VM state: settings, files, and how a migration ends."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import assert_never

import anyio

from qmpsnap.errors import CommandFailed, MigrationFailed, Unsupported
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.parse_machine import AddfdInfo, MigrationEvent, MigrationInfo
from qmpsnap.model.qapi import heard, read
from qmpsnap.model.step import Step
from qmpsnap.model.units import size
from qmpsnap.plan.commands.migration import Ending, Until
from qmpsnap.run.cleanup import Created
from qmpsnap.run.disk import in_thread
from qmpsnap.run.lock_holders import user_of
from qmpsnap.run.log import get_logger
from qmpsnap.run.machine import run_state
from qmpsnap.run.memory_files import is_closed, open_memory
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.progress import Meter, Progress
from qmpsnap.run.safe_open import open_character
from qmpsnap.run.session import Event, Session
from qmpsnap.run.standstill import Stops

_log = get_logger("qmpsnap.run")
_OVER = frozenset({"none", "completed", "failed", "cancelled"})
_FAILED = frozenset({"failed", "cancelled"})
_LOADING = frozenset({"inmigrate", FOR_A_LOAD, "finish-migrate"})  # run states of a load under way
_LOOK = 0.001  # seconds between two looks while the guest stands still: no event tells of the pages
_AGAIN = 0.25  # seconds between two looks else, should an event have been missed
_MOMENT = 30.0  # seconds for what QEMU does in a moment; where it hangs, we do not hang with it
_BEGINNING = 5.0  # seconds until a migration has begun to write pages, before it is cancelled
# Why QEMU (7.2, 10.0 and 11.1) cannot follow the writes to the guest's memory, and what to do about it. It
# needs userfaultfd, of which the kernel says no more than yes or no.
_UNFOLLOWED = {
    "not compatible with guest memory": (
        "it is mapped from a file, as that of a clone is",
        "use --mode in-place",
    ),
    "not supported by host kernel": (
        "its user may not use userfaultfd",
        "use --mode in-place, or give that user access to /dev/userfaultfd (QEMU 8.1 or later)",
    ),
}
_SETTLE = 0.5  # seconds that the thread of a migration needs to end after it has `completed`


def _stuck(what: str, state: str) -> MigrationFailed:
    return MigrationFailed(f"{what} ({state})", error=what, hint="check with qmpsnap status")


def _writes(now: MigrationInfo) -> bool:
    """Whether the devices' state is saved, and pages of memory follow, or all is written."""
    pages = now.ram.normal + now.ram.duplicate
    return now.status == "completed" or (now.status == "active" and pages > 0)


class Migrations:
    """The migrations of one QEMU; feed it every event.

    Args:
        session: The link.
        made: The file of that name that we created, which alone is written to.
    """

    def __init__(self, session: Session, made: Callable[[str], Created | None] = lambda _: None) -> None:
        self._session = session
        self._made = made
        self._ended = time.monotonic()  # of one that ended before our time nothing better is known
        self._changed = anyio.Event()
        self._settled = False  # whether the last one is known to be over, its thread too
        self._stops = Stops()

    def note(self, event: Event) -> None:
        """Follow MIGRATION, STOP and RESUME; ignore other events."""
        self._stops.note(event)
        if event.name == "MIGRATION":
            change = heard(MigrationEvent, event.data)
            if change is not None and change.status in _OVER:
                self._ended = time.monotonic()
            self._settled = False
            self._changed.set()
            self._changed = anyio.Event()

    async def status(self) -> MigrationInfo:
        """The last migration's progress. QAPI: query-migrate."""
        return read(MigrationInfo, await self._session.query("query-migrate"), "query-migrate")

    async def progress(self, interval: float) -> AsyncIterator[Progress]:
        """Tell how much of the memory has been transferred, every `interval` seconds, until all has.

        Raises:
            LinkLost: When the link is lost.
        """
        meter = Meter()
        while (now := await self.status()).status not in _OVER:
            yield meter.look(
                Job(
                    "memory",
                    "migrate",
                    JobStatus.RUNNING,
                    offset=now.ram.total - now.ram.remaining,
                    length=now.ram.total,
                )
            )
            await anyio.sleep(interval)

    async def set(self, step: Step) -> None:
        """Set capabilities or parameters, if any.

        Raises:
            Unsupported: When QEMU cannot follow the writes to the guest's memory, as it says at once.
        """
        if not any(step.arguments.values()):
            return
        try:
            await self._session.change(step.command, step.arguments)
        except CommandFailed as error:
            for text, (reason, hint) in _UNFOLLOWED.items():
                if text in error.desc:
                    raise Unsupported(
                        f"QEMU cannot save this guest's memory while it runs: {reason} ({error.desc})",
                        feature="background-snapshot",
                        hint=hint,
                    ) from error
            raise

    async def begin(self, step: Step) -> None:
        """Begin to write or to read VM state."""
        self._stops, self._settled = Stops(), False
        await self._session.change(step.command, step.arguments)

    async def pass_file(self, step: Step) -> None:
        """Give QEMU an open file.

        Raises:
            InvalidTarget: When the file cannot be opened.
        """
        file = step.detail["file"]
        try:
            descriptor = await in_thread(
                partial(
                    open_memory,
                    file,
                    write=step.detail["write"],
                    made=self._made(file),
                    inode=step.detail["inode"],
                    fifo=step.detail.get("fifo", False),
                )
            )
        except OSError as error:
            raise unusable(file, error, "open") from error
        try:
            await self._session.change(step.command, step.arguments, fd=descriptor)
        finally:
            os.close(descriptor)

    async def release_file(self, step: Step) -> None:
        """Let QEMU close the file; it may have done so already, as at the end of a migration."""
        try:
            await self._session.change(step.command, step.arguments)
        except CommandFailed as error:
            if "not found" not in error.desc and "does not exist" not in error.desc:
                raise

    async def cancel(self, step: Step) -> None:
        """Stop the migration, or wait for its end where it must not be stopped.

        A background snapshot that ends before QEMU follows the writes to the memory makes QEMU close its
        descriptor 0 (10.0 and 11.1). The next file that QEMU opens gets that number, and the next such
        snapshot closes it, be it a disk. So none is cancelled before its first page is written, and if one
        has failed before that, the number is taken at once.

        Raises:
            MigrationFailed: When it does not end, and writes no more.
        """
        ending: Ending = step.detail["ending"]
        if (now := await self.status()).status not in _OVER:
            match ending:
                case "cancel":
                    await self._session.change(step.command, step.arguments)
                case "cancel-later":
                    await self._begun()
                    await self._session.change(step.command, step.arguments)
                case "wait":
                    pass
                case _:
                    assert_never(ending)
            now = await self._until_over(cancelled=ending != "wait")
        if now.status in _FAILED and ending == "cancel-later":
            await self._take_stdin()
        await self._until_state(lambda now: now != "finish-migrate")  # `cont` is refused before

    async def _take_stdin(self) -> None:
        """Give QEMU a descriptor 0 if it has none; only add-fd says which number a descriptor gets."""
        try:
            descriptor = await in_thread(partial(open_character, os.devnull))
        except OSError as error:
            _log.warning("stdin.unknown", vm=self._session.address, reason=str(error))
            return
        try:
            answer = await self._session.change("add-fd", {"opaque": "qmpsnap"}, fd=descriptor)
            added = read(AddfdInfo, answer, "add-fd")
            # A set is closed when the last monitor goes; the number may be another file's by then.
            await self._session.change("remove-fd", {"fdset-id": added.fdset_id})
            if added.fd == 0:
                # A new name each time: with one that it knows, QEMU would close the number once more.
                name = f"qmpsnap-stdin-{secrets.token_hex(4)}"
                await self._session.change("getfd", {"fdname": name}, fd=descriptor)
                _log.warning("stdin.replaced", vm=self._session.address)
        except CommandFailed as error:
            _log.warning("stdin.unknown", vm=self._session.address, reason=error.desc)
        finally:
            os.close(descriptor)

    async def _until_over(self, *, cancelled: bool) -> MigrationInfo:
        """Wait until it has ended, as long as it goes on: what writes to the file may block without a limit.

        Also once it is `cancelled`: QEMU ends it when that write returns.
        """
        changed, seen, limit = self._changed, MigrationInfo(), 0.0
        while (now := await self.status()).status not in _OVER:
            if (now.status, now.ram) != (seen.status, seen.ram):
                seen, limit = now, time.monotonic() + _MOMENT
            if time.monotonic() > limit:
                verb = "stop" if cancelled else "end"
                raise MigrationFailed(
                    f"the migration of the guest's memory does not {verb}: QEMU has written nothing for "
                    f"{_MOMENT:g} s ({now.status}, {size(now.ram.remaining)} remaining)",
                    error="it does not end",
                    hint="see why the file system of its file takes no data (it is frozen, or its server "
                    "does not answer): QEMU goes on when it does; qmpsnap jobs then shows what finishes this",
                )
            changed = await self._next(changed, _AGAIN)
        self._ended = time.monotonic()
        return now

    async def wait(self, step: Step) -> None:
        """Wait for a migration.

        Raises:
            MigrationFailed: When it failed, or its result cannot be used.
        """
        until: Until = step.arguments["until"]
        match until:
            case "settled":
                changed = self._changed
                while (now := await self.status()).status not in _OVER:
                    changed = await self._next(changed, _AGAIN)
                if now.status != "none" and not self._settled:
                    # Started too early, the next one kills QEMU; of another client's nothing tells more.
                    await anyio.sleep(max(0.0, self._ended + _SETTLE - time.monotonic()))
            case "writing":
                await self._until_writing()
            case "saved":
                await self._completed()
                await self._until_state(lambda now: now == "postmigrate")  # `cont` is refused before
            case "kept":
                await self._completed()
                if self._stops.count > 0:
                    raise MigrationFailed(
                        "the guest was paused again before QEMU had saved its memory, by QEMU itself or by "
                        "another client: the memory may be newer than the disks, so it cannot be used",
                        error="the guest was paused twice",
                        hint="try again",
                    )
            case "loaded":
                await self._completed()
                # The run state is the one that was saved: also io-error, shutdown, guest-panicked.
                await self._until_state(lambda now: now not in _LOADING)
            case _:
                assert_never(until)

    async def _begun(self) -> None:
        """Wait until the first page of memory is written, or it is over; where QEMU hangs, not for long."""
        changed, limit = self._changed, time.monotonic() + _BEGINNING
        while (now := await self.status()).status not in _OVER and not _writes(now):
            if time.monotonic() > limit:
                return
            changed = await self._next(changed, _LOOK)

    async def _completed(self) -> None:
        changed = self._changed
        while (await self._look()).status != "completed":
            changed = await self._next(changed, _AGAIN)

    async def _until_writing(self) -> None:
        """Wait until the first page of memory is written; no event tells."""
        changed, limit = self._changed, time.monotonic() + _MOMENT
        while not _writes(now := await self._look()):
            if now.status == "setup" and time.monotonic() > limit:
                raise _stuck("QEMU does not start to write the memory", now.status)
            changed = await self._next(changed, _LOOK)

    async def _until_state(self, there: Callable[[str], bool]) -> None:
        """Wait until the run state is as wanted; it follows `completed` at once, without an event."""
        limit = time.monotonic() + _MOMENT
        while not there(now := await run_state(self._session)):
            if now == "running":
                raise _stuck("another client resumed the guest before the disks were snapshotted", now)
            if time.monotonic() > limit:
                raise _stuck("QEMU does not finish the migration", now)
            await self._next(self._changed, _LOOK)

    async def await_closed(self, step: Step) -> None:
        """Wait until QEMU has closed the file, which follows `completed` at once; no event tells."""
        file, limit = step.arguments["file"], time.monotonic() + _MOMENT
        try:
            while not await in_thread(partial(is_closed, file)):
                if time.monotonic() > limit:
                    holder = await in_thread(partial(user_of, file))
                    raise _stuck(f"{holder} has {file} open and locked", "closing")
                await self._next(self._changed, _LOOK)
        except OSError as error:
            raise unusable(file, error, "look at") from error
        self._settled = True

    async def _look(self) -> MigrationInfo:
        """The migration's progress; raise when it has failed."""
        now = await self.status()
        if now.status in _FAILED:
            self._ended = time.monotonic()
            text = now.error_desc or f"it was {now.status}, QEMU gives no reason"
            raise MigrationFailed(f"QEMU could not transfer the VM state: {text}", error=text)
        return now

    async def _next(self, changed: anyio.Event, seconds: float) -> anyio.Event:
        """Wait for an event after `changed`, at most so many seconds; return the next `changed`.

        `changed` is taken before QEMU is asked: an event may come together with its answer.
        """
        with anyio.move_on_after(seconds):
            await changed.wait()
        return self._changed
