"""A shell on the serial console of any Linux guest that has a login prompt or a root shell there.

A console echoes what is typed, mixes the output with prompts and kernel messages, and cuts lines at 4095
bytes. So a small loop is started in the login shell, without echo and without a prompt: it reads scripts as
base64, writes their output to a file, and sends that in parts, each with a checksum. If a kernel message
damages a part, the part is requested again. Data is compressed if the guest has gzip: a serial port needs an
interrupt for every few bytes.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import os
import re
import secrets
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
from anyio.abc import ByteStream

from qmpsnap.errors import GuestFailed
from qmpsnap.model.console_text import without_codes
from qmpsnap.testing.shell import MIB, Ran, Shell, check_script, shorten, whole_seconds
from qmpsnap.testing.shell_scripts import KILL_ALL
from qmpsnap.testing.witness import Witness
from qmpsnap.vm import VM

__all__ = ["ConsoleShell", "open_console"]

_TAIL_BYTES: Final = 64 * 1024
_PART_BYTES: Final = 48 * 1024
_TRIES: Final = 4
_GRACE_S: Final = 15.0
_QUIET_S: Final = 0.6
_TYPED: Final = 500  # some shells take 1023 characters in a line that is typed
_READY: Final = "qmpsnap: ready"
_WIDTH: Final = 1000  # of lines of base64; a console takes 4095
_SLOWEST: Final = 2 * 1024  # bytes/s
_PACKED: Final = "gzip"
_LOGIN: Final = re.compile(r"login: ?$")
_PASSWORD: Final = re.compile(r"[Pp]assword: ?$")
_PROMPT: Final = re.compile(r"[#$%>] ?$")

# An empty line ends a line that an earlier client has typed in part, and is answered.
_LOOP: Final = (
    r"""KILL_ALL
file= input= last= pack=cat
[ "$(echo packed | gzip -c 2> /dev/null | gzip -dc 2> /dev/null)" != packed ] || pack=PACKED
part() {
    echo "$1 part $pack $(dd if="$file" bs=PART skip=$2 count=1 2> /dev/null | sha256sum)"
    dd if="$file" bs=PART skip=$2 count=1 2> /dev/null | $pack | base64
    echo "$1 over"
}
text() { while IFS= read -r line && [ -n "$line" ]; do echo "$line"; done; }
new() { mktemp 2> /dev/null || mktemp -p /run 2> /dev/null || mktemp -p /dev/shm; }
while read -r word id limit most length from; do
    case $word in
        '') echo; echo "READY $pack" ;;
        again) echo; echo "$last" ;;
        part) part "$id" "$limit" ;;
        bye) break ;;
        stdin)
            [ -e "$input" ] || input=$(new)
            [ "$limit" = more ] || : > "$input"
            text | base64 -d | if [ $pack = PACKED ]; then gzip -dc; else cat; fi >> "$input"
            last="$id stdin $(wc -c < "$input")"
            echo; echo "$last"
            ;;
        run)
            text=$(text)
            [ "${#text}" = "$length" ] || { echo "$id broken"; continue; }
            rm -f "$file"
            file=$(new) || { echo "$id nowhere"; continue; }
            script=$(echo "$text" | base64 -d)
            [ "$from" = stdin ] && from=$input || from=/dev/null
            QMPSNAP_RUN=$id timeout -s KILL "$limit" sh -c "$script" > "$file" 2>&1 < "$from"
            status=$?
            [ $status != 137 ] || kill_all "$id"
            last="$id ended $status $(head -c "$most" "$file" | wc -c)"
            echo; echo "$last"
            part "$id" 0 ;;
    esac
