"""The ways to a machine: connect to a running QEMU, or launch one."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qmpsnap.model.arguments import Word, check, number, path_text, refuse
from qmpsnap.run import session as sessions
from qmpsnap.run.images import Images
from qmpsnap.run.live import LiveTarget
from qmpsnap.run.paths import absolute
from qmpsnap.run.process import start_qemu
from qmpsnap.run.session import Session
from qmpsnap.vm import VM

if TYPE_CHECKING:
    from qemu.qmp import QMPClient


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
        address: Path of a unix socket, "tcp:HOST:PORT", (host, port), a connected socket, which becomes ours,
            or a connected QMPClient, which stays yours.
        shared_fs: Whether QEMU's files are visible here; None: detect it.
        state_dir: Directory of records; None: beside each base image.
        pid: QEMU's process id, if the socket does not give it.
        reply_limit: Seconds that QEMU may take to answer a query.
        greeting_limit: Seconds that QEMU may take to greet.
        name: What the machine is called in logs; "": its address.

    Raises:
        BadArgument: When an argument is invalid.
        ConnectFailed: When there is no QMP server there, or no greeting in time.
    """
    _check_address(address)
    for parameter, value, kind in (
        ("shared_fs", shared_fs, bool | None),
        ("pid", pid, int | None),
        ("name", name, str),
    ):
        check(parameter, value, kind)
    if pid is not None and pid < 1:
        refuse("pid", pid, "give a process id")
    number("reply_limit", reply_limit)
    number("greeting_limit", greeting_limit)
    directory = absolute("state_dir", state_dir) if state_dir is not None else ""

    def link() -> AbstractAsyncContextManager[Session]:
        if isinstance(address, str | tuple | socket.socket):
            return sessions.connect(address, pid=pid, reply_limit=reply_limit, greeting_limit=greeting_limit)
        return sessions.adopt(address, pid=pid, reply_limit=reply_limit)

    target = LiveTarget(
        link,
        again=isinstance(address, str | tuple),
        shared_fs=shared_fs,
        images=Images(),
        name=name or (address if isinstance(address, str) else "qemu"),
    )
    async with target:
        yield VM(target, state_dir=directory)


@asynccontextmanager
async def launch(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    log: str | os.PathLike[str] | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    name: str = "",
) -> AsyncIterator[VM]:
    """Start QEMU as a child and drive it; QEMU and all that it started end with the block.

    QEMU also ends when this process is killed. Its monitor is a socket pair, which no other client can use:
    for others give it a second monitor (`-qmp unix:PATH,...`).

    Args:
        argv: The program and its arguments, without a monitor for us.
        cwd: Its working directory; None: ours.
        env: Its whole environment; None: ours. `{**os.environ, "NAME": "value"}` adds to ours.
        log: File that receives its output; the error has the end of it in any case, if QEMU dies.
        state_dir: Directory of records; None: beside each base image.
        name: What the machine is called in logs and errors; "": "qemu".

    Raises:
        BadArgument: When an argument is invalid.
        ConnectFailed: When QEMU ends before it is ready; the message says how, with its last output. Every
            later LinkLost does, too.
    """
    check("name", name, str)
    called = name or "qemu"
    directory = "" if state_dir is None else absolute("state_dir", state_dir)
    async with start_qemu(
        _words(argv),
        cwd=None if cwd is None else path_text("cwd", cwd),
        env=_environment(env),
        log=None if log is None else Path(path_text("log", log)),
        name=called,
    ) as process:

        def link() -> AbstractAsyncContextManager[Session]:
            return sessions.connect(
                process.socket, pid=process.pid, name=called, last_words=process.last_words
            )

        target = LiveTarget(link, again=False, shared_fs=None, images=Images(), name=called)
        async with target:
            yield VM(target, state_dir=directory)


def _words(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(argv, str | bytes) or not hasattr(argv, "__iter__"):
        refuse("argv", argv, "give the program and its arguments", hint="argv=shlex.split(...)")
    words = [word.__fspath__() if hasattr(word, "__fspath__") else word for word in argv]
    for word in words:
        check("argv", word, Word)
    if not words or not words[0]:
        refuse("argv", argv, "give the program and its arguments")
    return words


def _environment(env: Mapping[str, str] | None) -> dict[str, str] | None:
    if env is None:
        return None
    check("env", env, Mapping[Word, Word])
    for name in env:
        if not name or "=" in name:
            refuse("env", name, "no environment variable can have that name")
    return dict(env)


def _check_address(address: object) -> None:
    """Refuse anything that is not an address, before it is used as a file name."""
    if isinstance(address, tuple):
        host, port = address if len(address) == 2 else (None, None)
        if not isinstance(host, str) or not isinstance(port, int) or not 0 < port < 1 << 16:
            refuse("address", address, "give (host, port), the port from 1 to 65535")
    elif isinstance(address, str):
        path_text("address", address)
    elif not isinstance(address, socket.socket) and not hasattr(address, "execute_msg"):
        refuse("address", address, "give a path, 'tcp:HOST:PORT', (host, port), a socket or a QMPClient")
