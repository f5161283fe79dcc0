"""Finds out why a monitor does not greet: another client is connected to it, or QEMU is stopped."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from functools import partial

from msgspec import Struct

from qmpsnap.model.hints import ONE_MORE_MONITOR
from qmpsnap.model.host_process import HostProcess
from qmpsnap.run.disk import in_thread
from qmpsnap.run.proc import is_stopped
from qmpsnap.run.session.dial import Address, tcp_place
from qmpsnap.run.sockets import clients_of, is_numeric, tcp_clients_of


class Silence(Struct, frozen=True):
    """Why a monitor does not greet.

    Attributes:
        fact: The end of a message; "" if nothing is known.
        hint: What to do about it; "" if nothing is known.
    """

    fact: str = ""
    hint: str = ""


async def why_silent(address: Address, pid: int | None = None, *, peer: object = None) -> Silence:
    """Find out why nobody greets at an address; our own connection to it has to be closed by now.

    Args:
        address: The monitor's address.
        pid: QEMU's process; None: it is not known.
        peer: What our connection reached, as `getpeername` said; None: it reached nothing.
    """
    return await in_thread(partial(_why_silent, address, pid, peer))


def _why_silent(address: Address, pid: int | None, peer: object) -> Silence:
    clients = _clients(address, peer)
    if clients is not None:
        return Silence(f": {_connected(clients)} connected to it", _way(clients))
    if pid is not None and is_stopped(pid):
        return Silence(f": QEMU (process {pid}) is stopped", f"let it continue: kill -CONT {pid}")
    return Silence()


def _clients(address: Address, peer: object) -> tuple[HostProcess | str, ...] | None:
    if isinstance(address, socket.socket):
        return None
    if isinstance(address, str) and not address.startswith("tcp:"):
        return clients_of(address)
    place = address if isinstance(address, tuple) else tcp_place(address)
    if isinstance(peer, tuple):
        return tcp_clients_of(peer[0], peer[1])
    # A name is not looked up: that is what may have taken so long.
    return tcp_clients_of(*place) if place is not None and is_numeric(place[0]) else None


def _way(clients: tuple[HostProcess | str, ...]) -> str:
    """What to do about the clients: one of ours is connected until its operation ends, as a backup does."""
    match clients:
        case (HostProcess() as client,) if client.is_qmpsnap and client.pid != os.getpid():
            way = "wait until that command ends (a backup holds the monitor until its copy is complete)"
        case _:
            way = "end that client"
    return f"{way}; to connect meanwhile, {ONE_MORE_MONITOR}: it serves one client at a time on each"


def _connected(clients: Iterable[HostProcess | str]) -> str:
    """The clients as the subject of a sentence, with its verb."""
    named = [
        "this process itself"
        if isinstance(client, HostProcess) and client.pid == os.getpid()
        else str(client)
        for client in clients
    ]
    if not named:
        return "a process that we may not see is"
    return f"{' and '.join(named)} {'is' if len(named) == 1 else 'are'}"
