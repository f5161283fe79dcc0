"""A shell in a guest: it runs commands, and copies files in and out.

There are three: `Guest` over the port of our own guest, `ConsoleShell` over any guest's serial console, and
`AgentShell` over the QEMU guest agent. All need a POSIX shell in the guest, with `base64`, `dd`, `mktemp`,
`sha256sum` and `timeout`, as coreutils and busybox have them.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import secrets
import shlex
import signal
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from qmpsnap.errors import GuestFailed, InvalidTarget, TargetExists
from qmpsnap.model import arguments
from qmpsnap.model.arguments import Text, check, refuse
from qmpsnap.run.disk import in_thread
from qmpsnap.testing.seeder import new_seeder

__all__ = ["Ran", "Shell"]

MIB: Final = 1 << 20
KILLED: Final = 128 + 9
_SIGNALS: Final = {128 + each: each.name for each in signal.Signals}
# A script is an argument of the guest's shell, and Linux allows 128 KiB for each.
_SCRIPT_BYTES: Final = 100 * 1024
_PIECE_LIMIT_S: Final = 60.0
_SLOWEST: Final = 64 * 1024
# mktemp's directory may be mounted noexec; status 126 says so.
_RESEED: Final = """\
status=126
for directory in /run /tmp /dev/shm /var/tmp /root; do
    program=$(mktemp -p $directory 2> /dev/null) || continue
    echo PROGRAM | base64 -d > "$program" && chmod 700 "$program" && "$program"
    status=$?
    rm -f "$program"
    [ $status = 126 ] || break
