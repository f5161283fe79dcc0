"""Reads a record of QMP sessions that `record=` has written. It is untrusted, and may be cut short."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from qmpsnap.errors import InvalidTarget

_DEEPEST = "it is nested too deeply"


class Entry(Struct, frozen=True):
    """A message of a session.

    Attributes:
        side: Who sent it.
        message: The message.
    """

    side: Literal["client", "qemu"] = field(name="from")
    message: dict[str, Any]

    @property
    def command(self) -> str:
        """The command's name; "" if the message is not a command."""
        return str(self.message.get("execute", self.message.get("exec-oob", "")))

    @property
    def asks(self) -> bool:
        """Whether it is a command that changes nothing."""
        return self.side == "client" and self.command.startswith(("query-", "qom-get", "qom-list"))


class SessionRecord(Struct, frozen=True):
    """The sessions of a record.

    Attributes:
        sessions: The messages of each connection, the greeting first.
        cut: Whether the record ends in the middle: in a line, or with a command that has no reply.
    """

    sessions: tuple[tuple[Entry, ...], ...]
    cut: bool = False


class _First(Struct):
    qmpsnap: Literal["record"]
    version: Literal[1]


def read_record(data: bytes, *, file: str = "the record") -> SessionRecord:
    """Read a record; a last line that is cut short is left out.

    Args:
        data: The bytes of the file.
        file: What it is called in errors.

    Raises:
        InvalidTarget: When it is not a record, or a line is invalid; the message has the line's number.
    """
    *lines, rest = data.split(b"\n")
    first, *more = lines or [b""]
    _decode(first, _First, f"{file} is not a record of qmpsnap", file=file)
    sessions: list[list[Entry]] = []
    for number, line in enumerate(more, 2):
        entry = _decode(line, Entry, f"{file}, line {number}", file=file)
        if entry.side == "qemu" and "QMP" in entry.message:
            sessions.append([entry])
        elif sessions:  # messages before a greeting were for an earlier client
            sessions[-1].append(entry)
    if not sessions:
        raise InvalidTarget(
            f"{file} holds no session: it has no greeting",
            file=file,
            hint="check that QEMU could be reached",
        )
    return SessionRecord(
        tuple(map(tuple, sessions)), cut=bool(rest) or bool(_commands_without_reply(sessions[-1]))
    )


def _decode(line: bytes, kind: Any, what: str, *, file: str) -> Any:  # noqa: ANN401 - one of two structs
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidTarget(f"{what}: {error}", file=file) from error
    except RecursionError as error:
        raise InvalidTarget(f"{what}: {_DEEPEST}", file=file) from error


def _commands_without_reply(session: list[Entry]) -> list[str]:
    """Return the commands that have no reply."""
    waiting: dict[str, str] = {}
    for entry in session:
        key = repr(entry.message.get("id"))
        if entry.side == "client":
            waiting[key] = entry.command
        elif "return" in entry.message or "error" in entry.message:
            waiting.pop(key, None)
    return list(waiting.values())
