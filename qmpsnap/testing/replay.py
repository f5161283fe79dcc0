"""Serves the record of a session as a QMP server, so that a session from elsewhere becomes a test.

    async with replay("session.jsonl", str(tmp_path / "s")) as server:
        async with qmpsnap.connect(server.path, shared_fs=False) as vm:
            await vm.snapshot("one")
    assert server.refused == []

Commands are expected in the recorded order, and get the recorded replies; events come at their places. A
secret, which is masked in the record, matches any value. A repeated query gets its last reply again, and a
query that the client omits is skipped. Any other command is answered with an error that says which command
was expected.

Files are not recorded: a client sees the files of now. With `shared_fs=False`, both for the record and for
the replay, it reads no files.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from qmpsnap.model.arguments import number
from qmpsnap.model.secrets import mask_secrets
from qmpsnap.model.session_record import Entry, SessionRecord, read_record
from qmpsnap.run.channel import listener
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.paths import absolute
from qmpsnap.run.safe_open import open_file
from qmpsnap.run.session.change import settled
from qmpsnap.testing.clients import Clients, take_commands

__all__ = ["Replay", "replay"]

_PATIENCE = 0.25  # seconds


class Replay:
    """A record that is served; made by `replay`.

    Attributes:
        path: The socket.
        refused: The commands that were refused, each with what was expected in its place.
        played: An event that is set once every session has been played to its end.
    """

    def __init__(self, path: str, record: SessionRecord, patience: float) -> None:
        self.path = path
        self._patience = patience
        self.refused: list[str] = []
        self.played = asyncio.Event()
        self._record = record
        self._sessions = iter(record.sessions)
        self._left = len(record.sessions)
        self._clients = Clients(self._talk)

    async def serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client (for asyncio's server): it gets the next session, or after the last none."""
        try:
            await self._clients.serve(reader, writer)
        finally:
            if self._left == 0:
                self.played.set()

    async def end(self) -> None:
        """Disconnect every client."""
        await self._clients.end()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = next(self._sessions, None)
        if session is not None:
            self._left -= 1
            cut = self._record.cut and self._left == 0
            await _Session(session, reader, writer, self.refused, cut=cut).play(self._patience)


