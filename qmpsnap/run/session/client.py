"""qemu.qmp's client, fit for long sessions: it keeps no history, and connecting can be cancelled."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable

import anyio
from qemu.qmp import ConnectError, Message, QMPClient, Runstate
from qemu.qmp.events import EventListener
from qemu.qmp.qmp_client import ExecInterruptedError, GreetingError, NegotiationError

from qmpsnap.base_error import first_line
from qmpsnap.errors import ConnectFailed
from qmpsnap.run.log import get_logger
from qmpsnap.run.session.change import settled
from qmpsnap.run.session.dial import Address, Peer, describe, dial, peer_of
from qmpsnap.run.session.recorder import Recorder
from qmpsnap.run.session.silence import why_silent

_NAME = "qmpsnap"  # what qemu.qmp logs of our clients goes to qemu.qmp.protocol.qmpsnap, with `connection`
_READ_LIMIT = 256 * 1024 * 1024  # bytes of one reply
_END_LIMIT = 0.4  # seconds
_AGAIN = 4  # times; one lost reply may come before the greeting, and that to our own answer afterwards

_NUMBERS = itertools.count(1)  # of connections; id() of one that has ended may be that of a later one

_log = get_logger("qmpsnap.session")


class Client(QMPClient):
    """A client that keeps no history, and formats messages only when they are logged.

    qemu.qmp formats every message for its debug log before it checks whether that is enabled.

    Args:
        recorder: Records each message; None: nothing is recorded.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        super().__init__(_NAME, _READ_LIMIT)
        # A logger for each would never be freed.
        self.logger = logging.LoggerAdapter(self.logger, {"connection": next(_NUMBERS)})  # type: ignore[assignment]
        self._recorder = recorder
        self.events.event_filter = lambda _: False
        self._answered = False  # our greeting, which ends the negotiation

    async def _recv(self) -> Message:
        """Receive a message; while connecting, skip those meant for the previous client.

        Events and a late reply for the previous client may precede the greeting, and events
        may overtake the reply to ours, because QEMU sends them from other threads.
        Subscribers start listening only now, so they miss nothing.
        """
        while True:
            message = await super()._recv()
            if self._answered or not self._is_out_of_turn(message):
                return message

    def _is_out_of_turn(self, message: Message) -> bool:
        if self.greeting is None:
            return "QMP" not in message and bool({"event", "return", "error"} & set(message))
        # Our greeting has no id, so its answer has none. Should one without an id be for somebody else,
        # nothing is lost: QEMU does what it is told in order, and has ours before the next command.
        self._answered = "event" not in message and message.get("id") is None
        return not self._answered

    async def _execute(self, msg: Message, assign_id: bool = True) -> Message:  # noqa: ARG002, FBT001, FBT002 - qemu.qmp's
        """Send a command and wait for its reply; called with a message of its own, without an id.

        qemu.qmp sends by a task and waits at a queue for each command, which takes as long as the rest of it.

        Raises:
            ExecInterruptedError: When the link is lost before the reply.
        """
        exec_id = msg["id"] = self._get_exec_id()
        reply = self._pending[exec_id] = Reply()  # type: ignore[assignment]
        try:
            self._do_send(self._cb_outbound(msg))
            return await reply
        finally:
            del self._pending[exec_id]

    def _cb_outbound(self, msg: Message) -> Message:
        if self._recorder is not None:
            self._recorder.record_sent(msg)
        return super()._cb_outbound(msg) if self.logger.isEnabledFor(logging.DEBUG) else msg

    def _cb_inbound(self, msg: Message) -> Message:
        if self._recorder is not None:
            self._recorder.record_received(msg)
        return super()._cb_inbound(msg) if self.logger.isEnabledFor(logging.DEBUG) else msg


class Reply(asyncio.Future[Message]):
    """The reply to one command, or why there will be none: qemu.qmp puts it in, as into a queue.

    Done already when it was given up, and the task that waited has not run since.
    """

    async def put(self, reply: Message) -> None:
        """Take the reply."""
        if not self.done():
            self.set_result(reply)

    def put_nowait(self, error: ExecInterruptedError) -> None:
        """Take what a lost link means."""
        if not self.done():
            self.set_exception(error)