done
[ $status = 0 ] || echo "the kernel does not take a new seed (error $status)"
exit $status
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a script ended in the guest.

    Attributes:
        status: Its exit status; 128 + N when signal N ended it, so 137 when it was killed, at its
            limit or before that.
        output: What it printed on stdout and stderr, in order, unchanged.
        cut: Whether it printed more than the caller asked for; `output` is then only the beginning.
    """

    status: int
    output: bytes
    cut: bool = False


class Shell(ABC):
    """A guest's shell; scripts run one after the other, each in a shell of its own."""

    _piece_bytes: ClassVar[int] = MIB  # of a file that is copied, by one script

    @abstractmethod
    async def execute(self, script: str, *, limit: float = 30.0, most: int = MIB, stdin: bytes = b"") -> Ran:
        """Run a shell script in the guest, and return how it ended, whatever its status is.

        A cancelled call leaves the script running; the next call waits for its end, except with an
        `AgentShell`.

        Args:
            script: For the guest's sh; at most 100 KiB, without NUL and EOT.
            limit: Seconds of the guest's time after which the script is killed (rounded up), with all
                processes that it has started. What it leaves running when it ends by itself is not killed.
            most: Bytes of its output that are returned, at most 8 MiB. In the guest, all of the output is
                first written to a temporary file.
            stdin: What it can read there, at most 1 MiB; it starts when the guest has all of it.

        Raises:
            GuestFailed: When the guest does not answer, or cannot run it.
        """

    async def run(self, script: str, *, limit: float = 30.0, stdin: bytes = b"") -> str:
        """Run a shell script in the guest, and return its output without the newline at the end.

        Args:
            script: See `execute`.
            limit: See `execute`.
            stdin: See `execute`.

        Raises:
            GuestFailed: When its status is not 0, when it printed more than 1 MiB, or when the guest does not
                answer.
        """
        output = await self.run_bytes(script, limit=limit, stdin=stdin)
        return output.decode(errors="replace").removesuffix("\n")

    async def run_bytes(
        self, script: str, *, limit: float = 30.0, most: int = MIB, stdin: bytes = b""
    ) -> bytes:
        """Run a shell script as `run` does, and return its output unchanged, as bytes."""
        started = time.monotonic()
        ran = await self.execute(script, limit=limit, most=most, stdin=stdin)
        return output_of(script, ran, at_limit=time.monotonic() - started >= limit)

    async def set_clock(self) -> None:
        """Set the guest's clock to this host's; only to the second if the guest's `date` takes no fraction.

        Raises:
            GuestFailed: When it cannot be set, for example because the user is not root.
        """
        await self.run(now_set())

    async def reseed(self, *, clock: bool = False) -> None:
        """Give the guest's random number generator 64 random bytes of this host; it takes a new key at once.

        Only for guests on x86-64: a program (`seeder`) is copied into the guest, run once, and removed.

        Args:
            clock: Whether it also sets the guest's clock to this host's.

        Raises:
            GuestFailed: When the kernel does not take them, for example because the user is not root.
        """
        await self.run(_RESEED.replace("PROGRAM", base64.b64encode(new_seeder(clock=clock)).decode()))

    async def read_file(self, path: str, *, most: int = 16 * MIB) -> bytes:
        """Return the content of a file in the guest.

        Args:
            path: Its path in the guest.
            most: Largest size of the file, in bytes.

        Raises:
            GuestFailed: When it cannot be read, is larger, or changes meanwhile.
        """
        return b"".join([part async for part in self._parts(path, most)])

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o644, replace: bool = False) -> None:
        """Create a file in the guest; it gets its name when it is complete and its checksum is correct.

        A cancelled call leaves what it has written as `PATH.XXXXXXXX.partial` (eight hexadecimal digits).

        Args:
            path: Its path in the guest.
            data: Its content.
            mode: Its permissions.
            replace: Whether an existing file of that name is replaced.

        Raises:
            GuestFailed: When the file exists and must not be replaced, or cannot be written; no part of it is
                left then, unless the guest no longer answers.
        """
        name, unfinished = _quoted(path), _quoted(f"{path}.{secrets.token_hex(4)}.partial")
        free = f"if [ -d {name} ]; then echo it is a directory; exit 1; fi\n"
        if not replace:
            free = f"if [ -e {name} ] || [ -L {name} ]; then echo it exists; exit 1; fi\n"
        await self.run(f"{free}umask 077 && : > {unfinished}")
        try:
            for at in range(0, len(data), self._piece_bytes):
                await self.run(
                    f"cat >> {unfinished}", limit=_PIECE_LIMIT_S, stdin=data[at : at + self._piece_bytes]
                )
            await self.run(
                f"set -- $(sha256sum < {unfinished})\n"
                f'[ "$1" = {hashlib.sha256(data).hexdigest()} ] || {{ echo not written as sent; exit 1; }}\n'
                f"{free}chmod {mode:o} {unfinished} && sync && mv -f {unfinished} {name}",
                limit=_limit(len(data)),
            )
        except GuestFailed as error:
            try:
                await self.run(f"rm -f {unfinished}")
            except GuestFailed:
                raise error from None
            raise _not_written(error, path) from error

    async def copy_in(
        self, source: str | os.PathLike[str], path: str, *, replace: bool = False, most: int = 256 * MIB
    ) -> None:
        """Copy a file of the host into the guest, with its permissions.

        Args:
            source: The file here.
            path: Its path in the guest.
            replace: Whether an existing file of that name is replaced.
            most: Largest size of the file, in bytes.

        Raises:
            OSError: When the source cannot be read.
            InvalidTarget: When it is larger.
            GuestFailed: As `write_file`.
        """
        mode, data = await in_thread(partial(_read, Path(source), most))
        await self.write_file(path, data, mode=mode, replace=replace)

    async def copy_out(
        self, path: str, target: str | os.PathLike[str], *, replace: bool = False, most: int = 256 * MIB
    ) -> None:
        """Copy a file of the guest to the host; it gets its name when complete and its checksum is correct.

        Args:
            path: Its path in the guest.
            target: The file here; created with the permissions of any new file.
            replace: Whether an existing file of that name is replaced.
            most: Largest size of the file, in bytes.

        Raises:
            TargetExists: When the target exists.
            InvalidTarget: When it cannot be created.
            GuestFailed: As `read_file`; no file is left.
        """
        file = Path(target)
        if not replace and os.path.lexists(file):
            raise TargetExists(f"{str(file)!r} exists", file=str(file))
        unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
        try:
            with unfinished.open("xb") as output:
                async for part in self._parts(path, most):
                    output.write(part)
            _name(unfinished, file, replace=replace)
        except OSError as error:
            message = f"{str(file)!r} cannot be created: {error.strerror or error}"
            raise InvalidTarget(message, file=str(file)) from error
        finally:
            unfinished.unlink(missing_ok=True)

    async def _parts(self, path: str, most: int) -> AsyncIterator[bytes]:
        """Yield a file in parts; raise at the end if their checksum is not that of the file."""
        name = _quoted(path)
        words = (await self.run(f"[ -f {name} ] || {{ echo no such file; exit 1; }}\n{_size(name)}")).split()
        size = int(words[-1]) if words and words[-1].isdecimal() else -1
        if not 0 <= size <= most:
            raise GuestFailed(
                f"in the guest, {path!r} has {size} bytes: at most {most} were asked for", script=""
            )
        digest = hashlib.sha256()
        for number in range(-(-size // self._piece_bytes)):
            part = await self._piece(name, number)
            digest.update(part)
            yield part
        checksum = (await self.run(f"sha256sum < {name}", limit=_limit(size))).split()
        if checksum[:1] != [digest.hexdigest()]:
            raise GuestFailed(f"in the guest, {path!r} was changed while it was read", script="")

    async def _piece(self, name: str, number: int) -> bytes:
        """Return a piece of a file; the name is that of `_quoted`."""
        return await self.run_bytes(self._piece_script(name, number), limit=_PIECE_LIMIT_S)

    def _piece_script(self, name: str, number: int) -> str:
        return f"dd if={name} bs={self._piece_bytes} skip={number} count=1 2> /dev/null"


def now_set() -> str:
    """Return a script that sets a guest's clock to the present time."""
    now = time.time()
    return f"date -u -s @{now:.3f} 2> /dev/null || date -u -s @{now:.0f}"


def output_of(script: str, ran: Ran, *, at_limit: bool = True) -> bytes:
    """Return the output of a script whose status is 0.

    Args:
        script: The script.
        ran: How it ended.
        at_limit: Whether its limit had passed by then: else nobody has killed it for that.

    Raises:
        GuestFailed: When its status is not 0, or its output is cut.
    """
    text = ran.output.decode(errors="replace").strip()
    if ran.status == 0 and not ran.cut:
        return ran.output
    how = f"ended with status {ran.status}"
    if ran.status == KILLED:
        how = "was killed at its limit" if at_limit else "was killed in the guest (SIGKILL), before its limit"
    elif ran.status in _SIGNALS:
        how += f" (128 + {_SIGNALS[ran.status]})"
    if ran.status == 0:
        how = f"printed more than {len(ran.output)} bytes"
    message = f"in the guest, {shorten(script)!r} {how}: {text[-500:] or 'it printed nothing'}"
    raise GuestFailed(message, script=script, status=ran.status, output=text)


def _quoted(path: str) -> str:
    """Return a path of the guest as a word of its shell, which no command takes for an option.

    Raises:
        BadArgument: When it is empty, or cannot be sent.
    """
    check("path", path, Text)
    if "\x04" in path or any("\ud800" <= letter <= "\udfff" for letter in path):
        refuse("path", path, "a path in the guest must be UTF-8, without EOT")
    return shlex.quote(path if path.startswith("/") else f"./{path}")


def _limit(size: int) -> float:
    """Return the seconds that the guest may take to read a file of some bytes and to write it to its disk."""
    return _PIECE_LIMIT_S + size / _SLOWEST


def _size(word: str) -> str:
    """Return a command that prints a file's size; the word is that of `_quoted`.

    busybox's `wc -c` reads the whole file, which took 8 s for 100 MB under TCG; `stat` is not everywhere.
    """
    return f"stat -L -c %s {word} 2> /dev/null || wc -c < {word}"


def shorten(script: str) -> str:
    """Return the beginning of a script, for a message."""
    return script if len(script) <= 80 else script[:77] + "..."


def check_script(script: str, stdin: bytes) -> None:
    """Refuse a script, or its stdin, that cannot be sent.

    Raises:
        BadArgument: When it is too long, or the script holds NUL or EOT.
    """
    check("stdin", stdin, bytes)
    if len(stdin) > MIB:
        refuse("stdin", f"{len(stdin)} bytes", f"a script for the guest can read at most {MIB} bytes")
    check("script", script, str)
    try:
        encoded = script.encode()
    except UnicodeEncodeError:
        refuse("script", shorten(script), "a script for the guest must be UTF-8")
    if len(encoded) > _SCRIPT_BYTES:
        refuse("script", shorten(script), f"a script for the guest has at most {_SCRIPT_BYTES} bytes")
    if "\0" in script or "\x04" in script:
        refuse("script", shorten(script), "a script for the guest must not contain NUL or EOT")


def whole_seconds(limit: float) -> int:
    """Return a limit as the guest's `timeout` takes it: rounded up, at least 1.

    Raises:
        BadArgument: When it is not a number of seconds.
    """
    if arguments.number("limit", limit, zero=True) == math.inf:
        refuse("limit", limit, "give seconds")
    return max(1, math.ceil(limit))


def _read(source: Path, most: int) -> tuple[int, bytes]:
    """Return permissions and content of a file on this host."""
    with source.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o777
        data = file.read(most + 1)
    if len(data) > most:
        raise InvalidTarget(f"{str(source)!r} is larger than {most} bytes", file=str(source))
    return mode, data


def _not_written(error: GuestFailed, path: str) -> GuestFailed:
    """Return the error of a file that the guest could not write, and of which no part is left."""
    if error.status is None:
        return error
    message = f"{error.message}; {path!r} is as it was, and no part of the copy is left"
    return GuestFailed(message, script=error.script, status=error.status, output=error.output)


def _name(unfinished: Path, file: Path, *, replace: bool) -> None:
    if replace:
        unfinished.replace(file)
        return
    try:
        file.hardlink_to(unfinished)
    except FileExistsError as error:
        raise TargetExists(f"{str(file)!r} exists", file=str(file)) from error
