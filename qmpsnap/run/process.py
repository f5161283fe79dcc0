"""QEMU, or a tool of it, as a child process: it ends, with all that it started, when the block ends.

QEMU inherits one end of a socket pair as its monitor (`-chardev socket,fd=`), so no path is needed and no
second client can take the monitor. Its process group is led by a guard, a shell that reads from a pipe whose
other end only we hold: when our process ends, even by kill -9, the read ends and the guard kills the group.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Final

import anyio

from qmpsnap.errors import ConnectFailed, Unsupported
from qmpsnap.model.hints import start_hint
from qmpsnap.model.secrets import masked_all
from qmpsnap.run.child_output import Output
from qmpsnap.run.file_limit import PROGRAM, require_room
from qmpsnap.run.guard import guarded
from qmpsnap.run.log import get_logger

_log = get_logger("qmpsnap.process")

_LAST_LINES: Final = 5  # of what QEMU printed, in an error's message
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
_CREDENTIALS_BYTES: Final = socket.CMSG_SPACE(_CREDENTIALS.size)
_MOMENT: Final = 0.4  # seconds; whoever waits for a lost link is told within one
QEMU_MONITOR: Final = ("-chardev", "socket,id=qmpsnap,fd={fd}", "-qmp", "chardev:qmpsnap")
"""Arguments that give QEMU a monitor on a descriptor."""

DAEMON_MONITOR: Final = ("--chardev", "socket,id=qmpsnap,fd={fd}", "--monitor", "chardev=qmpsnap")
"""The same for a qemu-storage-daemon."""


class Process:
    """A program that is our child.

    `pid` is that of the program, which may be a wrapper that has started another one.
    """

    def __init__(self, popen: subprocess.Popen[bytes], output: Output) -> None:
        self.pid: Final = popen.pid
        self._popen = popen
        self._output = output

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def output_tail(self) -> str:
        """Last 16 KiB of what it wrote to stdout and stderr."""
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
        """Ask it to end, as SIGTERM does: QEMU flushes its disks and quits."""
        if self.returncode is None:
            self._popen.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self.returncode is None:
            self._popen.kill()


class QemuProcess(Process):
    """A QEMU that is our child.

    `socket` is our end of its monitor: connected, the greeting not yet read. `qemu_pid` is the process that
    has greeted: QEMU itself, also when the program that we have started is a wrapper without exec.
    """

    def __init__(self, process: Process, sock: socket.socket) -> None:
        super().__init__(process._popen, process._output)  # noqa: SLF001 - the same process
        self.socket: Final = sock
        self.qemu_pid = process.pid
        self._qemu: int | None = None  # a pidfd, if QEMU is not the program that we have started

    def know(self, qemu_pid: int) -> None:
        """Note which process has greeted."""
        if qemu_pid not in {0, self.pid}:  # 0: it is in another namespace of processes
            self.qemu_pid, self._qemu = qemu_pid, os.pidfd_open(qemu_pid)

    def terminate(self) -> None:
        """Ask QEMU to end, as SIGTERM does: it flushes its disks and quits; then a wrapper ends, too."""
        if self._qemu is None:
            super().terminate()
        else:
            try:
                signal.pidfd_send_signal(self._qemu, signal.SIGTERM)
            except ProcessLookupError:
                super().terminate()

    async def end_wrapped(self, limit: float) -> None:
        """End QEMU before its wrapper, which would leave it behind; nothing if there is no wrapper."""
        if self._qemu is None:
            return
        try:
            self.terminate()
            with anyio.move_on_after(limit, shield=True):
                await anyio.wait_readable(self._qemu)
                await self.wait()
        finally:
            os.close(self._qemu)
            self._qemu = None


@asynccontextmanager
async def start_program(
    argv: Sequence[str],
    *,
    name: str,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
    quit_limit: float = 10.0,
    remove: Sequence[str] = (),
) -> AsyncIterator[Process]:
    """Start a program, and end it with the block.

    When the block is left, it has ended or gets SIGTERM and, after `quit_limit`, SIGKILL; its whole
    process group goes with it. No process, zombie or descriptor is left, also when the start fails or is
    cancelled. When our own process dies, the group is killed at once. What it started in a session
    of its own (setsid) is out of reach.

    Args:
        argv: The binary and its arguments.
        name: What it is called in errors and logs.
        cwd: Its working directory; ours if None.
        env: Its whole environment; ours if None.
        log: File that stdout and stderr are appended to; the last 16 KiB are kept in any case.
        pass_fds: Descriptors that it inherits, under the same numbers.
        quit_limit: Seconds that it has to end after SIGTERM.
        remove: Absolute paths of ours, removed with all in them if our own process dies; the program gets
            SIGTERM then, and SIGKILL a second later. Else they are the caller's to remove.
    Yields:
        The process, just started.
    Raises:
        ConnectFailed: When the binary cannot be started.
        InvalidTarget: When the log cannot be opened, or this process can hardly open any more files.
    """
    require_room(PROGRAM)
    with ExitStack() as stack:
        output = stack.enter_context(closing(Output(log)))
        guard = stack.enter_context(guarded(remove))
        process = _spawn(argv, name, cwd=cwd, env=env, pass_fds=pass_fds, group=guard.pid, output=output)
        try:
            _log.debug("process.started", vm=name, pid=process.pid, argv=masked_all(argv))
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process, group=guard.pid, limit=quit_limit)
            _log.debug("process.ended", vm=name, pid=process.pid, status=process.returncode)


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
    monitor: Sequence[str] = QEMU_MONITOR,
    inherited: Sequence[socket.socket] = (),
) -> AsyncIterator[QemuProcess]:
    """Start QEMU with a monitor on an inherited socket, and end it with the block, as `start_program`.

    Args:
        argv: The binary and its arguments; the monitor's are added (the chardev id `qmpsnap` is ours).
        cwd: QEMU's working directory; ours if None.
        env: QEMU's whole environment; ours if None.
        log: File that stdout and stderr are appended to; the last 16 KiB are kept in any case.
        name: The machine's name in errors and logs.
        greeting_limit: Seconds until the monitor must send its greeting.
        quit_limit: Seconds that QEMU has to end after SIGTERM.
        monitor: Arguments that give it the monitor: `QEMU_MONITOR`, or `DAEMON_MONITOR` for a
            qemu-storage-daemon.
        inherited: Sockets whose numbers stand in `argv`; they are closed here once QEMU has them.
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
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.settimeout(0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # the greeting tells who has sent it
        number = theirs.fileno()
        words = [*argv, *(word.format(fd=number) for word in monitor)]
        numbers = (number, *(sock.fileno() for sock in inherited))
        async with start_program(
            words, name=name, cwd=cwd, env=env, log=log, pass_fds=numbers, quit_limit=quit_limit
        ) as started:
            for sock in (theirs, *inherited):
                sock.close()
            process = QemuProcess(started, ours)
            await _await_greeting(process, argv[0], name=name, limit=greeting_limit)
            try:
                yield process
            finally:
                await process.end_wrapped(quit_limit)


def _spawn(
    argv: Sequence[str],
    name: str,
    *,
    cwd: str | Path | None,
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
    group: int,
    output: Output,
) -> Process:
    try:
        popen = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output.writer,
            stderr=output.writer,
            pass_fds=pass_fds,
            process_group=group,
        )
    except OSError as error:
        hint = ""
        if isinstance(error, FileNotFoundError):  # of the program, or of its working directory
            hint = "install it, or give its path" if error.filename == argv[0] else "give another cwd"
        raise ConnectFailed(f"{name}: cannot start {argv[0]!r}: {error.strerror}", hint=hint) from error
    finally:
        output.close_writer()
    return Process(popen, output)


