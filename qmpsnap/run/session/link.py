"""One QMP connection: commands, events, and the loss of the link.

Commands run in tasks of their own, so that one that changes something is awaited even if its caller
is cancelled. No task outlives its session.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, suppress

import anyio
import anyio.lowlevel
from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate
from qemu.qmp.message import DeserializationError
from qemu.qmp.protocol import StateError
from qemu.qmp.qmp_client import BadReplyError

from qmpsnap.base_error import first_line
from qmpsnap.errors import Changed, CommandFailed, LinkLost, Malformed, TargetError
from qmpsnap.run.current_operation import CURRENT_OPERATION
from qmpsnap.run.lock_holders import refusal_hint
from qmpsnap.run.log import get_logger
from qmpsnap.run.session.change import Change, Limits
from qmpsnap.run.session.client import Tap
from qmpsnap.run.session.dial import Peer
from qmpsnap.run.session.event import Event, Subscriptions, read_event

LastWords = Callable[[], Awaitable[str]]

_log = get_logger("qmpsnap.session")
_END_LIMIT = 0.4  # seconds for each step of an ending: a lost link is told within one second


class Session:
    """One QMP connection; made by `connect` and `adopt`, and closed when their block ends.

    Attributes:
        address: The address as text.
        is_unix: Whether it is a unix socket, hence on this machine.
        peer_pid: The process that listens at the other end of a unix socket; None if not known.
        lost: Set once no command can be answered any more.
        close_reason: Why it was lost, or "".
        trace: Called with {"execute": ..., "arguments": {...}} just before each command is sent.
    """

    def __init__(
        self,
        client: QMPClient,
        peer: Peer,
        limits: Limits,
        *,
        address: str,
        owned: socket.socket | None,
        last_words: LastWords | None = None,
    ) -> None:
        self.address = address
        self.is_unix = peer.is_unix
        self.peer_pid = peer.pid
        self._process = peer.process
        self.lost = anyio.Event()
        self.close_reason = ""
        self.trace: Callable[[dict[str, object]], None] | None = None
        self._client = client
        self._limits = limits
        self._owned = owned  # the socket of a client that we made; None: the embedder's client
        self._child = last_words
        self._garbled = False  # the link ended because the other side did not speak QMP
        self._last_words = ""  # the reason of QEMU's SHUTDOWN
        self._closing = False
        self._abandoning = False
        self._silent = False  # it was said that QEMU does not answer
        self._calls: dict[asyncio.Task[object], object] = {}  # whom each is for
        self._subscriptions = Subscriptions()
        self._disconnecting: asyncio.Task[str] | None = None
        self._tap = Tap(self._on_event)
        client.register_listener(self._tap)
        self._watch = asyncio.create_task(self._watch_link(), name="qmpsnap: link")

    async def query(
        self, command: str, arguments: Mapping[str, object] | None = None, /, **more: object
    ) -> object:
        """Ask QEMU something that changes nothing.

        A cancelled query returns at once, and QEMU's late answer is dropped.

        Args:
            command: Name of the command.
            arguments: Its arguments.
            more: Further arguments, those whose names are Python identifiers.

        Raises:
            CommandFailed: When QEMU answers with an error.
            TargetError: When no answer comes within the reply limit.
            LinkLost: When the link is lost before the answer; `changed` is NO.
            Malformed: When the answer is not QMP.
        """
        (reply,) = await self.ask((command, {**(arguments or {}), **more}))
        return reply

    async def ask(self, *queries: tuple[str, Mapping[str, object]]) -> list[object]:
        """Ask QEMU several things in one go, each without waiting for the answer to the one before.

        As `query`, with the answers in the order of the queries; the first that fails says why.
        """
        calls = [self._send(command, dict(arguments), in_doubt=Changed.NO) for command, arguments in queries]
        _, late = await asyncio.wait(calls, timeout=min(self._limits.silence, self._limits.reply))
        if late:
            if not self._silent:
                command = next(name for call, (name, _) in zip(calls, queries, strict=True) if call in late)
                _log.warning("query.delayed", vm=self.address, command=command, seconds=self._limits.silence)
            self._silent = True  # said once, however many wait
            _, late = await asyncio.wait(calls, timeout=max(self._limits.reply - self._limits.silence, 0))
        self._silent &= bool(late)
        for call, (command, _) in zip(calls, queries, strict=True):
            if call in late:
                raise TargetError(
                    f"QEMU did not answer {command!r} within {self._limits.reply:g} s",
                    hint=f"{self._process} may be stopped, or busy for another client",
                )
        return [call.result() for call in calls]

    async def change(
        self, command: str, arguments: Mapping[str, object] | None = None, *, fd: int | None = None
    ) -> object:
        """Send a command that changes something; wait for its reply, however long it takes.

        If it is cancelled before it is sent, nothing is sent. If it is cancelled later, the reply is awaited
        for at most 30 s, then the cancellation is raised. `begin` does the same, but also tells the caller
        the outcome.

        Args:
            command: What is sent.
            arguments: With which arguments.
            fd: A descriptor that goes with it, over a unix socket; it stays the caller's.

        Raises:
            CommandFailed: When QEMU answers with an error.
            LinkLost: When the link is lost before the reply, or none came within 30 s after a
                cancellation. `changed` is UNKNOWN, or NO when the command was never sent.
            Malformed: When the reply is not QMP; `changed` is UNKNOWN.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        if fd is not None:
            with suppress(QMPError, OSError):  # the command then says that it got none
                self._client.send_fd_scm(fd)
        return await self.begin(command, arguments).reply()

    def begin(self, command: str, arguments: Mapping[str, object] | None = None) -> Change:
        """Send a command that changes something; `Change.reply` waits for its reply.

        Raises:
            LinkLost: When the link was lost before; nothing was sent.
        """
        sent = dict(arguments or {})
        call = self._send(command, sent, in_doubt=Changed.UNKNOWN)
        return Change(call, command, sent, address=self.address, limits=self._limits)

    def subscribe(
        self, sink: Callable[[Event], None], *, lost: Callable[[], None] | None = None
    ) -> AbstractContextManager[None]:
        """Call `sink` with each event while the block lasts, and `lost` once after the last.

        Events come in QEMU's order, each before the reply that follows it on the wire reaches
        its waiter. Both are called by the event loop and must not block; what they raise goes to
        the loop's exception handler. Nothing is kept.
        """
        return self._subscriptions.subscribe(sink, lost)

    async def wait_lost(self) -> None:
        """Return once the link is lost; `close_reason` says why."""
        await self.lost.wait()

    def link_lost(self, step: str, *, changed: Changed = Changed.UNKNOWN, known: str = "") -> LinkLost:
        """Make the error that says that the link was lost while `step` was in flight."""
        reason = self.close_reason or "no answer"
        return LinkLost(
            f"lost {self.address} with {step} in flight: {reason}{'; ' if known else ''}{known}",
            step=step,
            changed=changed,
            hint="reconnect; qmpsnap chain and qmpsnap jobs show the outcome",
        )

    async def close(self) -> None:
        """End the session, and its client if that is ours; called when the block ends."""
        self._closing = True
        await self._give_up()
        if self._owned is not None:
            await self._disconnected()
            await asyncio.wait({self._watch}, timeout=_END_LIMIT)
        self._watch.cancel()
        await asyncio.wait({self._watch})
        self._client.remove_listener(self._tap)
        if not self.lost.is_set():
            self._set_lost("the session was closed")

    def _send(self, command: str, arguments: dict[str, object], *, in_doubt: Changed) -> asyncio.Task[object]:
        if self.lost.is_set():
            raise self.link_lost(repr(command), changed=Changed.NO)
        if self.trace is not None:
            self.trace({"execute": command, "arguments": arguments})
        call = asyncio.create_task(self._execute(command, arguments, in_doubt), name=f"qmpsnap: {command}")
        self._calls[call] = CURRENT_OPERATION.get()
        call.add_done_callback(self._forget)
        return call

    def _forget(self, call: asyncio.Task[object]) -> None:
        self._calls.pop(call, None)
        if not call.cancelled():
            call.exception()  # a caller that gave up does not ask: asyncio need not complain

    async def _execute(self, command: str, arguments: dict[str, object], in_doubt: Changed) -> object:
        """Run one command in qemu.qmp; its errors become ours."""
        try:
            return await self._client.execute(command, arguments or None)
        except ExecuteError as error:
            raise CommandFailed(
                f"QEMU refused {command!r}: {error}",
                command=command,
                arguments=arguments,
                qmp_class=error.error_class,
                desc=str(error),
                hint=await refusal_hint(str(error), arguments, pid=self.peer_pid),
            ) from error
        except BadReplyError as error:
            text = f"QEMU's reply to {command!r} is not QMP: {error.error_message}"
            raise Malformed(text, changed=in_doubt) from error
        except (QMPError, OSError, EOFError, asyncio.CancelledError) as error:
            # Cancelled by `_give_up` alone: nobody else has this task.
            if isinstance(error, StateError):
                in_doubt = Changed.NO  # qemu.qmp did not send it
            if not self._closing and not self._abandoning:
                with anyio.move_on_after(2 * _END_LIMIT):  # the reason comes right behind
                    await self.lost.wait()
            if self._garbled:
                text = f"no answer to {command!r} from {self.address}: {self.close_reason}"
                raise Malformed(text, changed=in_doubt) from error
            raise self.link_lost(repr(command), changed=in_doubt) from error

    def _on_event(self, message: Message) -> None:
        event = read_event(message)
        if event is None:
            return
        if event.name == "SHUTDOWN":
            self._last_words = str(event.data.get("reason", ""))
        self._subscriptions.deliver(event)

    async def _watch_link(self) -> None:
        """Wait for the end of the link, and notify every waiter.

        qemu.qmp sets its event and clears it in one go, so a late waiter would wait
        for the next change. Hence the state is checked first, with no await in between. Any change
        is final here, also if the embedder reconnects the same client.
        """
        if self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        reason = "the client was disconnected"
        if self._owned is not None:
            reason = await self._disconnected()
        if self._last_words and not self._closing:
            reason = f"QEMU ended ({self._last_words})"
        if self._child is not None and not self._closing and (words := await self._child()):
            reason = f"QEMU {words}"
        self._set_lost(reason)
        if not self._closing:
            _log.info("session.lost", vm=self.address, reason=reason)
        if self._calls:
            # qemu.qmp ends them as it disconnects; where its disconnect hangs, we do.
            await asyncio.wait(set(self._calls), timeout=_END_LIMIT)
        await self._give_up()

    async def abandon(self, owner: object = None) -> None:
        """Stop waiting for commands in flight: each raises LinkLost, with an unknown outcome.

        The session stays usable; QEMU's late answers are dropped.

        Args:
            owner: Whose (see `run/current_operation.py`); None: all.
        """
        self._abandoning = True
        try:
            await self._give_up(owner)
        finally:
            self._abandoning = False

    async def _give_up(self, owner: object = None) -> None:
        await asyncio.sleep(0)  # a task that has not begun could not say why it ends
        calls = {call for call, whose in self._calls.items() if owner is None or whose is owner}
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)

    def _set_lost(self, reason: str) -> None:
        self.close_reason = reason
        self.lost.set()
        self._subscriptions.deliver_lost()

    async def _disconnected(self) -> str:
        """Disconnect the client, once for all callers; return why the link ended."""
        if self._disconnecting is None:
            self._disconnecting = asyncio.create_task(self._disconnect(), name="qmpsnap: disconnect")
        await asyncio.wait({self._disconnecting})
        return self._disconnecting.result()

    async def _disconnect(self) -> str:
        ending = asyncio.create_task(self._client.disconnect())
        await asyncio.wait({ending}, timeout=_END_LIMIT)
        if not ending.done() and self._owned is not None:
            with suppress(OSError):
                self._owned.shutdown(socket.SHUT_RDWR)  # what waits for QEMU to read ends now
            await asyncio.wait({ending}, timeout=_END_LIMIT)
        if not ending.done():
            ending.cancel()
            await asyncio.wait({ending})
        error = asyncio.CancelledError() if ending.cancelled() else ending.exception()
        match error:
            # EOF or a reset is what the end of a link looks like, after `quit` for instance.
            case _ if self._closing:
                return "the session was closed"
            case None | EOFError() | asyncio.CancelledError():
                return "the other side closed it"
            case DeserializationError() if not error.raw.endswith(b"\n"):
                return "the other side closed it in the middle of a message"
            case QMPError() | ValueError() | RecursionError():
                self._garbled = True
                return f"the data received is not QMP: {first_line(error)}"
            case _:
                return str(error) or type(error).__name__
