"""Serves the record of a session as a QMP server, so that a session from elsewhere becomes a test.

    async with replay("session.jsonl", str(tmp_path / "s")) as server:
        async with qmpsnap.connect(server.path, shared_fs=False) as vm:
            await vm.snapshot("one")
    assert server.refused == []

Commands are expected in the recorded order, and get the recorded replies; events come at their places.
Secrets, which are masked in the record, match any other. A query that comes once more gets the reply that it
had last, and one that is left out is passed over. Any other command is answered with an error that says what
was expected.

Files are not recorded. What a client looks at on the disk is what lies there now; with `shared_fs=False`,
both when it is recorded and when it is replayed, it does not look.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.arguments import number
from qmpsnap.model.secrets import masked
from qmpsnap.model.session_record import Entry, SessionRecord, read_record
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.paths import absolute
from qmpsnap.run.safe_open import open_file
from qmpsnap.run.session.change import settled

__all__ = ["Replay", "replay"]

_PATIENCE = 0.25  # seconds


class Replay:
    """A record that is served; made by `replay`.

    Attributes:
        path: The socket.
        refused: Commands that were not the expected ones, each with what was expected.
        played: Set once every session was played to its end.
    """

    def __init__(self, path: str, record: SessionRecord, patience: float) -> None:
        self.path = path
        self._patience = patience
        self.refused: list[str] = []
        self.played = asyncio.Event()
        self._record = record
        self._sessions = iter(record.sessions)
        self._left = len(record.sessions)
        self._turn = asyncio.Lock()
        self._serving: set[asyncio.Task[None]] = set()

    async def serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client (for asyncio's server): each gets the next session; after the last, none."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio's server runs us in one
        self._serving.add(task)
        try:
            async with self._turn:
                session = next(self._sessions, None)
                if session is not None:
                    self._left -= 1
                    cut = self._record.cut and self._left == 0
                    playing = _Session(session, reader, writer, self.refused, cut=cut)
                    await playing.play(self._patience)
        except (ConnectionError, ValueError, RecursionError, asyncio.CancelledError):
            pass  # the client went, or sent what is no JSON, or the server ends
        finally:
            self._serving.discard(task)
            writer.transport.abort()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            if self._left == 0:
                self.played.set()

    async def end(self) -> None:
        """Disconnect every client."""
        serving = set(self._serving)
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)


class _Session:
    """One recorded session, played to one client.

    Args:
        entries: Its messages.
        reader, writer: The client.
        refused: Gets what is refused.
        cut: Whether the record ends in the middle of it: the connection is closed then.
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
        self._asked = {repr(one.message.get("id")): one for one in entries if one.side == "client"}
        self._reader, self._writer = reader, writer
        self._refused = refused
        self._cut = cut
        self._at = 0
        self._pending: list[dict[str, Any]] = []
        self._ids: dict[str, object] = {}  # of the client, by the recorded one
        self._skipped: set[str] = set()  # recorded ids of queries that were left out
        self._last: dict[str, dict[str, Any]] = {}  # reply of each query, by what was asked
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
            if not await self._hear(patience if self._pending else None):
                self._give_way()

    def _advance(self) -> None:
        """Send what QEMU sent until the client has to say something, and take what it has said."""
        while self._at < len(self._entries):
            entry = self._entries[self._at]
            if entry.side == "client" and not self._take(entry):
                return
            if entry.side == "qemu":
                self._send(entry.message)
            self._at += 1

    def _take(self, expected: Entry) -> bool:
        for command in self._pending:
            if _equal(command, expected.message):
                self._pending.remove(command)
                self._ids[repr(expected.message.get("id"))] = command.get("id")
                return True
        return False

    def _send(self, message: dict[str, Any]) -> None:
        recorded = repr(message.get("id"))
        if "return" in message or "error" in message:
            asked = self._asked.get(recorded)
            if asked is not None and asked.asks:
                self._last[_key(asked.message)] = message
            if recorded in self._skipped:
                return
            message = _answering(message, self._ids.get(recorded))
        self._write(message)

    def _give_way(self) -> None:
        """Nothing more comes, and what has come is not what is expected: pass over queries, or refuse."""
        expected = self._entries[self._at] if self._at < len(self._entries) else None
        ahead = self._entries[self._at :]
        command = self._pending[0]
        if expected is not None and expected.asks and any(_equal(command, one.message) for one in ahead):
            self._skipped.add(repr(expected.message.get("id")))
            self._at += 1
        elif (last := self._last.get(_key(command))) is not None:
            self._pending.pop(0)
            self._write(_answering(last, command.get("id")))
        else:
            self._refuse(self._pending.pop(0), f"expected {_spelled(expected.message)}" if expected else "")

    def _refuse_rest(self, why: str) -> None:
        for command in self._pending:
            if (last := self._last.get(_key(command))) is not None:
                self._write(_answering(last, command.get("id")))
            else:
                self._refuse(command, why)
        self._pending.clear()

    def _refuse(self, command: dict[str, Any], why: str) -> None:
        text = f"the record has no {_spelled(command)} here: {why}"
        self._refused.append(text)
        self._write(_answering({"error": {"class": "GenericError", "desc": text}}, command.get("id")))

    def _write(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    async def _hear(self, patience: float | None) -> bool:
        """Read on, and keep the commands that are complete; False when nothing came in time."""
        try:
            async with asyncio.timeout(patience):
                data = await self._reader.read(1 << 20)
        except TimeoutError:
            return False
        self._closed = not data
        self._text = (self._text + data.decode()).lstrip()
        decoder = json.JSONDecoder()
        while self._text:
            try:
                command, length = decoder.raw_decode(self._text)
            except json.JSONDecodeError:
                break  # not all of it has come
            self._text = self._text[length:].lstrip()
            if isinstance(command, dict):
                self._pending.append(masked(command))
        return True


@asynccontextmanager
async def replay(
    file: str | os.PathLike[str], path: str | os.PathLike[str], *, patience: float = _PATIENCE
) -> AsyncIterator[Replay]:
    """Serve a record on a unix socket inside a block.

    Args:
        file: The record, made by `record=` or `--record`.
        path: The socket to create.
        patience: Seconds by which a command may come before others that the client sends at the same time.

    Raises:
        Malformed: When the file is not a record, or a line of it is not as it must be.
        InvalidTarget: When the file cannot be read, or the socket cannot be created.
    """
    name, place = absolute("file", file), absolute("path", path)
    try:
        with os.fdopen(open_file(name, follow=True), "rb") as opened:
            data = opened.read()
    except OSError as error:
        raise unusable(name, error, "open") from error
    server = Replay(place, read_record(data, file=name), number("patience", patience))
    try:
        listener = await asyncio.start_unix_server(server.serve_client, place, limit=64 * 1024 * 1024)
    except OSError as error:
        raise InvalidTarget(f"cannot listen on {place!r}: {error.strerror or error}", file=place) from error
    try:
        yield server
    finally:
        listener.close()
        await settled(asyncio.create_task(server.end()))
        with suppress(OSError):
            os.unlink(place)  # noqa: PTH108 - asyncio leaves it


def _key(message: dict[str, Any]) -> str:
    """What is asked, without the id."""
    return json.dumps(
        [message.get("execute"), message.get("exec-oob"), message.get("arguments") or {}], sort_keys=True
    )


def _equal(command: dict[str, Any], recorded: dict[str, Any]) -> bool:
    """Whether a command is the recorded one; qmp_capabilities is, whatever it enables."""
    if command.get("execute") == recorded.get("execute") == "qmp_capabilities":
        return True
    return _key(command) == _key(recorded)


def _answering(message: dict[str, Any], command_id: object) -> dict[str, Any]:
    """The reply with the client's own id; without one, if it gave none."""
    plain = {key: value for key, value in message.items() if key != "id"}
    return plain if command_id is None else {**plain, "id": command_id}


def _spelled(message: dict[str, Any]) -> str:
    """A command for people, in one line that is not too long."""
    arguments = json.dumps(message.get("arguments") or {})
    text = f"{message.get('execute', message.get('exec-oob'))} {arguments}"
    return text if len(text) <= 400 else f"{text[:400]}..."
