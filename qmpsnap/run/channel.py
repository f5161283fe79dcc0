"""Byte streams to the console and the ports of a QEMU that is our child, each over a socket pair.

QEMU inherits the other end. So no socket needs a path, which could exist already or be too long.
"""

# Descriptors need os, and paths stay as the caller spells them:
# ruff: noqa: PTH101, PTH108, PTH116

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

from qmpsnap.errors import GuestFailed, InvalidTarget, TargetExists
from qmpsnap.model.console_text import HALTED, last_lines
from qmpsnap.run.log import get_logger
from qmpsnap.run.safe_open import append_file

_log = get_logger("qmpsnap.process")
_ADDRESS_BYTES: Final = 107
_CHUNK: Final = 64 * 1024
_UNREAD_BYTES: Final = 256 * 1024
_TAIL_BYTES: Final = 64 * 1024


class Pair:
    """A socket pair of which QEMU inherits one end.

    Attributes:
        ours: Our end; it does not block.
        theirs: QEMU's end, to be closed here once QEMU has it.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.ours, self.theirs = map(stack.enter_context, map(closing, socket.socketpair()))
        self.ours.setblocking(False)  # noqa: FBT003 - the standard library's own

    @property
    def chardev(self) -> str:
        """Return QEMU's end, as `-chardev` takes it, without an id."""
        return f"socket,fd={self.theirs.fileno()}"


@contextmanager
def pairs(names: Sequence[str]) -> Iterator[dict[str, Pair]]:
    """Create a socket pair for each name; all are closed with the block."""
    with ExitStack() as stack:
        yield {name: Pair(stack) for name in names}


def open_log(file: str) -> int:
    """Open a log for appending; it is created when it does not exist.

    Raises:
        InvalidTarget: When it cannot be opened.
    """
    try:
        return append_file(file)
    except OSError as error:
        raise InvalidTarget(f"cannot open the log {file!r}: {error.strerror}", file=file) from error


def fits_address(path: str) -> bool:
    """Return whether the path is short enough for a unix socket."""
    return len(os.fsencode(path)) <= _ADDRESS_BYTES


@contextmanager
def listener(path: str) -> Iterator[socket.socket | None]:
    """Create a unix socket that listens at a path, for this user only; "": none. It ends with the block.

    Raises:
        TargetExists: When there is anything of that name.
        InvalidTarget: When it cannot be created there.
    """
    if not path:
        yield None
        return
    if not fits_address(path):
        raise InvalidTarget(f"{path!r} is longer than {_ADDRESS_BYTES} bytes, a socket's limit", file=path)
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise TargetExists(
                    f"{path!r} exists",
                    file=path,
                    hint="choose another path, or remove it if nobody listens there any more",
                ) from error
            raise InvalidTarget(f"cannot create the socket {path!r}: {error.strerror}", file=path) from error
        inode = os.stat(path).st_ino
        try:
            os.chmod(path, 0o600)  # before anybody can connect
            sock.listen()
            yield sock
        finally:
            with suppress(OSError):  # QEMU has removed it if it ended well
                if os.lstat(path).st_ino == inode:
                    os.unlink(path)


class _Sending(ByteStream):
    """The part of a stream that is the same for ports and the console: what goes to the guest."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def send(self, item: bytes) -> None:
        """Send bytes to the guest; return when the socket has all of them.

        Raises:
            BrokenResourceError: When QEMU has ended.
        """
        rest = memoryview(item)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError as error:
                raise anyio.BrokenResourceError from error
        await anyio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Tell QEMU that nothing more is sent."""
        self._socket.shutdown(socket.SHUT_WR)


class Port(_Sending):
    """A port of the guest, as a stream of bytes.

    What the guest writes waits in the socket until it is received; the guest's writes block when it is full.
    """

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        """Return what the guest has written, at least one byte.

        Raises:
            EndOfStream: When QEMU has ended.
        """
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except OSError as error:
                raise anyio.EndOfStream from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def aclose(self) -> None:
        """Close it; it cannot be opened again."""
        self._socket.close()


class Console(_Sending):
    """The guest's serial console. It is always read, so that the guest never waits for us.

    Output is kept until `receive` or `wait_for` takes it, but at most the last 256 KiB.

    Attributes:
        log: File to which all output is appended; "": none.
    """

    def __init__(self, sock: socket.socket, log: str = "") -> None:
        super().__init__(sock)
        self.log: Final = log
        self._file = open_log(log) if log else -1
        self._count = 0  # bytes that were received
        self._tail = bytearray()
        self._unread = bytearray()
        self._news = anyio.Event()
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    @property
    def tail(self) -> str:
        """The last 64 KiB that the guest wrote, whether received or not."""
        return self._tail.decode(errors="replace").replace("\r\n", "\n")

    async def wait_for(self, text: str, *, limit: float) -> str:
        """Wait until the guest has written a text; receive and return all output up to its end.

        Args:
            text: As the guest writes it: lines end in CR and LF as a rule.
            limit: Seconds.

        Raises:
            GuestFailed: When it does not come within the limit, QEMU ends, or Linux panics meanwhile and does
                not reboot; the message has the last lines.
        """
        pattern, searched, begun = text.encode(), 0, self._count
        with anyio.move_on_after(limit):
            while True:
                if (at := self._unread.find(pattern, searched)) >= 0:
                    return self._take(at + len(pattern)).decode(errors="replace")
                if self._ended:
                    raise self._error(f"the console ended before {text!r}")
                if HALTED.encode() in self._tail[-(self._count - begun) - len(HALTED) :]:
                    raise self._error(f"the guest has panicked before {text!r}")
                before = len(self._unread)
                await self._news.wait()
                grown = len(self._unread) > before and before < _UNREAD_BYTES
                searched = max(before - len(pattern), 0) if grown else 0
        raise self._error(f"no {text!r} on the console within {limit:g} s")

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        """Return what the guest has written since, at least one byte.

        Raises:
            EndOfStream: When QEMU has ended, and all was received.
        """
        while not self._unread:
            if self._ended:
                raise anyio.EndOfStream
            await self._news.wait()
        return self._take(max_bytes)

    async def aclose(self) -> None:
        """Read the remaining output, and close the console; called when QEMU has ended."""
        self.close()

    def close(self) -> None:
        """The same, without waiting."""
        self._read()
        self._end()
        self._socket.close()
        self._close_log()

    def _error(self, message: str) -> GuestFailed:
        lines = last_lines(self.tail)
        return GuestFailed(f"{message}; its last lines: {lines or 'none'}", script="", output=lines)

    def _take(self, size: int) -> bytes:
        chunk = bytes(self._unread[:size])
        del self._unread[:size]
        return chunk

    def _read(self) -> None:
        """Read the output that is ready, at most 1 MiB; the next call reads the rest."""
        for _ in range(16):
            if self._ended:
                return
            try:
                chunk = self._socket.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self._end()
            self._keep(chunk)
        self._tell()

    def _keep(self, chunk: bytes) -> None:
        self._count += len(chunk)
        for buffer, size in ((self._tail, _TAIL_BYTES), (self._unread, _UNREAD_BYTES)):
            buffer.extend(chunk)
            del buffer[:-size]
        if self._file >= 0:
            try:
                os.write(self._file, chunk)
            except OSError as error:
                _log.warning("console.log_failed", file=self.log, error=error.strerror)
                self._close_log()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._loop.remove_reader(self._socket)
        self._tell()

    def _close_log(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