done
rm -f "$file" "$input"
""".replace("KILL_ALL", KILL_ALL)
    .replace("PART", str(_PART_BYTES))
    .replace("READY", _READY)
    .replace("PACKED", _PACKED)
)


class ConsoleShell(Shell):
    """A shell on a console; created by `open_console`."""

    _piece_bytes = _PART_BYTES

    def __init__(self, stream: ByteStream, vm: VM | None) -> None:
        self._screen = _Screen(stream)
        self._witness = Witness(vm, lambda: self._screen.text)
        self._lock = anyio.Lock()
        self._refused = 0
        self._prompt = ""
        self._packs = False

    async def execute(self, script: str, *, limit: float = 30.0, most: int = MIB, stdin: bytes = b"") -> Ran:
        """Run a shell script as `Shell.execute` says, as the user who is logged in."""
        check_script(script, stdin)
        async with self._lock:
            with self._witness.watch(script):
                try:
                    if stdin:
                        await self._put(stdin)
                    return await self._execute(
                        script, limit=whole_seconds(limit), most=most, source="stdin" if stdin else ""
                    )
                except TimeoutError as error:
                    message = f"the console did not answer {shorten(script)!r} within {limit + _GRACE_S:g} s"
                    raise await self._witness.explain(message, script) from error
                except _Ended as error:
                    raise await self._witness.explain(str(error), script) from error
        raise AssertionError  # the watch raises when it ends the wait

    async def log_in(self, *, user: str, password: str, limit: float) -> None:
        """Wait for a prompt, log in, and start the loop."""
        with self._witness.watch(doing="the login", boots=True):
            try:
                with anyio.fail_after(limit):
                    await self._log_in(user, password)
            except TimeoutError as error:
                message = f"there was no shell on the console within {limit:g} s"
                if self._refused:
                    message += f"; refused logins of {user!r}: {self._refused}"
                raise await self._witness.explain(message, "") from error
            except _Ended as error:
                raise await self._witness.explain(str(error), "") from error

    async def leave(self) -> None:
        """End the loop: the console has its login shell again."""
        with anyio.move_on_after(1, shield=True), suppress(_Ended):
            await self._screen.type("bye\n")

    async def _log_in(self, user: str, password: str) -> None:
        user_sent = False
        self._refused = 0
        await self._screen.type("\n")
        while True:
            text = without_codes(await self._screen.until_quiet(_QUIET_S))
            lines = text.splitlines() or [""]
            if ready := {f"{_READY} cat", f"{_READY} {_PACKED}"}.intersection(lines[-3:]):
                self._packs = f"{_READY} {_PACKED}" in ready
                return
            self._refused += user_sent and "incorrect" in text
            if _LOGIN.search(lines[-1]):
                user_sent = True
                await self._screen.type(f"{user}\n")
            elif _PASSWORD.search(lines[-1]):
                await self._screen.type(f"{password if user_sent else ''}\n")
            elif _PROMPT.search(lines[-1]):
                self._prompt = lines[-1]
                await self._start()
            else:
                await anyio.sleep(_QUIET_S)
                await self._screen.type("\n")

    async def _start(self) -> None:
        loop = base64.b64encode(_LOOP.encode()).decode()
        lines = [f" loop=${{loop}}{loop[at : at + _TYPED]}" for at in range(0, len(loop), _TYPED)]
        start = 'sh -c "$(echo $loop | base64 -d)"'
        quiet, loud = "stty -echo -opost 2> /dev/null", "stty echo opost 2> /dev/null"
        for line in (" loop=", *lines, f" {quiet}; {start}; {loud}"):
            await self._screen.type(f"{line}\n")
            # Some shells lose what is typed before their next prompt.
            await self._screen.until_quiet(_QUIET_S / 2)
        await self._screen.type("\n")

    async def _put(self, data: bytes) -> None:
        """Send what a script reads, in parts: a guest that does not read as fast loses what it gets."""
        silent, have = False, 0
        for _ in range(_TRIES):
            for at in range(0, len(data), _PART_BYTES):
                part = data[at : at + _PART_BYTES]
                text = _lines(gzip.compress(part, mtime=0) if self._packs else part)
                token = secrets.token_hex(4)
                await self._screen.type(f"stdin {token} {'more' if at else 'new'}\n{text}\n")
                try:
                    answer = await self._answer_to(token, limit=len(text) / _SLOWEST)
                except TimeoutError:
                    if silent:
                        raise
                    silent = True  # the end of the text may have been lost
                    await self._screen.type("\n\n")
                    break
                have = int(answer[1]) if answer[:1] == ["stdin"] and answer[1:] else have
                if have != at + len(part):
                    break
            else:
                return
        message = f"the guest has received {have} of {len(data)} bytes: is its /tmp full?"
        raise GuestFailed(message, script="")

    async def _execute(self, script: str, *, limit: int, most: int, source: str) -> Ran:
        token = secrets.token_hex(4)
        text = _lines(script.encode())
        length = len(text.removesuffix("\n"))
        await self._screen.type(f"run {token} {limit} {most + 1} {length} {source}\n{text}\n")
        answer = await self._answer_to(token, limit=limit)
        if answer[0] != "ended":
            raise GuestFailed(f"the guest's shell cannot take the script: {answer[0]}", script=script)
        status, size = int(answer[1]), int(answer[2])
        output = b"".join([await self._part(token, number) for number in range(-(-size // _PART_BYTES))])
        return Ran(status, output[:most], cut=size > most)

    async def _answer_to(self, token: str, *, limit: float) -> list[str]:
        """Return the words that follow a token; request them again if they do not come."""
        with anyio.move_on_after(limit + _GRACE_S / 3):
            return await self._answer(token)
        # A kernel message may have cut the line in two.
        await self._screen.type("again\n")
        with anyio.fail_after(_GRACE_S * 2 / 3):
            return await self._answer(token)

    async def _answer(self, token: str) -> list[str]:
        """Return the words of the line that begins with a token."""
        while not (line := await self._screen.line(self._is_prompt)).startswith(f"{token} "):
            pass
        return line.split()[1:]

    def _is_prompt(self, line: str) -> bool:
        """Whether the line has no end because the login shell, or a login, waits for input."""
        text = without_codes(line)
        return bool(_LOGIN.search(text)) or (text != "" and text == self._prompt)

    async def _part(self, token: str, number: int) -> bytes:
        for attempt in range(_TRIES):
            if number or attempt:  # the loop sends the first part unasked
                await self._screen.type(f"part {token} {number}\n")
            with anyio.move_on_after(2 * _GRACE_S):
                if (data := await self._read_part(token)) is not None:
                    return data
        raise GuestFailed(f"part {number} of the output was damaged {_TRIES} times", script="")

    async def _read_part(self, token: str) -> bytes | None:
        """Read a part; return None if it is damaged."""
        while (words := await self._answer(token))[:1] != ["part"]:
            pass
        encoded: list[str] = []
        while (line := await self._screen.line()) != f"{token} over":
            encoded.append(line)
        try:
            data = base64.b64decode("".join(encoded), validate=True)
            if words[1:2] == [_PACKED]:
                data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, _PART_BYTES)
        except (binascii.Error, zlib.error):
            return None
        return data if words[2:3] == [hashlib.sha256(data).hexdigest()] else None


def _lines(data: bytes) -> str:
    """Return bytes as lines of base64."""
    text = base64.b64encode(data).decode()
    return "".join(f"{text[at : at + _WIDTH]}\n" for at in range(0, len(text), _WIDTH))


class _Ended(Exception):
    """The console will print nothing more."""


class _Screen:
    """What a console prints, line by line; its end is kept for messages."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._cut = False
        self._tail = bytearray()
        self._new = bytearray()

    @property
    def text(self) -> str:
        """The last 64 KiB."""
        return self._tail.decode(errors="replace")

    async def type(self, text: str) -> None:
        """Type a text; if an earlier one was cut short, its line, and what the loop reads, end first."""
        text, self._cut = f"\n\n{text}" if self._cut else text, True
        try:
            await self._stream.send(text.encode())
            self._cut = False
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise _Ended("the console was closed, as by the end of QEMU") from error

    async def line(self, is_prompt: Callable[[str], bool] = lambda _: False) -> str:
        """The next line, without its end.

        Args:
            is_prompt: Whether a line that gets no end says that the shell has ended.
        """
        while (end := self._new.find(b"\n")) < 0:
            with anyio.move_on_after(_QUIET_S) as silence:
                await self._receive()
            if silence.cancelled_caught and is_prompt(self._new.decode(errors="replace")):
                raise _Ended("the shell on the console has ended")
        line = self._new[:end].decode(errors="replace")
        del self._new[: end + 1]
        return line.strip("\r")

    async def until_quiet(self, seconds: float) -> str:
        """Return what is printed until the console is quiet for some seconds; wait for some output."""
        while True:
            with anyio.move_on_after(seconds) as silence:
                await self._receive()
            if silence.cancelled_caught:
                text = self._new.decode(errors="replace")
                self._new.clear()
                return text

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise _Ended("the console was closed, as by the end of QEMU") from error
        self._new += data
        self._tail += data
        del self._new[: -2 * _TAIL_BYTES], self._tail[:-_TAIL_BYTES]


