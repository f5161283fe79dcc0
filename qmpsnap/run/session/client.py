"""qemu.qmp's client, made fit for a long life: nothing is kept, and connecting can be cancelled."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from qemu.qmp import ConnectError, Message, QMPClient, Runstate
from qemu.qmp.events import EventListener
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from qmpsnap.errors import ConnectFailed
from qmpsnap.run.session.change import settled

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["Client", "OutOfTurn", "Tap", "first_line", "greet"]

_NAME = "qmpsnap"  # what qemu.qmp logs of our clients goes to qemu.qmp.protocol.qmpsnap
_READ_LIMIT = 256 * 1024 * 1024  # bytes of one reply
_END_LIMIT = 0.4  # seconds


class Client(QMPClient):
    """A client that keeps no history, and spells messages out only when somebody logs them.

    qemu.qmp formats every message for its debug log before it asks whether anybody reads that.
    """

    def __init__(self) -> None:
        super().__init__(_NAME, _READ_LIMIT)
        self.events.event_filter = lambda _: False

    def _cb_outbound(self, msg: Message) -> Message:
        return super()._cb_outbound(msg) if self.logger.isEnabledFor(logging.DEBUG) else msg

    def _cb_inbound(self, msg: Message) -> Message:
        return super()._cb_inbound(msg) if self.logger.isEnabledFor(logging.DEBUG) else msg


class OutOfTurn(ConnectFailed):
    """What came instead of the greeting, or of the answer to ours, is QMP, but not that.

    QEMU sends the reply to a command whose client went meanwhile to the next one that connects.
    """


class Tap(EventListener):
    """A listener that hands events on and keeps none.

    qemu.qmp's own keep every event they accept, in a queue and in a history that nobody trims.
    """

    def __init__(self, sink: Callable[[Message], None]) -> None:
        super().__init__()
        self._sink = sink

    def accept(self, event: Message) -> bool:
        """Hand the event on; False, so that it is not kept."""
        self._sink(event)
        return False


async def greet(client: Client, sock: socket.socket, *, seconds: float, where: str) -> None:
    """Connect the client; failed, late or cancelled, it is left IDLE.

    Raises:
        TimeoutError: When greeting and negotiation take longer than `seconds`.
        OutOfTurn: When what comes is another's; to connect again helps.
        ConnectFailed: When what comes is not QMP, or the other side closes.
    """
    # In a task that is cancelled once: an anyio scope would cancel qemu.qmp's clean-up as well.
    attempt = asyncio.create_task(client.connect(sock), name="qmpsnap: connect")
    try:
        await asyncio.wait({attempt}, timeout=max(seconds, 0))
    except asyncio.CancelledError:
        attempt.cancel()
        await settled(attempt, limit=_END_LIMIT)
        if client.runstate is not Runstate.IDLE:  # it was through before it heard of the cancellation
            await settled(asyncio.create_task(client.disconnect()), limit=_END_LIMIT)
        raise
    if not attempt.done():
        attempt.cancel()
        await settled(attempt)
    if attempt.cancelled():
        raise TimeoutError
    try:
        attempt.result()
    except ConnectError as error:
        failed = OutOfTurn if _is_out_of_turn(error.exc) else ConnectFailed
        raise failed(f"{where} {_why_not(error.exc)}", hint="is that a QMP monitor?") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_out_of_turn(cause: Exception) -> bool:
    """Whether it was a message at least: qemu.qmp missed a key in it, or its "return"."""
    return isinstance(cause, GreetingError | NegotiationError) and isinstance(
        cause.exc, KeyError | AssertionError
    )


def _why_not(cause: Exception) -> str:
    """Say what was wrong with what came instead of a greeting."""
    if isinstance(cause, EOFError | OSError):
        return "closed the connection before it was ready"
    if isinstance(cause, NegotiationError):
        return f"refused our greeting: {first_line(cause)}"
    return f"does not speak QMP: {first_line(cause)}"
