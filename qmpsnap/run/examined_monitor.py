"""Looks at a monitor that does not greet: who is connected to it, and whether QEMU is stopped. Blocking."""

from __future__ import annotations

import socket

from qmpsnap.plan.diagnosis.facts import Monitor
from qmpsnap.run.proc import host_process, is_stopped
from qmpsnap.run.session.dial import peer_of, tcp_place
from qmpsnap.run.sockets import clients_of, tcp_clients_of

_LIMIT = 0.5  # seconds; whoever listens need not answer


def examine_monitor(address: str) -> Monitor | None:
    """Who is connected to a monitor, and whether the process that listens there is stopped.

    Args:
        address: Its path, or tcp:HOST:PORT.

    Returns:
        What is known; None if nobody listens there, or what listens there speaks another language.
    """
    place = tcp_place(address) if address.startswith("tcp:") else None
    try:
        if place is not None:
            with socket.create_connection(place, _LIMIT) as ours:
                return None if _is_other(ours) else Monitor(address, tcp_clients_of(*ours.getpeername()[:2]))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ours:
            ours.settimeout(_LIMIT)
            ours.connect(address)
            pid = peer_of(ours, None).pid
            if _is_other(ours):
                return None
    except BlockingIOError:  # others wait for the monitor as well
        pid = None
    except (OSError, ValueError):
        return None
    stopped = host_process(pid) if pid is not None and is_stopped(pid) else None
    return Monitor(address, clients_of(address), stopped)


def _is_other(ours: socket.socket) -> bool:
    """Whether what the other side has sent is no greeting of QMP's: a human monitor, VNC, a console."""
    try:
        said = ours.recv(1)
    except OSError:  # also: nothing in time
        return False
    return said not in {b"", b"{"}