@asynccontextmanager
async def open_console(
    console: ByteStream | str | os.PathLike[str],
    *,
    user: str = "root",
    password: str = "",
    limit: float = 180.0,
    vm: VM | None = None,
) -> AsyncIterator[ConsoleShell]:
    """Log in on a guest's serial console, and run commands there.

    At the end of the block the login shell is back on the console; a stream is not closed. So the next call
    finds a prompt at once.

    Args:
        console: A stream, such as `LaunchedVM.console`, or the path of its unix socket.
        user: Name of the user, if the guest asks for a login.
        password: That user's password, if the guest asks for it.
        limit: Seconds until there must be a shell, including the time in which the guest boots. A login that
            fails is tried again until then: a cloud image prints its prompt before cloud-init has set the
            password.
        vm: The machine, if it is known; errors then come sooner, and say more.

    Raises:
        GuestFailed: When there is no shell, or the login fails; the message has the console's last lines.
        OSError: When there is no such socket.
    """
    stream = console if isinstance(console, ByteStream) else await anyio.connect_unix(os.fspath(console))
    try:
        shell = ConsoleShell(stream, vm)
        await shell.log_in(user=user, password=password, limit=limit)
        try:
            yield shell
        finally:
            await shell.leave()
    finally:
        if stream is not console:
            await stream.aclose()