class _Session:
    """A recorded session, which is played to a client.

    Args:
        entries: Its messages.
        reader, writer: The client.
        refused: List to which refused commands are added.
        cut: Whether the record ends in the middle of the session: the connection is then closed.
    """

    def __init__(
        self,
        entries: tuple[Entry, ...],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        refused: list[str],
        *,
        cut: bool,
    ) -> None:
        self._entries = entries
        self._commands = {repr(entry.message.get("id")): entry for entry in entries if entry.side == "client"}
        self._reader, self._writer = reader, writer
        self._refused = refused
        self._cut = cut
        self._at = 0
        self._pending: list[dict[str, Any]] = []
        self._ids: dict[str, object] = {}  # the client's id of a command, by the recorded id
        self._unanswered = 0  # commands of the client that the record answers further on
        self._skipped: set[str] = set()  # recorded ids of queries that the client omitted
        self._last: dict[str, dict[str, Any]] = {}  # last reply to each query, by its command and arguments
        self._text = ""
        self._closed = False

    async def play(self, patience: float) -> None:
        """Play it until the client goes, or until the record is cut; see `replay` for the patience."""
        while not self._closed:
            self._advance()
            await self._writer.drain()
            if self._at == len(self._entries):
                if self._cut:
                    return
                self._refuse_rest("the record has ended")
            if not await self._hear(patience if self._pending or self._skippable else None):
                self._resolve()

    def _advance(self) -> None:
        """Send what QEMU sent, and read the client's commands, up to a command that has not come yet."""
        while self._at < len(self._entries):
            entry = self._entries[self._at]
            if entry.side == "client" and not self._take(entry):
                return
            if entry.side == "qemu":
                self._send(entry.message)
            self._at += 1

    @property
    def _skippable(self) -> bool:
        """Whether the client waits for a reply that was recorded after a query which it has not sent."""
        return self._unanswered > 0 and self._at < len(self._entries) and self._entries[self._at].asks

    def _take(self, expected: Entry) -> bool:
        for command in self._pending:
            if _equal(command, expected.message):
                self._pending.remove(command)
                self._unanswered += 1
                self._ids[repr(expected.message.get("id"))] = command.get("id")
                return True
        return False

    def _send(self, message: dict[str, Any]) -> None:
        recorded = repr(message.get("id"))
        if "return" in message or "error" in message:
            command = self._commands.get(recorded)
            if command is not None and command.asks:
                self._last[_key(command.message)] = message
            if recorded in self._skipped:
                return
            self._unanswered -= 1
            message = _with_id(message, self._ids.get(recorded))
        self._write(message)

    def _resolve(self) -> None:
        """Skip a query, repeat a reply, or refuse a command: the expected command has not come in time."""
        expected = self._entries[self._at] if self._at < len(self._entries) else None
        ahead = self._entries[self._at :]
        if not self._pending:
            self._skip()
            return
        command = self._pending[0]
        if expected is not None and expected.asks and any(_equal(command, entry.message) for entry in ahead):
            self._skip()
        elif (last := self._last.get(_key(command))) is not None:
            self._pending.pop(0)
            self._write(_with_id(last, command.get("id")))
        else:
            self._refuse(self._pending.pop(0), f"expected {_spell(expected.message)}" if expected else "")

    def _skip(self) -> None:
        """Pass over the query that is expected, and over its reply."""
        self._skipped.add(repr(self._entries[self._at].message.get("id")))
        self._at += 1

    def _refuse_rest(self, why: str) -> None:
        for command in self._pending:
            if (last := self._last.get(_key(command))) is not None:
                self._write(_with_id(last, command.get("id")))
            else:
                self._refuse(command, why)
        self._pending.clear()

    def _refuse(self, command: dict[str, Any], why: str) -> None:
        text = f"the record has no {_spell(command)} here: {why}"
        self._refused.append(text)
        self._write(_with_id({"error": {"class": "GenericError", "desc": text}}, command.get("id")))

    def _write(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    async def _hear(self, patience: float | None) -> bool:
        """Read commands, and keep those that are complete; return False if nothing came in time."""
        try:
            async with asyncio.timeout(patience):
                data = await self._reader.read(1 << 20)
        except TimeoutError:
            return False
        self._closed = not data
        commands, self._text = take_commands(self._text + data.decode())
        self._pending += [mask_secrets(command) for command in commands if isinstance(command, dict)]
        return True


@asynccontextmanager
async def replay(
    file: str | os.PathLike[str], path: str | os.PathLike[str], *, patience: float = _PATIENCE
) -> AsyncIterator[Replay]:
    """Serve a record on a unix socket inside a block.

    Args:
        file: The record, made by `record=` or `--record`.
        path: The socket to create, for this user only.
        patience: Seconds to wait for an expected command while another one, sent at the same time, came
            first.

    Raises:
        InvalidTarget: When the file cannot be read, is not a record, or has an invalid line; when the socket
            cannot be created.
        TargetExists: When there is anything at the socket's path.
    """
    name, place = absolute("file", file), absolute("path", path)
    try:
        with os.fdopen(open_file(name, follow=True), "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise unusable(name, error, "open") from error
    server = Replay(place, read_record(data, file=name), number("patience", patience))
    with listener(place) as sock:  # asyncio would replace a socket that exists, even a QEMU's
        serving = await asyncio.start_unix_server(server.serve_client, sock=sock, limit=64 * 1024 * 1024)
        try:
            yield server
        finally:
            serving.close()
            await settled(asyncio.create_task(server.end()))


def _key(message: dict[str, Any]) -> str:
    """Return the command and its arguments, without the id."""
    return json.dumps(
        [message.get("execute"), message.get("exec-oob"), message.get("arguments") or {}], sort_keys=True
    )


def _equal(command: dict[str, Any], recorded: dict[str, Any]) -> bool:
    """Whether a command equals the recorded one; two qmp_capabilities always do, whatever they enable."""
    if command.get("execute") == recorded.get("execute") == "qmp_capabilities":
        return True
    return _key(command) == _key(recorded)


def _with_id(message: dict[str, Any], command_id: object) -> dict[str, Any]:
    """Return the reply with the client's id, or without an id if the client gave none."""
    plain = {key: value for key, value in message.items() if key != "id"}
    return plain if command_id is None else {**plain, "id": command_id}


def _spell(message: dict[str, Any]) -> str:
    """Spell a command for people, in a short line."""
    arguments = json.dumps(message.get("arguments") or {})
    text = f"{message.get('execute', message.get('exec-oob'))} {arguments}"
    return text if len(text) <= 400 else f"{text[:400]}..."
