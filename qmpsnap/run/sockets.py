"""Asks the kernel which sockets of this host are connected to each other, and so who talks to a monitor.

Blocking. The kernel knows the sockets of our network namespace; it names both ends of a connection by their
inodes, and /proc tells which process has an inode open.
"""

# Paths stay as QEMU spells them:
# ruff: noqa: PTH116

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from qmpsnap.model.host_process import HostProcess
from qmpsnap.run.proc import host_process, socket_owners
from qmpsnap.run.safe_open import kernel_text

# include/uapi/linux/netlink.h, sock_diag.h, unix_diag.h; asm-generic/errno.h
_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_SHOW = 1 | 2 | 4  # UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER
_NAME, _VFS, _PEER = 0, 1, 2  # UNIX_DIAG_NAME, UNIX_DIAG_VFS, UNIX_DIAG_PEER
_ESTABLISHED, _LISTEN = 1, 10  # TCP_ESTABLISHED, TCP_LISTEN, of unix sockets as well
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req: family, protocol, padding, states, ...
_MESSAGE = struct.Struct("=BBBBIII")  # struct unix_diag_msg: family, type, state, padding, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_BUFFER = 1 << 18
_LIMIT = 2.0  # seconds; the kernel answers at once
_IPV4_IN_IPV6 = bytes(10) + b"\xff\xff"
# A listening or connected socket of type stream in /proc/net/unix; net/unix/af_unix.c: unix_seq_show
_LISTED = re.compile(
    r"[0-9a-f]+: [0-9A-F]{8} [0-9A-F]{8} (?P<flags>[0-9A-F]{8}) 0001 0[13] +(?P<inode>\d+)(?: (?P<name>.*))?"
)
_ACCEPTS = 0x10000  # __SO_ACCEPTCON
_INODE_BITS = 0xFFFF_FFFF  # the kernel gives the lower half


class UnixSocket(Struct, frozen=True):
    """A unix socket of this host that listens or is connected.

    Attributes:
        inode: Identifies it.
        listening: Whether it listens; else it is connected.
        name: The name it was bound to, as the process spelled it; an accepted socket has its listener's. An
            abstract name begins with NUL; "" without a name.
        file: The lower 32 bits of the inode of the socket's file; 0 without a file.
        peer: Inode of the socket at its other end; 0 if there is none, or it waits to be accepted; -1 if the
            kernel does not tell.
    """

    inode: int
    listening: bool
    name: str = ""
    file: int = 0
    peer: int = 0


class TcpSocket(Struct, frozen=True):
    """A TCP socket of this host that listens or is connected.

    Attributes:
        inode: Identifies it.
        listening: Whether it listens; else it is connected.
        local: Address and port of its own end.
        remote: Address and port of the other end.
    """

    inode: int
    listening: bool
    local: tuple[str, int]
    remote: tuple[str, int]


def unix_sockets() -> dict[int, UnixSocket] | None:
    """The unix sockets of our network namespace, by inode; None if the kernel does not tell."""
    request = _REQUEST.pack(
        socket.AF_UNIX, 0, 0, 1 << _ESTABLISHED | 1 << _LISTEN, 0, _SHOW, _INODE_BITS, _INODE_BITS
    )
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.settimeout(_LIMIT)
            kernel.bind((0, 0))
            kernel.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, 1, 0) + request)
            return {each.inode: each for each in _answers(kernel) if each.inode}
    except OSError:
        return None


def listed_sockets(pid: int) -> dict[int, UnixSocket]:
    """The unix sockets of the process's network namespace, without their files and peers.

    The kernel prints names as they are, so that a name with a newline can look like a line of the list. An
    inode that is listed twice is left out: it is not known which name is its own.
    """
    try:
        lines = kernel_text(f"/proc/{pid}/net/unix").splitlines()
    except OSError:
        return {}
    found: dict[int, UnixSocket] = {}
    twice = set()
    for line in lines:
        if entry := _LISTED.fullmatch(line):
            inode, name = int(entry["inode"]), entry["name"] or ""
            twice |= {inode} & set(found)
            name = f"\0{name[1:]}" if name.startswith("@") else name
            listening = bool(int(entry["flags"], 16) & _ACCEPTS)
            found[inode] = UnixSocket(inode, listening, name, peer=0 if listening else -1)
    return {inode: each for inode, each in found.items() if inode not in twice}


def clients_of(path: str) -> tuple[HostProcess, ...] | None:
    """The processes that are connected to the unix socket at a path, as a client is to a monitor.

    Connections that still wait to be accepted do not count.

    Args:
        path: Path of the socket.

    Returns:
        The processes that we may see, each once; None if nobody is connected, or the kernel does not tell.
        Empty if somebody is connected, but we may not see who.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    table = unix_sockets()
    if table is None or not stat.S_ISSOCK(status.st_mode):
        return None
    file = socket_file(status)
    peers = {each.peer for each in table.values() if each.file == file and not each.listening} - {0}
    return processes_with(peers) if peers else None


def socket_file(status: os.stat_result) -> int:
    """The inode of a socket's file, as in `UnixSocket.file`."""
    return status.st_ino & _INODE_BITS


