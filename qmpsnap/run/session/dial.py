"""Opens the socket of a monitor, and identifies the process at its other end."""

from __future__ import annotations

import asyncio
import grp
import os
import re
import socket
import stat
import struct
from pathlib import Path

import anyio
from msgspec import Struct

from qmpsnap.errors import ConnectFailed
from qmpsnap.run.log import get_logger
from qmpsnap.run.proc import user_name

_log = get_logger("qmpsnap.session")
_LAST_PORT = 65535  # the resolver takes a higher one, and counts from 0 again
_RETRY = 0.05  # seconds; the kernel tells nobody when a listener's backlog has room again

Address = str | tuple[str, int] | socket.socket
"""A unix socket's path, "@NAME" of an abstract one, "tcp:HOST:PORT", (host, port), or a connected socket."""


class Peer(Struct, frozen=True):
    """The process at the other end of a socket.

    Attributes:
        is_unix: Whether it is a unix socket, hence on this machine.
        pid: The process that listens there; None when it cannot be told.
    """

    is_unix: bool
    pid: int | None

    @property
    def process(self) -> str:
        """QEMU as it is called in messages, with its process id if known."""
        return f"QEMU (process {self.pid})" if self.pid else "QEMU"


def describe(address: Address) -> str:
    """Return the address as text; `dial` takes the same form, except for sockets."""
    if isinstance(address, socket.socket):
        return f"socket {address.fileno()}"
    if isinstance(address, tuple):
        return f"tcp:{address[0]}:{address[1]}"
    return address


async def dial(address: Address) -> socket.socket:
    """Connect to the address; a socket is returned as it is.

    Retries while the listener's backlog is full; the time limit is the caller's. After a
    failure or cancellation no socket is left open.

    Raises:
        ConnectFailed: When nobody listens there, with the system's reason.
    """
    if isinstance(address, socket.socket):
        address.setblocking(False)  # noqa: FBT003 - the standard library's own
        return address
    if isinstance(address, tuple):
        return await _dial_tcp(address[0], address[1])
    if address.startswith("tcp:"):
        place = tcp_place(address)
        if place is None:
            raise ConnectFailed(f"{address!r} is not an address of the form 'tcp:HOST:PORT'")
        return await _dial_tcp(*place)
    return await _dial_unix(address)


def tcp_place(address: str) -> tuple[str, int] | None:
    """The host, without IPv6's brackets, and the port of "tcp:HOST:PORT"; None if it is no such address."""
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def peer_of(sock: object, pid: int | None) -> Peer:
    """Identify the process at the other end.

    The kernel names the process that called listen(). The ends of a socket pair have no address, and there
    the kernel names the process that created the pair, which is not taken for QEMU.

    Args:
        sock: A connected socket, or asyncio's view of one; anything else counts as unknown.
        pid: The process id, if the caller knows it.
    """
    if not hasattr(sock, "getsockopt") or sock.family != socket.AF_UNIX:  # type: ignore[attr-defined]
        return Peer(is_unix=False, pid=pid)
    if pid is None and sock.getpeername():  # type: ignore[attr-defined]
        size = struct.calcsize("3i")
        found, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        pid = found or None  # 0: a process that our PID namespace does not show
    return Peer(is_unix=True, pid=pid)


async def _dial_unix(path: str) -> socket.socket:
    is_abstract = path.startswith("@") and not os.path.lexists(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's own
        while True:
            try:
                # Not asyncio's sock_connect: it takes EAGAIN, a full backlog, for a connect under way.
                sock.connect(f"\0{path[1:]}" if is_abstract else path)
            except BlockingIOError:
                await anyio.sleep(_RETRY)
            else:
                break
        if not is_abstract:
            _warn_of_others(path)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise ConnectFailed(_why(path, error), hint=_what_next(error, path)) from error
        raise
    return sock


async def _dial_tcp(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    where = f"tcp:{host}:{port}"
    failure: OSError | None = None
    try:
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConnectFailed(f"cannot look up {where}: {error}") from error
    for family, kind, protocol, _, target in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's own
            await loop.sock_connect(sock, target)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise ConnectFailed(_why(where, failure), hint=_what_next(failure)) from failure


def _why(where: str, error: OSError | None) -> str:
    if isinstance(error, ConnectionRefusedError) and not where.startswith("tcp:") and not _is_socket(where):
        return f"cannot connect to {where}: it is not a socket"
    return f"cannot connect to {where}: {(error and error.strerror) or error or 'no address found'}"


def _is_socket(path: str) -> bool:
    return Path(path).is_socket()


def _what_next(error: OSError | None, path: str = "") -> str:
    match error:
        case ConnectionRefusedError() if not path:
            return "nobody listens there: QEMU has probably ended, or its monitor is elsewhere"
        case ConnectionRefusedError() if not _is_socket(path):
            return "give the PATH of -qmp unix:PATH,server=on,wait=off"
        case FileNotFoundError() if re.fullmatch(r"[^/@]+:\d+", path):
            return f"a TCP port is given as tcp:{path}"
        case FileNotFoundError():
            return "is QEMU running, with -qmp unix:PATH,server=on,wait=off?"
        case ConnectionRefusedError():
            return "the socket exists, but nobody listens on it: QEMU has ended, or does not listen yet"
        case PermissionError():
            return _who_may(path)
        case _:
            return ""


def _who_may(path: str) -> str:
    """Say who owns the socket and how to get access to it, or which directory denies access."""
    me = user_name(os.geteuid())
    for place in (*reversed(Path(path).absolute().parents), Path(path)):
        try:
            known = place.stat()
        except OSError:  # the one above it may not be entered
            break
        kind = "directory" if stat.S_ISDIR(known.st_mode) else "socket"
        denied = f"{kind} {place} is {user_name(known.st_uid)}'s, group {_group(known.st_gid)}, "
        denied += f"mode {stat.S_IMODE(known.st_mode):04o}; you are {me}"
        if not os.access(place, os.X_OK if kind == "directory" else os.W_OK, effective_ids=True):
            enough = "execute" if kind == "directory" else "write"
            return f"{denied}: run as that user (sudo -u), or get permission to {enough} it"
    return f"you are {me}: writing to the socket needs the permissions of QEMU's user"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _warn_of_others(path: str) -> None:
    """Warn when every user of this host may write to the monitor, and so act as QEMU's user."""
    try:
        if not Path(path).stat().st_mode & stat.S_IWOTH:
            return
        enters = all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(path).resolve().parents)
    except OSError:  # it is in another file system, reached through /proc/PID/root, where only root can go
        return
    if enters:
        _log.warning("socket.found_writable_by_others", vm=path, hint=f"chmod o-w {path}")
