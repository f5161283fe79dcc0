"""The ways to a machine: connect to a running QEMU, or launch one."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qmpsnap.run import session as sessions
from qmpsnap.run.images import Images
from qmpsnap.run.live import LiveTarget
from qmpsnap.run.process import start_qemu
from qmpsnap.vm import VM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from qemu.qmp import QMPClient

    from qmpsnap.run.session import Session

__all__ = ["connect", "launch"]


@asynccontextmanager
async def connect(
    address: str | tuple[str, int] | socket.socket | QMPClient,
    *,
    shared_fs: bool | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    pid: int | None = None,
    reply_limit: float = 60.0,
    greeting_limit: float = 5.0,
    name: str = "",
) -> AsyncIterator[VM]:
    """Drive a running QEMU; the connection lasts as long as the block.

    Args:
        address: Path of a unix socket, "tcp:HOST:PORT", (host, port), a connected socket that is ours
            from now on, or a connected QMPClient that stays yours.
        shared_fs: Whether we see the files that QEMU sees; None: found out.
        state_dir: Where records go; None: beside each base image.
        pid: QEMU's process where the socket does not tell it.
        reply_limit: Seconds that QEMU may take to answer a question.
        greeting_limit: Seconds that QEMU may take to greet.
        name: How the machine is called in logs; "": by the address.

    Raises:
        ConnectFailed: When there is no QMP there, or no greeting in time.
    """

    def link() -> AbstractAsyncContextManager[Session]:
        if isinstance(address, str | tuple | socket.socket):
            return sessions.connect(address, pid=pid, reply_limit=reply_limit, greeting_limit=greeting_limit)
        return sessions.adopt(address, pid=pid)

    target = LiveTarget(
        link,
        again=isinstance(address, str | tuple),
        shared_fs=shared_fs,
        images=Images(),
        name=name or (address if isinstance(address, str) else "qemu"),
    )
    async with target:
        yield VM(target, state_dir=str(Path(state_dir).absolute()) if state_dir is not None else "")


@asynccontextmanager
async def launch(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: str | Path | None = None,
    log: Path | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    name: str = "",
) -> AsyncIterator[VM]:
    """Start QEMU as a child and drive it; it and all that it started end with the block.

    It also ends when this process is killed. Its monitor is a socket pair, so no other client can
    take it, and none can reach it later: for that give it a second monitor (`-qmp unix:PATH,...`).

    Args:
        argv: The program and its arguments, without a monitor for us.
        cwd: Its working directory.
        log: File that takes its standard error; None: its end is in the error if it dies.
        state_dir: Where records go; None: beside each base image.
        name: How the machine is called in logs; "": "qemu".

    Raises:
        ConnectFailed: When QEMU ends before it greets; the message has its last words.
    """
    async with (
        start_qemu([os.fspath(word) for word in argv], cwd=cwd, log=log) as process,
        connect(
            process.socket,
            state_dir=state_dir,
            pid=process.pid,
            name=name or "qemu",
        ) as vm,
    ):
        yield vm
