"""The history of shells: a file of the lines that were sent, without secrets, that nobody else may read."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit.history import History

from qmpsnap.cli.output import to_stderr
from qmpsnap.model.qmp_line import Request
from qmpsnap.model.secrets import mask_secrets

_LINES = 1000
_MOST = 256 * 1024  # bytes; a longer file is cut to the newest lines
_OPEN = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class ShellHistory(History):
    """The lines that the arrow keys bring back: those of earlier shells, and of this one as typed.

    If the file cannot be used, a message says so once, and only this shell's lines come back.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._descriptor: int | None = None
        try:
            self._descriptor = _opened(file)
        except OSError as error:
            to_stderr(f"qmpsnap: the history is not kept: {file}: {error.strerror or error}")

    def load_history_strings(self) -> Iterable[str]:
        """The lines of the file, the newest first."""
        if self._descriptor is None:
            return []
        try:
            # Shared by those that append; alone, because a line that is appended meanwhile would be cut off.
            with _locked(self._descriptor, fcntl.LOCK_EX):
                lines, size = _lines(self._descriptor)
                if size > _MOST:
                    os.ftruncate(self._descriptor, 0)
                    kept = "".join(f"{line}\n" for line in lines[-_LINES // 2 :])
                    os.write(self._descriptor, kept.encode())
        except OSError as error:
            self._give_up(error)
            return []
        return list(reversed(lines))

    def store_string(self, string: str) -> None:
        """Do nothing: what was typed may have a secret in it; `remember` writes what was sent."""

    def remember(self, line: str, request: Request) -> None:
        """Append a line that is sent; one with a secret as its command, with the secret masked."""
        if self._descriptor is None:
            return
        message = {"execute": request.command, "arguments": dict(request.arguments)}
        masked = mask_secrets(message)
        if masked != message:
            line = f"{request.command} {json.dumps(masked['arguments'])}"
        try:
            with _locked(self._descriptor, fcntl.LOCK_SH):
                os.write(self._descriptor, f"{' '.join(line.split())}\n".encode(errors="backslashreplace"))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        to_stderr(f"qmpsnap: the history is not kept any more: {self._file}: {error.strerror or error}")
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def history_file() -> Path:
    """Where the history is: in the user's directory of states, as XDG has it."""
    given = os.environ.get("XDG_STATE_HOME", "")
    home = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return home / "qmpsnap" / "shell-history"


@contextmanager
def _locked(descriptor: int, kind: int) -> Iterator[None]:
    """Hold a lock of that kind on the file; other shells hold theirs only as long as they write."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, kind)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lines(descriptor: int) -> tuple[list[str], int]:
    """The newest lines of the file, in its order, and its size in bytes."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - 4 * _MOST)
    lines = os.pread(descriptor, 4 * _MOST, start).decode(errors="replace").split("\n")
    return [line for line in lines[1 if start else 0 :] if line][-_LINES:], size


def _opened(file: Path) -> int:
    """Open the file, or create it; nobody else may read it.

    Raises:
        OSError: When it is no file, or belongs to somebody else.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, _OPEN, 0o600)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
        os.fchmod(descriptor, 0o600)
        return descriptor
    os.close(descriptor)
    raise OSError(0, "it is not a file of yours")