class Tap(EventListener):
    """A listener that passes events on and keeps none.

    qemu.qmp's own listeners keep every event that they accept, in a queue and in a history that is never
    trimmed.
    """

    def __init__(self, sink: Callable[[Message], None]) -> None:
        super().__init__()
        self._sink = sink

    def accept(self, event: Message) -> bool:
        """Pass the event on; return False, so that it is not kept."""
        self._sink(event)
        return False


async def reach(
    address: Address, pid: int | None, *, limit: float, recorder: Recorder | None = None
) -> tuple[socket.socket, Peer, Client]:
    """Connect and negotiate; retry when the first message was meant for the previous client.

    After a failure or cancellation no socket is left open, not even a given one.

    Args:
        address: The address; a connected socket is ours from now on.
        pid: QEMU's process id, where the kernel cannot tell.
        limit: Seconds that the whole call may take.
        recorder: Records the session; None: nothing is recorded.

    Raises:
        ConnectFailed: When nobody listens there, or no QMP comes within the limit.
    """
    ends = anyio.current_time() + limit
    again = 0 if isinstance(address, socket.socket) else _AGAIN
    while True:
        try:
            return await _greeted(address, pid, limit, ends, recorder)
        except ConnectFailed as error:
            if not again or not _was_out_of_turn(error.__cause__):
                raise
            again -= 1
            _log.debug("session.out_of_turn", vm=describe(address), error=error.message)


async def _greeted(
    address: Address, pid: int | None, limit: float, ends: float, recorder: Recorder | None
) -> tuple[socket.socket, Peer, Client]:
    where = describe(address)
    sock: socket.socket | None = None
    with anyio.move_on_after(ends - anyio.current_time()):
        sock = await dial(address)
    if sock is None:
        why = await why_silent(address)
        raise ConnectFailed(
            f"no connection to {where} within {limit:g} s{why.fact}",
            hint=why.hint or "other clients are waiting for the monitor, or the host does not answer",
        )
    try:
        peer, client, reached = peer_of(sock, pid), Client(recorder), _peer_name(sock)
        try:
            await _greet(client, sock, seconds=ends - anyio.current_time(), where=where)
        except TimeoutError:
            missing = "answer to our greeting" if client.greeting else "greeting"
            why = await why_silent(address, peer.pid, peer=reached)
            general = f"another client may be connected to the monitor, or {peer.process} is stopped or busy"
            raise ConnectFailed(
                f"no {missing} from {where} within {limit:g} s{why.fact}", hint=why.hint or general
            ) from None
    except BaseException:
        sock.close()
        raise
    return sock, peer, client


def _peer_name(sock: socket.socket) -> object:
    """What a socket is connected to; None if that has gone already."""
    try:
        return sock.getpeername()
    except OSError:
        return None


async def _greet(client: Client, sock: socket.socket, *, seconds: float, where: str) -> None:
    """Connect the client; after a failure, timeout or cancellation it is IDLE.

    Raises:
        TimeoutError: When greeting and negotiation take longer than `seconds`.
        ConnectFailed: When the data received is not QMP, or the other side closes.
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
        raise ConnectFailed(f"{where} {_why_not(error.exc)}", hint="is it a QMP monitor?") from error


def _was_out_of_turn(failed: BaseException | None) -> bool:
    """Whether the message was QMP, but neither a greeting nor the reply to ours: qemu.qmp missed a key.

    QEMU sends the reply to a command whose client has disconnected to the next client that connects.
    """
    cause = failed.exc if isinstance(failed, ConnectError) else None
    return isinstance(cause, GreetingError | NegotiationError) and isinstance(
        cause.exc, KeyError | AssertionError
    )


def _why_not(cause: Exception) -> str:
    """Describe what was received instead of a greeting."""
    if isinstance(cause, EOFError | OSError):
        return "closed the connection before it was ready"
    if isinstance(cause, NegotiationError):
        return f"refused our greeting: {first_line(cause)}"
    return f"does not speak QMP: {first_line(cause)}"
