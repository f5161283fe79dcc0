"""Requests to our guest, over its port: each is a script, and is answered with its status and its output."""

from __future__ import annotations

import base64
import binascii
import math
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio

from qmpsnap.errors import GuestFailed
from qmpsnap.testing.initramfs import STARTED
from qmpsnap.testing.shell import MIB, Ran, shorten
from qmpsnap.testing.witness import Witness

if TYPE_CHECKING:
    from anyio.abc import ByteStream

_EOT: Final = "\x04"
_SILENCE_S: Final = 4.0
_BLOCK: Final = 16 * 1024


class Requests:
    """Sends requests one after the other, also to a guest that was reverted meanwhile.

    Args:
        stream: The port.
        witness: Says what has become of a guest that does not answer.
    """

    def __init__(self, stream: ByteStream, witness: Witness) -> None:
        self._stream = stream
        self._witness = witness
        self._received = bytearray()
        self._lock = anyio.Lock()
        self._owed = 0

    async def exchange(
        self,
        script: str | Callable[[], str],
        *,
        limit: int,
        patience: float,
        most: int = MIB,
        raw: bytes = b"",
        mark: str = "",
        size: int = 0,
        ends: bool = False,
    ) -> Ran:
        """Send a script, and return its status and output; for the arguments see `Guest._ask`.

        It is an answer to a script that `ends` the guest, too, when the port is closed or the agent starts
        again after the script has begun.
        """
        token = secrets.token_hex(4)
        text = ""
        async with self._lock:
            try:
                with anyio.fail_after(patience):
                    answer = None
                    while answer is None:
                        text = text_of(script).strip(" ")
                        # A byte more than what is asked for tells whether there is more.
                        request = f"{_EOT}{token} {limit} {most + 1} {len(text.encode())} {text}{_EOT}"
                        await self._send(request.encode(), raw)
                        answer = await self._answer(token, text, mark, size, ends=ends)
            except TimeoutError as error:
                message = f"the guest did not answer {shorten(text)!r} within {patience:g} s"
                raise await self._witness.explain(message, text) from error
            except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
                message = "the guest's port was closed, as by the end of QEMU"
                raise await self._witness.explain(message, text) from error
        status, output = answer
        return Ran(status, output[:most], cut=len(output) > most)

    async def _send(self, request: bytes, raw: bytes) -> None:
        """Send a request, and what its script reads from the port."""
        # The script of a cancelled call waits for at most so many bytes more; what it does not read, the
        # agent skips until the next request.
        await self._stream.send(bytes(self._owed))
        self._owed = len(raw)
        await self._stream.send(request)
        for at in range(0, len(raw), _BLOCK):
            await self._stream.send(raw[at : at + _BLOCK])
            self._owed -= len(raw[at : at + _BLOCK])

    async def _answer(
        self, token: str, script: str, mark: str, size: int, *, ends: bool
    ) -> tuple[int, bytes] | None:
        """Read the answer of that token, past what is left of earlier ones; None: the request was lost.

        So it is when the guest was reverted to a moment in which it read raw bytes. As the agent takes its
        requests one after the other, it is lost if a later one is answered first.
        """
        encoded: list[str] | None = None
        output = b""
        probe, may_be_lost = secrets.token_hex(4), True
        while True:
            try:
                with anyio.move_on_after(_SILENCE_S if may_be_lost else math.inf) as silence:
                    line = await self._line()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                if ends and encoded is not None:
                    return 0, b""
                raise
            if silence.cancelled_caught:
                await self._stream.send(f"{_EOT}{probe} 0 1 1 :{_EOT}".encode())
                continue
            if line.startswith(token) and line != f"{token} begin":
                break
            if may_be_lost and line.startswith(probe):
                return None
            may_be_lost = may_be_lost and encoded is None and line not in {STARTED, f"{token} begin"}
            if line == STARTED and encoded is not None:
                if ends:
                    return 0, b""
                raise GuestFailed(
                    f"the guest's agent was killed, and has started again, during {shorten(script)!r}",
                    script=script,
                )
            if mark and line == mark:
                output = await self._exactly(size)
            elif encoded is not None:
                encoded.append(line)
            elif line == f"{token} begin":
                encoded = []
        _, status, *printed = line.split(" ", 2)
        if encoded is None:
            return int(status), output or "".join(printed).encode()
        try:
            return int(status), base64.b64decode("".join(encoded), validate=True)
        except binascii.Error as error:
            raise GuestFailed("the guest's answer is broken", script="") from error

    async def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            self._received += await self._stream.receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def _line(self) -> str:
        while (end := self._received.find(b"\n")) < 0:
            self._received += await self._stream.receive()
        line = self._received[:end].decode(errors="replace")
        del self._received[: end + 1]
        return line


def text_of(script: str | Callable[[], str]) -> str:
    """The text of a script, or of what returns it."""
    return script if isinstance(script, str) else script()
