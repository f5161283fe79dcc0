"""A scripted QMP server on a real unix socket.

For tests of whatever speaks QMP: ours, and those of programs that embed us. It gives scripted
answers, sends events, and misbehaves on request; it knows nothing of disks.

    async with serve(path) as server:
        server.answer("query-status", Return({"status": "running"}))
        server.answer("job-cancel", Emit("BLOCK_JOB_CANCELLED", {"device": "j"}), Return())
        async with connect(path) as session:
            await session.query("query-status")
        assert server.received[-1]["execute"] == "query-status"

Like QEMU it serves one client at a time: the next one is greeted when the first has gone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qmpsnap.run.session.change import settled
from qmpsnap.testing.clients import Clients, take_commands

__all__ = ["GREETING", "Action", "Emit", "Fail", "Hangup", "QmpServer", "Raw", "Return", "Wait", "serve"]

GREETING: bytes = (
    b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 1}, "package": "scripted"}, '
    b'"capabilities": ["oob"]}}\r\n'
)


@dataclass(frozen=True, slots=True)
class Return:
    """Reply with this value."""

    value: object = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fail:
    """Reply with this error."""

    desc: str
    qmp_class: str = "GenericError"


@dataclass(frozen=True, slots=True)
class Emit:
    """Send an event; without a timestamp (seconds), that of now."""

    event: str
    data: Mapping[str, object] = field(default_factory=dict)
    timestamp: float | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """Send these bytes as they are."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the event is set."""

    until: asyncio.Event


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close the connection, after sending everything before this."""


Action = Return | Fail | Emit | Raw | Wait | Hangup


class QmpServer:
    """The server's side of a test; created by `serve`.

    Attributes:
        path: Its socket.
        received: Every command as it arrived, including qmp_capabilities.
        greeting: The greeting; None for a silent server.
        late: Sent once, before the next greeting: QEMU's reply to a client that left before it came.
    """

    def __init__(self, path: str, greeting: bytes | None) -> None:
        self.path = path
        self.greeting = greeting
        self.late = b""
        self.received: list[dict[str, object]] = []
        self._answers: dict[str, tuple[Action, ...] | Callable[[dict[str, object]], object]] = {}
        self._once: dict[str, list[tuple[Action, ...]]] = {}
        self._clients = Clients(self._talk)
        self._writer: asyncio.StreamWriter | None = None
        self._arrived = asyncio.Condition()
        self.answer("qmp_capabilities", Return())
        self.answer("query-commands", Return([]))

    @property
    def commands(self) -> list[str]:
        """Names of the commands that arrived, without qmp_capabilities."""
        names = [str(command.get("execute", command.get("exec-oob"))) for command in self.received]
        return [name for name in names if name != "qmp_capabilities"]

    def answer(self, command: str, *actions: Action) -> None:
        """Answer that command with these actions every time; a command without an answer is unknown."""
        self._answers[command] = actions

    def answer_once(self, command: str, *actions: Action) -> None:
        """Answer that command with these actions once, before those of `answer`."""
        self._once.setdefault(command, []).append(actions)

    def compute(self, command: str, reply: Callable[[dict[str, object]], object]) -> None:
        """Reply with what a function returns for the command's arguments."""
        self._answers[command] = reply

    def emit(self, *events: Emit) -> None:
        """Send events to the client that is connected, in one piece."""
        self.send(b"".join(_spell(event, None) for event in events))

    def send(self, data: bytes) -> None:
        """Send bytes to the connected client; without a client, do nothing."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(data)

    def hang_up(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()

    async def wait_for(self, command: str, *, count: int = 1) -> None:
        """Return once that command has arrived that many times."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: self.commands.count(command) >= count)

    async def serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it goes (for asyncio's server)."""
        await self._clients.serve(reader, writer)

    async def end(self) -> None:
        """Disconnect every client."""
        await self._clients.end()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        try:
            if self.greeting is not None:
                writer.write(self.late + self.greeting)
                self.late = b""
            received = ""
            while data := await reader.read(1 << 20):
                commands, received = take_commands(received + data.decode())
                for command in commands:
                    assert isinstance(command, dict)  # noqa: S101 - a client under test sends objects
                    self.received.append(command)
                    async with self._arrived:
                        self._arrived.notify_all()
                    await self._act(command, writer)
        finally:
            self._writer = None

    async def _act(self, command: dict[str, object], writer: asyncio.StreamWriter) -> None:
        output = b""  # sent in one piece, as QEMU's output buffer does
        for action in self._actions(command):
            match action:
                case Wait(until):
                    writer.write(output)
                    output = b""
                    await until.wait()
                case Hangup():
                    writer.write(output)
                    await writer.drain()
                    raise ConnectionAbortedError
                case _:
                    output += _spell(action, command.get("id"))
        writer.write(output)
        await writer.drain()

    def _actions(self, command: dict[str, object]) -> tuple[Action, ...]:
        name = str(command.get("execute", command.get("exec-oob")))
        if self._once.get(name):
            return self._once[name].pop(0)
        answer = self._answers.get(name)
        if answer is None:
            return (Fail(f"The command {name} has not been found", "CommandNotFound"),)
        if isinstance(answer, tuple):
            return answer
        arguments = command.get("arguments", {})
        return (Return(answer(arguments if isinstance(arguments, dict) else {})),)


@asynccontextmanager
async def serve(path: str, *, greeting: bytes | None = GREETING) -> AsyncIterator[QmpServer]:
    """Listen on a unix socket inside a block.

    Args:
        path: Path of the socket.
        greeting: The greeting; None for a silent server.
    """
    server = QmpServer(path, greeting)
    listener = await asyncio.start_unix_server(server.serve_client, path, limit=64 * 1024 * 1024)
    try:
        yield server
    finally:
        listener.close()
        await settled(asyncio.create_task(server.end()))


def _spell(action: Return | Fail | Emit | Raw, command_id: object) -> bytes:
    message: dict[str, object]
    match action:
        case Raw(data):
            return data
        case Return(value):
            message = {"return": value, "id": command_id}
        case Fail(desc, qmp_class):
            message = {"error": {"class": qmp_class, "desc": desc}, "id": command_id}
        case Emit(event, data, timestamp):
            now = time.time() if timestamp is None else timestamp
            stamp = {"seconds": int(now), "microseconds": round(now % 1 * 1e6)}
            message = {"timestamp": stamp, "event": event, "data": dict(data)}
    return json.dumps(message).encode() + b"\r\n"
