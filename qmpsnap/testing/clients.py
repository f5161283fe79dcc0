"""What QMP servers for tests do with their clients: one at a time, as QEMU; none outlives the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Clients:
    """Serves clients in turn.

    Args:
        talk: Serves one client until it goes; a client that is gone or sends no JSON is no error.
    """

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._turn = asyncio.Lock()
        self._serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it goes (for asyncio's server)."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio's server runs us in one
        self._serving.add(task)
        try:
            async with self._turn:
                await self._talk(reader, writer)
        except (ConnectionError, ValueError, RecursionError, asyncio.CancelledError):
            pass  # the client went, or sent no JSON, or the server ends
        finally:
            self._serving.discard(task)
            writer.transport.abort()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def end(self) -> None:
        """Disconnect every client."""
        serving = set(self._serving)
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)


def take_commands(text: str) -> tuple[list[object], str]:
    """Split what a client has sent into its complete commands and the rest.

    qemu.qmp ends no command with a newline: objects simply follow each other.
    """
    decoder, commands = json.JSONDecoder(), []
    while text := text.lstrip():
        try:
            command, length = decoder.raw_decode(text)
        except json.JSONDecodeError:
            break  # not all of it has come
        text = text[length:]
        commands.append(command)
    return commands, text
