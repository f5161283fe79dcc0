"""Keeps the clients of one machine from changing it at the same instant.

QEMU carries out the commands of two clients as they come: one may write to a layer on which the other is just
putting an overlay, before either sees what the other does. So a client holds a lock on QEMU's directory in
/proc from when it plans until it is done, except while a job copies, which the others see. The lock ends with
the process that holds it. A QEMU on another host, or whose process is not known, has none.

Blocks only on /proc.
"""

# Descriptors need os:
# ruff: noqa: PTH116

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import anyio

from qmpsnap.errors import Busy, LinkLost, QmpsnapError
from qmpsnap.model.host_process import HostProcess
from qmpsnap.run.current_operation import callback, waits_for_itself
from qmpsnap.run.log import get_logger
from qmpsnap.run.proc import host_process
from qmpsnap.run.safe_open import kernel_text, open_directory

T = TypeVar("T")
_log = get_logger("qmpsnap.run")
_LIMIT = 10.0  # seconds; what takes longer, a checkpoint of a large memory, is not waited for
_AGAIN = 0.01  # seconds; the kernel tells nobody when a lock is free


class MachineLock:
    """The lock of one machine, shared by all operations of one client.

    Args:
        pid: Gives QEMU's process; None: it is not known, and nothing is locked.
    """

    def __init__(self, pid: Callable[[], int | None]) -> None:
        self._pid = pid
        self._holds = 0
        self._descriptor: int | None = None

    async def take(self, outer: Hold | None = None) -> None:
        """Take the lock for one operation more; `give` is to be called as often.

        Args:
            outer: Part of the operation from whose call-back this one was called.

        Raises:
            Busy: When another client does not give it within 10 s, or only after this operation.
        """
        ends = time.monotonic() + _LIMIT
        while not self._holds and (pid := self._pid()) is not None and not self._locked(pid):
            called = callback() if outer is not None and outer.keeps(pid) else None
            late = time.monotonic() > ends
            if called is not None and (called.is_here or (late and called.runs)):
                raise waits_for_itself()
            if late:
                holder = _holder(pid) or "a process that we may not see"
                raise Busy(
                    f"another client is changing the machine: {holder}",
                    node="",
                    job_id="",
                    hint="wait until it is done",
                )
            await anyio.sleep(_AGAIN)
        self._holds += 1

    @property
    def pid(self) -> int | None:
        """QEMU's process."""
        return self._pid()

    def give(self) -> None:
        """Give the lock once the last operation has given it."""
        self._holds -= 1
        if not self._holds and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _locked(self, pid: int) -> bool:
        """Take the lock if it is free; also True where there are no such locks."""
        try:
            descriptor = open_directory(f"/proc/{pid}")
        except OSError:  # QEMU has ended
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            return True
        self._descriptor = descriptor
        return True


class Hold:
    """One operation's part of the lock.

    Args:
        lock: The machine's.

    Attributes:
        outer: That of the operation from whose call-back this one was called, or None.
    """

    def __init__(self, lock: MachineLock) -> None:
        self.outer = _HOLD.get()
        self._lock = lock
        self._taken = False

    @contextmanager
    def current(self) -> Iterator[None]:
        """Let the operations that are called from a call-back of this one know it."""
        token = _HOLD.set(self)
        try:
            yield
        finally:
            _HOLD.reset(token)

    def within(self, other: Hold) -> bool:
        """Whether this operation was called from a call-back of the other one, directly or not."""
        return self.outer is not None and (self.outer is other or self.outer.within(other))

    def keeps(self, pid: int) -> bool:
        """Whether it has the lock of that QEMU, or an operation has it that waits for this one."""
        mine = self._taken and self._lock.pid == pid
        return mine or (self.outer is not None and self.outer.keeps(pid))

    async def take(self) -> None:
        """Take the lock, unless this operation has it.

        Raises:
            Busy: When another client does not give it in time.
        """
        if not self._taken:
            await self._lock.take(self.outer)
            self._taken = True

    def give(self) -> None:
        """Give it, if this operation has it."""
        if self._taken:
            self._taken = False
            self._lock.give()

    async def given_for(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Give it while something is waited for; then it is taken again, unless the link was lost.

        The rest of the operation has to be done even if another client does not give it.
        """
        self.give()
        try:
            result = await wait()
        except LinkLost:
            raise
        except QmpsnapError:
            await self._take_again()
            raise
        await self._take_again()
        return result

    async def _take_again(self) -> None:
        try:
            await self.take()
        except Busy as busy:
            _log.warning("machine.not_locked", reason=busy.message)


_HOLD: ContextVar[Hold | None] = ContextVar("qmpsnap_hold", default=None)


def _holder(pid: int) -> HostProcess | None:
    """Who holds the lock, as far as the kernel tells."""
    try:
        inode = os.stat(f"/proc/{pid}").st_ino
        lines = kernel_text("/proc/locks").splitlines()
    except OSError:
        return None
    for line in lines:
        # man 5 proc: number, FLOCK, ADVISORY, WRITE, pid, MAJOR:MINOR:INODE, start, end
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}") and int(fields[4]) > 0:
            return host_process(int(fields[4]))
    return None
