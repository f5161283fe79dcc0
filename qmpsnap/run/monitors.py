"""Finds where the QMP monitors of a process can be reached, and who is connected to them. Blocking."""

# Links of /proc need os:
# ruff: noqa: PTH115

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable

from msgspec import Struct

from qmpsnap.model.command_line.monitors import Endpoint
from qmpsnap.model.running_qemu import QmpSocket, SocketState
from qmpsnap.run import proc
from qmpsnap.run.process_paths import is_hidden, path_here
from qmpsnap.run.sockets import (
    UnixSocket,
    accepted_from,
    listed_sockets,
    socket_file,
    tcp_peers,
    tcp_sockets,
    unix_sockets,
)

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # noqa: S104 - nothing is bound here
_OTHER_NETWORK = "it is in another network namespace"
_NOBODY_LISTENS = "QEMU does not listen there"
_NO_PATH = "no path leads to it: it was moved, removed or replaced"
_HIDDEN = "we may not look at it"
_NO_SERVER = "it is not a socket that listens"


class Found(Struct, frozen=True):
    """A monitor, and the sockets of its clients.

    Attributes:
        socket: The monitor; its clients are not named yet.
        peers: Inodes of the clients' sockets.
        listens: Whether the process was seen to listen there.
    """

    socket: QmpSocket
    peers: frozenset[int] = frozenset()
    listens: bool = False


class Monitors:
    """The sockets of this host, as they were when this was made."""

    def __init__(self) -> None:
        self._unix = unix_sockets()
        self._tcp = tcp_sockets()
        self._network = _network("self")

    def find(self, pid: int, endpoints: Iterable[Endpoint]) -> tuple[Found, ...]:
        """Find the monitors of a process.

        Args:
            pid: The process.
            endpoints: Where its command line says that they are.
        """
        endpoints = tuple(endpoints)
        if not endpoints:
            return ()
        inodes = proc.sockets(pid)
        is_near = _network(str(pid)) in {self._network, ""}
        table = self._unix or {}
        if self._unix is None or not is_near:
            table = listed_sockets(pid) | table
        process = _Process(pid, inodes, table, is_near=is_near)
        return tuple(self._found(process, endpoint) for endpoint in endpoints)

    def _found(self, process: _Process, endpoint: Endpoint) -> Found:
        match endpoint.kind:
            case "unix":
                return process.at_name(endpoint, endpoint.path)
            case "abstract":
                return process.at_name(endpoint, f"\0{endpoint.path}")
            case "fd":
                return process.at_descriptor(endpoint)
            case "tcp":
                return self._at_port(process, endpoint)
            case "none":
                return _unreachable(endpoint, _NO_SERVER)

    def _at_port(self, process: _Process, endpoint: Endpoint) -> Found:
        if not process.is_near:
            return _unreachable(endpoint, _OTHER_NETWORK)
        listener = next(
            (
                each
                for each in self._tcp.values()
                if each.listening and each.local[1] == endpoint.port and process.has(each.inode)
            ),
            None,
        )
        if listener is None:
            return _unreachable(endpoint, _NOBODY_LISTENS)
        host = _EVERYWHERE.get(listener.local[0], listener.local[0])
        address = f"tcp:{f'[{host}]' if ':' in host else host}:{endpoint.port}"
        peers, remote = tcp_peers(self._tcp, listener)
        state = SocketState.HELD if peers or remote else SocketState.FREE
        return Found(QmpSocket(address, endpoint.text, state, remote=remote), frozenset(peers), listens=True)


class _Process:
    """A process with its sockets.

    Args:
        pid: The process.
        inodes: Its sockets by descriptor; None if we may not look.
        table: All unix sockets of its network namespace, and of ours.
        is_near: Whether it is in our network namespace.
    """

    def __init__(
        self,
        pid: int,
        inodes: dict[int, int] | None,
        table: dict[int, UnixSocket],
        *,
        is_near: bool,
    ) -> None:
        self._pid = pid
        self._inodes = inodes
        self._own: Collection[int] | None = None if inodes is None else frozenset(inodes.values())
        self._table = table
        self.is_near = is_near

    def has(self, inode: int) -> bool:
        """Whether a socket can be the process's: it is, or we may not look."""
        return self._own is None or inode in self._own

    def at_name(self, endpoint: Endpoint, name: str) -> Found:
        """The monitor at the socket of a name."""
        listeners = (each for each in self._table.values() if each.listening and self.has(each.inode))
        listener = next((each for each in listeners if each.name.rstrip("\0") == name.rstrip("\0")), None)
        return (
            self._of(listener, endpoint) if listener is not None else _unreachable(endpoint, _NOBODY_LISTENS)
        )

    def at_descriptor(self, endpoint: Endpoint) -> Found:
        """The monitor at an inherited descriptor, which listens or is connected already."""
        if self._inodes is None:
            return Found(QmpSocket("", endpoint.text, SocketState.UNKNOWN, why=_HIDDEN))
        own = self._table.get(self._inodes.get(endpoint.number, 0))
        if own is None:
            return _unreachable(endpoint, _NO_SERVER)
        if own.listening:
            return self._of(own, endpoint)
        state = SocketState.HELD if own.peer else SocketState.UNREACHABLE
        peers = frozenset({own.peer} - {0, -1})
        return Found(QmpSocket("", endpoint.text, state, why="QEMU was started with that connection"), peers)

    def _of(self, listener: UnixSocket, endpoint: Endpoint) -> Found:
        served = [each for each in accepted_from(self._table, listener) if self.has(each.inode)]
        peers = frozenset(each.peer for each in served) - {0}
        state = SocketState.HELD if peers else SocketState.FREE
        address, why = self._address(listener)
        text = endpoint.text if endpoint.kind != "fd" else f"{endpoint.text} ({_shown(listener.name)})"
        return Found(QmpSocket(address, text, state, why=why), peers - {-1}, listens=True)

    def _address(self, listener: UnixSocket) -> tuple[str, str]:
        """What leads to the listener, or "" and why nothing does."""
        name = listener.name
        if name.startswith("\0"):
            if not self.is_near:
                return "", _OTHER_NETWORK
            return ("", "its abstract name is padded") if name.endswith("\0") else (f"@{name[1:]}", "")
        path = path_here(self._pid, name, lambda status: _is_of(status, listener)) if name else ""
        if not path and name and is_hidden(self._pid, name):
            return "", _HIDDEN
        return path, "" if path else _NO_PATH


def _is_of(status: os.stat_result, listener: UnixSocket) -> bool:
    return stat.S_ISSOCK(status.st_mode) and listener.file in {0, socket_file(status)}


def _unreachable(endpoint: Endpoint, why: str) -> Found:
    return Found(QmpSocket("", endpoint.text, SocketState.UNREACHABLE, why=why))


def _shown(name: str) -> str:
    return f"@{name[1:]}" if name.startswith("\0") else name


def _network(pid: str) -> str:
    """The network namespace of a process; "" if we may not know."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""