async def _await_greeting(process: QemuProcess, binary: str, *, name: str, limit: float) -> None:
    """Return when the monitor has something to read, and leave it there; note who has sent it."""
    with anyio.move_on_after(limit) as scope:
        await anyio.wait_readable(process.socket)
    if scope.cancelled_caught:
        raise ConnectFailed(
            f"{name}: {binary!r} runs (pid {process.pid}) but its monitor was silent for {limit:g} s",
            hint="does an argument make it wait for a client (wait=on) or a device?",
        )
    try:
        first, ancillary, _, _ = process.socket.recvmsg(1, _CREDENTIALS_BYTES, socket.MSG_PEEK)
    except OSError:
        first, ancillary = b"", []
    process.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    for _, kind, data in ancillary:
        if kind == socket.SCM_CREDENTIALS:
            process.know(_CREDENTIALS.unpack(data)[0])
    if not first:
        words = await process.last_words() or "closed its monitor"
        raise ConnectFailed(f"{name} has not greeted: {binary!r} {words}", hint=start_hint(words))


async def _end(process: Process, *, group: int, limit: float) -> None:
    process.terminate()
    with anyio.move_on_after(limit) as scope:
        await process.wait()
    if scope.cancelled_caught:
        _log.warning("process.killed", pid=process.pid, waited=limit)
    # The guard leads the group and is not yet waited for: the number cannot be another group's.
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    await process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"
