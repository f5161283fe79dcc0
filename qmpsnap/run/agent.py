"""The QEMU guest agent at a virtio-serial port: sends commands and reads their answers.

The agent is part of the guest: its answers prove nothing, and all that is read from it is bounded, in bytes
and in time.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import anyio

from qmpsnap.errors import CommandFailed, GuestFailed

if TYPE_CHECKING:
    from anyio.abc import ByteStream

_SYNC: Final = b"\xff"
_SYNC_LIMIT_S: Final = 1.0
# guest-exec-status returns up to 16 MiB, which base64 makes a third more, twice.
_ANSWER_BYTES: Final = 48 << 20


class Agent:
    """A guest's agent.

    Args:
        stream: Its port.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._received = bytearray()
        self._lock = anyio.Lock()
        self._synced = False

    async def wait_ready(self) -> None:
        """Return once it answers; there is no event for that, so it is asked every second."""
        async with self._lock:
            await self._sync()

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, limit: float = 30.0
    ) -> object:
        """Send a command; return what the agent returns.

        If an earlier command was cancelled or not answered in time, its late answer is skipped first.

        Args:
            command: As in "guest-info".
            arguments: Its arguments; None: none.
            limit: Seconds that the agent may take.

        Raises:
            CommandFailed: When it answers with an error.
            GuestFailed: When it does not answer in time, its answer is malformed, or its port was closed.

        QGA: any command (qga/qapi-schema.json).
        """
        request = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        async with self._lock:
            try:
                with anyio.fail_after(limit):
                    if not self._synced:
                        await self._sync()
                    self._synced = False  # until this command is answered
                    await self._send(json.dumps(request).encode() + b"\n")
                    answer = _parse(await self._line(), command)
                    self._synced = True
            except TimeoutError as error:
                raise GuestFailed(
                    f"the agent did not answer {command} within {limit:g} s", script=command
                ) from error
        if isinstance(refusal := answer.get("error"), dict):
            desc, kind = str(refusal.get("desc", "")), str(refusal.get("class", ""))
            raise CommandFailed(
                f"the agent refuses {command}: {desc}",
                command=command,
                arguments=dict(arguments or {}),
                qmp_class=kind,
                desc=desc,
            )
        return answer.get("return")

    async def tell(self, command: str) -> None:
        """Send a command that has no answer when it succeeds, such as guest-shutdown."""
        async with self._lock:
            await self._send(json.dumps({"execute": command}).encode() + b"\n")
            self._synced = False

    async def _sync(self) -> None:
        """Skip late answers to earlier commands. QGA: guest-sync-delimited."""
        while True:
            number = secrets.randbelow(1 << 31)
            request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
            with anyio.move_on_after(_SYNC_LIMIT_S):
                # The first byte makes the agent forget a request that has only half arrived.
                await self._send(_SYNC + json.dumps(request).encode() + b"\n")
                while not await self._is_answer(number):
                    pass
                self._synced = True
                return

    async def _is_answer(self, number: int) -> bool:
        line = await self._line()
        if _SYNC not in line:
            return False
        try:
            answer = json.loads(line.rpartition(_SYNC)[2])
        except ValueError:
            return False
        return isinstance(answer, dict) and answer.get("return") == number

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise _closed_error() from error

    async def _line(self) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > _ANSWER_BYTES:
                self._received.clear()
                raise GuestFailed(f"the agent's answer has more than {_ANSWER_BYTES} bytes", script="")
            try:
                self._received += await self._stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                raise _closed_error() from error
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


def _parse(line: bytes, command: str) -> dict[str, object]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GuestFailed(
            f"the agent answered {command} with no JSON: {line[:80]!r}", script=command
        ) from error
    if not isinstance(answer, dict) or not answer.keys() & {"return", "error"}:
        raise GuestFailed(f"the agent answered {command} with neither a result nor an error", script=command)
    return answer


def _closed_error() -> GuestFailed:
    return GuestFailed("the agent's port was closed, as by the end of QEMU", script="")
