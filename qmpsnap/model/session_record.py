"""Reads the record of QMP sessions that `record=` has written. It may come from anybody, and be cut short."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from qmpsnap.errors import Malformed

_DEEPEST = "it is nested too deep"


class Entry(Struct, frozen=True):
    """One message of a session.

    Attributes:
        side: Who sent it.
        message: The message.
    """

    side: Literal["client", "qemu"] = field(name="from")
    message: dict[str, Any]

    @property
    def command(self) -> str:
        """The command's name; "" where the client sent none."""
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
        Malformed: When it is no record, or a line of it is not as it must be; the message has its number.
    """
    *lines, rest = data.split(b"\n")
    first, *more = lines or [b""]
    _decode(first, _First, f"{file} is not a record of qmpsnap")
    sessions: list[list[Entry]] = []
    for number, line in enumerate(more, 2):
        entry = _decode(line, Entry, f"{file}, line {number}")
        if entry.side == "qemu" and "QMP" in entry.message:
            sessions.append([entry])
        elif sessions:  # what comes before a greeting was meant for an earlier client
            sessions[-1].append(entry)
    if not sessions:
        raise Malformed(f"{file} holds no session: nobody greeted", hint="was QEMU reached at all?")
    return SessionRecord(tuple(map(tuple, sessions)), cut=bool(rest) or bool(_unanswered(sessions[-1])))


def _decode(line: bytes, kind: Any, what: str) -> Any:  # noqa: ANN401 - one of two structs
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"{what}: {error}") from error
    except RecursionError as error:
        raise Malformed(f"{what}: {_DEEPEST}") from error


def _unanswered(session: list[Entry]) -> list[str]:
    """Commands without a reply, by their ids."""
    waiting: dict[str, str] = {}
    for entry in session:
        name = repr(entry.message.get("id"))
        if entry.side == "client":
            waiting[name] = entry.command
        elif "return" in entry.message or "error" in entry.message:
            waiting.pop(name, None)
    return list(waiting.values())