def accepted_from(table: Mapping[int, UnixSocket], listener: UnixSocket) -> list[UnixSocket]:
    """The connections of a table that were accepted from a listener: they have its name and its file.

    The kernel counts them to the network namespace of the client.
    """
    return [
        each
        for each in table.values()
        if not each.listening
        and each.name == listener.name
        and (each.file == listener.file or 0 in {each.file, listener.file})
    ]


def tcp_sockets() -> dict[int, TcpSocket]:
    """The TCP sockets of our network namespace that listen or are connected, by inode."""
    found = {}
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = kernel_text(file).splitlines()[1:]
        except OSError:  # a kernel without IPv6
            continue
        for line in lines:
            _, local, remote, state, _, _, _, _, _, inode, *_ = line.split()
            if int(state, 16) in {_ESTABLISHED, _LISTEN} and int(inode):
                listening = int(state, 16) == _LISTEN
                found[int(inode)] = TcpSocket(int(inode), listening, _endpoint(local), _endpoint(remote))
    return found


def tcp_clients_of(host: str, port: int) -> tuple[HostProcess | str, ...] | None:
    """The clients of a monitor at a TCP port, as `clients_of`.

    Args:
        host: Address at which the monitor is reached, as `getpeername` gives it.
        port: The port on which it listens.

    Returns:
        The processes of this host that we may see, and the addresses of clients on other hosts; None if
        nobody is connected, or the address is not this host's, or no process of this host listens there.
    """
    table = tcp_sockets()
    host = host.partition("%")[0].removeprefix("::ffff:")
    listener = _listeners(table)(host, port) if _is_ours(host) else None
    peers, remote = tcp_peers(table, listener) if listener is not None else (set[int](), ())
    return (*processes_with(peers), *remote) if peers or remote else None


def tcp_peers(table: Mapping[int, TcpSocket], listener: TcpSocket) -> tuple[set[int], tuple[str, ...]]:
    """The other ends of a listener's connections: inodes of sockets of this host, and other addresses."""
    listener_of = _listeners(table)
    ends = {(each.local, each.remote): each.inode for each in table.values() if not each.listening}
    clients = {
        remote: ends.get((remote, local))
        for local, remote in ends
        if (found := listener_of(*local)) is not None and found.local == listener.local
    }
    inodes = {inode for inode in clients.values() if inode is not None}
    return inodes, tuple(f"{host}:{number}" for (host, number), inode in clients.items() if inode is None)


def _listeners(table: Mapping[int, TcpSocket]) -> Callable[[str, int], TcpSocket | None]:
    """Finds the listener that accepts connections to an address: at that address, else at all addresses."""
    listeners = {each.local: each for each in table.values() if each.listening}

    def find(host: str, port: int) -> TcpSocket | None:
        every = ("::",) if ":" in host else ("0.0.0.0", "::")  # noqa: S104 - nothing is bound here
        return next((found for name in (host, *every) if (found := listeners.get((name, port)))), None)

    return find


def is_numeric(host: str) -> bool:
    """Whether a host is given by its address, and need not be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_ours(host: str) -> bool:
    """Whether an address is one of this host's: only then something can be bound to it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:  # a link-local one is bound with its interface, which is left out: it counts as another's
        return False
    return True


def processes_with(inodes: set[int]) -> tuple[HostProcess, ...]:
    """The processes that have one of these sockets open, each once, as far as we may see."""
    found = socket_owners(inodes)
    return tuple(host_process(pid) for pid in sorted({pid for owners in found.values() for pid in owners}))


def _answers(kernel: socket.socket) -> Iterator[UnixSocket]:
    while True:
        data = kernel.recv(_BUFFER)
        place = 0
        while place + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, place)
            if kind == _DONE:
                return
            if kind == _ERROR or length < _HEADER.size:
                raise OSError(errno.EIO, "the kernel does not list its sockets")
            yield _socket(data[place + _HEADER.size : place + length])
            place += -(-length // 4) * 4


def _socket(message: bytes) -> UnixSocket:
    _, _, state, _, inode, _, _ = _MESSAGE.unpack_from(message)
    found = {}
    place = _MESSAGE.size
    while place + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, place)
        found[kind] = message[place + _ATTRIBUTE.size : place + length]
        place += -(-max(length, _ATTRIBUTE.size) // 4) * 4
    name = found.get(_NAME, b"")
    return UnixSocket(
        inode=inode,
        listening=state == _LISTEN,
        name=os.fsdecode(name if name.startswith(b"\0") else name.rstrip(b"\0")),
        file=_number(found.get(_VFS, b"")),
        peer=_number(found.get(_PEER, b"")),
    )


def _endpoint(text: str) -> tuple[str, int]:
    """An address and a port of /proc/net/tcp; an IPv4 address is one also within IPv6."""
    address, _, port = text.partition(":")
    words = struct.pack(
        f"={len(address) // 8}I", *struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
    )
    if len(words) > 4 and words.startswith(_IPV4_IN_IPV6):
        words = words[len(_IPV4_IN_IPV6) :]
    family = socket.AF_INET if len(words) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, words), int(port, 16)


def _number(data: bytes) -> int:
    """The first 32 bits, in the host's order; 0 if there are none."""
    return struct.unpack_from("=I", data)[0] if len(data) >= 4 else 0
