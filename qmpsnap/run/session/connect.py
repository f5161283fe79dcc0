"""How a session begins and ends: on a connection of our own, or on a client of the embedder's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qemu.qmp import QMPClient, Runstate

from qmpsnap.errors import ConnectFailed
from qmpsnap.model.hints import start_hint
from qmpsnap.run.log import get_logger
from qmpsnap.run.session.change import Limits, settled
from qmpsnap.run.session.client import reach
from qmpsnap.run.session.dial import Address, describe, peer_of
from qmpsnap.run.session.link import LastWords, Session
from qmpsnap.run.session.recorder import Recorder

_log = get_logger("qmpsnap.session")


@asynccontextmanager
async def connect(
    address: Address,
    *,
    pid: int | None = None,
    reply_limit: float = 60.0,
    greeting_limit: float = 5.0,
    name: str = "",
    last_words: LastWords | None = None,
    recorder: Recorder | None = None,
) -> AsyncIterator[Session]:
    """Connect to a QEMU's monitor for the length of a block.

    After a failure or cancellation no socket and no task is left. If QEMU has gone meanwhile, leaving the
    block raises nothing.

    Args:
        address: Path of a unix socket, "tcp:HOST:PORT", (host, port), or a connected socket,
            which is ours from now on and is closed with the block.
        pid: QEMU's process, where the kernel cannot tell: at the end of a socket pair.
        reply_limit: Seconds that a query may take.
        greeting_limit: Seconds that connecting may take, the greeting included.
        name: The machine's name in errors; "" for the address.
        last_words: For a QEMU that is our child: how it ended; "" while it runs.
        recorder: Records each message; None: nothing is recorded.

    Raises:
        ConnectFailed: When nobody listens there, or no QMP comes within the limit.
    """
    where = name or describe(address)
    try:
        sock, peer, client = await reach(address, pid, limit=greeting_limit, recorder=recorder)
    except ConnectFailed as error:
        if last_words is not None and (words := await last_words()):
            raise ConnectFailed(f"{where} has not started: QEMU {words}", hint=start_hint(words)) from error
        raise
    try:
        session = Session(client, peer, Limits(reply_limit), address=where, owned=sock, last_words=last_words)
        try:
            _log.debug("session.connected", vm=where, pid=peer.pid)
            yield session
        finally:
            await settled(asyncio.create_task(session.close()))
    finally:
        sock.close()


@asynccontextmanager
async def adopt(
    client: QMPClient, *, pid: int | None = None, reply_limit: float = 60.0
) -> AsyncIterator[Session]:
    """Use a connected client of the embedder while the block lasts.

    Afterwards the client is as before: connected, with its own listeners, their queues and history.

    Args:
        client: The client, in state RUNNING.
        pid: QEMU's process, where the kernel cannot tell: at the end of a socket pair.
        reply_limit: Seconds that a query may take.

    Raises:
        ConnectFailed: When it is not connected.
    """
    if client.runstate is not Runstate.RUNNING:
        state = client.runstate.name
        raise ConnectFailed(
            f"the given QMPClient is {state}, not connected", hint="await its connect() first"
        )
    writer: asyncio.StreamWriter | None = getattr(
        client, "_writer", None
    )  # there is no public way to its socket
    peer = peer_of(writer and writer.get_extra_info("socket"), pid)
    session = Session(
        client, peer, Limits(reply_limit), address=client.name or "the given client", owned=None
    )
    try:
        yield session
    finally:
        await settled(asyncio.create_task(session.close()))
