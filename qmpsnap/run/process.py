"""QEMU as a child process: it ends, with everything that it started, when the block ends.

QEMU inherits one end of a socket pair as its monitor (`-chardev socket,fd=`), so no path is needed and no
second client can take the monitor. Its process group is led by a guard, a shell that reads from a pipe whose
other end only we hold: when our process ends, even by kill -9, the read ends and the guard kills the group.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio

from qmpsnap.errors import ConnectFailed, Unsupported
from qmpsnap.model.printable import masked_all
from qmpsnap.run.log import get_logger
from qmpsnap.run.safe_open import append_file

_log = get_logger("qmpsnap.process")

_GUARD: Final = "read -r _; kill -KILL 0"
_TAIL_BYTES: Final = 16 * 1024
_LAST_LINES: Final = 5  # of what QEMU printed, in an error's message
_MOMENT: Final = 0.4  # seconds; whoever waits for a lost link is told within one
_MONITOR_ID: Final = "qmpsnap"


class QemuProcess:
    """A QEMU that is our child.

    `pid` is that of QEMU itself (or of the wrapper that it was started by, if that does not exec),
    `socket` is our end of its monitor: connected, the greeting not yet read.
    """

    def __init__(self, popen: subprocess.Popen[bytes], sock: socket.socket, output: _Output) -> None:
        self.pid: Final = popen.pid
        self.socket: Final = sock
        self._popen = popen
        self._output = output

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def output_tail(self) -> str:
        """Last 16 KiB of what QEMU wrote to stdout and stderr."""
        self._output.read()
        return self._output.tail.decode(errors="replace").strip()

    async def wait(self) -> int:
        """Return the exit status as soon as the process has ended.

        A cancelled wait changes nothing; several tasks may wait.
        """
        while self._popen.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                await anyio.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return self._popen.wait()

    async def last_words(self) -> str:
        """How it ended, and the last lines that it printed; "" if it has not ended after a short wait.

        A socket closes shortly before its process has ended.
        """
        with anyio.move_on_after(_MOMENT):
            await self.wait()
        status = self.returncode
        if status is None:
            return ""
        how = f"with status {status}" if status >= 0 else f"by signal {-status} ({_signal(-status)})"
        text = "; ".join(self.output_tail.splitlines()[-_LAST_LINES:])
        return f"ended {how}: {text or 'it printed nothing'}"

    def terminate(self) -> None:
        """Ask QEMU to end, as SIGTERM does: it flushes its disks and quits."""
        if self.returncode is None:
            self._popen.terminate()


@asynccontextmanager
async def start_qemu(
    argv: Sequence[str],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    name: str = "qemu",
    greeting_limit: float = 60.0,
    quit_limit: float = 10.0,
) -> AsyncIterator[QemuProcess]:
    """Start QEMU with a monitor on an inherited socket, and end it with the block.

    When the block is left, QEMU has ended or gets SIGTERM and, after `quit_limit`, SIGKILL; its whole
    process group goes with it. No process, zombie or descriptor is left, also when the start fails or is
    cancelled. When our own process dies, the group is killed at once. What QEMU started in a session
    of its own (setsid) is out of reach.

    Args:
        argv: The binary and its arguments; the monitor's are added (the chardev id `qmpsnap` is ours).
        cwd: QEMU's working directory; ours if None.
        env: QEMU's whole environment; ours if None.
        log: File that stdout and stderr are appended to; the last 16 KiB are kept in any case.
        name: The machine's name in errors and logs.
        greeting_limit: Seconds until the monitor must send its greeting.
        quit_limit: Seconds that QEMU has to end after SIGTERM.
    Yields:
        The process, its monitor's greeting ready to be read.
    Raises:
        ConnectFailed: When the binary cannot be started, or ends or stays silent before the greeting; its
            last output is in the message.
        Unsupported: When `argv` has `-daemonize`: such a QEMU outlives any block.
    """
    if any(argument in {"-daemonize", "--daemonize"} for argument in argv):
        raise Unsupported(
            "a QEMU with -daemonize would outlive its block",
            feature="-daemonize",
            hint="leave -daemonize out, or start QEMU yourself and connect to its socket",
        )
    with ExitStack() as stack:
        output = stack.enter_context(closing(_Output(log)))
        guard = stack.enter_context(_guard())
        process = _spawn(argv, name, cwd=cwd, env=env, group=guard.pid, output=output)
        try:
            _log.debug("qemu.started", vm=name, pid=process.pid, argv=masked_all(argv))
            await _await_greeting(process, argv[0], name=name, limit=greeting_limit)
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process, group=guard.pid, limit=quit_limit)
            process.socket.close()
            _log.debug("qemu.ended", vm=name, pid=process.pid, status=process.returncode)


def _spawn(
    argv: Sequence[str],
    name: str,
    *,
    cwd: str | Path | None,
    env: Mapping[str, str] | None,
    group: int,
    output: _Output,
) -> QemuProcess:
    ours, theirs = socket.socketpair()
    monitor = (
        "-chardev",
        f"socket,id={_MONITOR_ID},fd={theirs.fileno()}",
        "-qmp",
        f"chardev:{_MONITOR_ID}",
    )
    try:
        popen = subprocess.Popen(
            [*argv, *monitor],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output.writer,
            stderr=output.writer,
            pass_fds=(theirs.fileno(),),
            process_group=group,
        )
    except OSError as error:
        ours.close()
        raise ConnectFailed(f"{name}: cannot start {argv[0]!r}: {error.strerror}") from error
    finally:
        theirs.close()
        output.close_writer()
    ours.settimeout(0)
    return QemuProcess(popen, ours, output)


async def _await_greeting(process: QemuProcess, binary: str, *, name: str, limit: float) -> None:
    """Return when the monitor has something to read, and leave it there."""
    with anyio.move_on_after(limit) as scope:
        await anyio.wait_readable(process.socket)
    if scope.cancelled_caught:
        raise ConnectFailed(
            f"{name}: {binary!r} runs (pid {process.pid}) but its monitor was silent for {limit:g} s",
            hint="does an argument make it wait for a client (wait=on) or a device?",
        )
    try:
        first = process.socket.recv(1, socket.MSG_PEEK)
    except OSError:
        first = b""
    if not first:
        words = await process.last_words() or "closed its monitor"
        raise ConnectFailed(f"{name} has not greeted: {binary!r} {words}")


async def _end(process: QemuProcess, *, group: int, limit: float) -> None:
    process.terminate()
    with anyio.move_on_after(limit) as scope:
        await process.wait()
    if scope.cancelled_caught:
        _log.warning("qemu.killed", pid=process.pid, waited=limit)
    # The guard leads the group and is not yet waited for: the number cannot be another group's.
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    await process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"


@contextmanager
def _guard() -> Iterator[subprocess.Popen[bytes]]:
    """Lead a process group that is killed when our process ends."""
    read_end, write_end = os.pipe()
    try:
        try:
            guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        finally:
            os.close(read_end)
        try:
            yield guard
        finally:
            guard.kill()
            guard.wait()
    finally:
        os.close(write_end)


class _Output:
    """Drains what QEMU prints, into the log and a bounded tail, so that QEMU never blocks on us."""

    def __init__(self, log: Path | None) -> None:
        self.tail = bytearray()
        self._log = None if log is None else os.fdopen(append_file(os.fspath(log)), "ab", buffering=0)
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self.read)

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def read(self) -> None:
        """Read what there is, at most 1 MiB; the rest comes with the next call."""
        for _ in range(16):
            try:
                chunk = os.read(self._reader, 64 * 1024) if self._reader >= 0 else b""
            except BlockingIOError:
                return
            if not chunk:
                self._close_reader()
                return
            if self._log is not None:
                self._log.write(chunk)
            self.tail += chunk
            del self.tail[:-_TAIL_BYTES]

    def close(self) -> None:
        self.close_writer()
        self.read()
        self._close_reader()
        if self._log is not None:
            self._log.close()

    def _close_reader(self) -> None:
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1
