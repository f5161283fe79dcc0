"""Finds the QEMUs of this host, by what their processes run, never by what they are called.

A process is a QEMU if its executable, or a file that it has mapped, is a QEMU; or if it listens where its
command line names a QMP monitor. Nothing is asked of QEMU: a monitor that somebody holds is not disturbed.
Blocking.
"""

# Links of /proc need os:
# ruff: noqa: PTH115

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from qmpsnap.model.command_line.monitors import machine_name, qmp_endpoints
from qmpsnap.model.command_line.options import Option
from qmpsnap.model.host_process import HostProcess, program_of
from qmpsnap.model.running_qemu import RunningQemu
from qmpsnap.run.monitors import Found, Monitors
from qmpsnap.run.open_disks import open_disks
from qmpsnap.run.proc import arguments, host_process, pids, socket_owners
from qmpsnap.run.process_options import READCONFIG, process_options
from qmpsnap.run.safe_open import kernel_text

_SYSTEM: Final = re.compile(r"\.?qemu-(?:system-[\w.-]+|kvm[\w.-]*)")
_DAEMON: Final = re.compile(r"\.?qemu-storage-daemon[\w.-]*")
_DELETED: Final = " (deleted)"  # fs/d_path.c: the package was upgraded meanwhile
_MONITOR: Final = frozenset({"-qmp", "-qmp-pretty", "-mon", "--qmp", "--mon", READCONFIG})


def running_qemus() -> tuple[RunningQemu, ...]:
    """The QEMUs and the storage daemons that we see, by process id."""
    monitors = Monitors()
    seen = [found for pid in pids() if (found := _seen(pid, monitors)) is not None]
    owners = socket_owners({peer for each in seen for monitor in each.monitors for peer in monitor.peers})
    clients = {pid: host_process(pid) for pid in {pid for found in owners.values() for pid in found}}
    named = {peer: [clients[pid] for pid in found] for peer, found in owners.items()}
    running = (_running(each, named) for each in seen)
    return tuple(qemu for qemu in running if qemu.process.user)  # else it has ended meanwhile


class _Seen(Struct, frozen=True):
    pid: int
    daemon: bool
    options: tuple[Option, ...]
    monitors: tuple[Found, ...]


def _seen(pid: int, monitors: Monitors) -> _Seen | None:
    """The process, if it is a QEMU or a storage daemon."""
    argv = arguments(pid)
    if not argv:
        return None  # it has ended, or is the kernel's
    daemon = _is_program(pid, argv, _DAEMON)
    is_qemu = daemon or _is_program(pid, argv, _SYSTEM)
    if not is_qemu and not _MONITOR.intersection(argv):
        return None
    options = process_options(pid, argv)
    found = monitors.find(pid, qmp_endpoints(options, daemon=daemon))
    if not is_qemu and not any(monitor.listens for monitor in found):
        return None
    return _Seen(pid, daemon, options, found)


def _is_program(pid: int, argv: Sequence[str], program: re.Pattern[str]) -> bool:
    """Whether the process runs a program of that name; for one that we may not look at, as it says itself."""
    try:
        executable = os.readlink(f"/proc/{pid}/exe").removesuffix(_DELETED)
    except OSError:
        return program.fullmatch(program_of(argv)) is not None
    if program.fullmatch(posixpath.basename(executable)):
        return True
    # The dynamic loader, or an emulator of another CPU, can run it: then it is mapped.
    return any(program.fullmatch(posixpath.basename(word)) for word in argv) and _is_mapped(pid, program)


def _is_mapped(pid: int, program: re.Pattern[str]) -> bool:
    try:
        lines = kernel_text(f"/proc/{pid}/maps").splitlines()
    except OSError:
        return False
    files = {line.partition("/")[2].removesuffix(_DELETED) for line in lines}
    return any(program.fullmatch(posixpath.basename(file)) for file in files)


def _running(seen: _Seen, owners: Mapping[int, Sequence[HostProcess]]) -> RunningQemu:
    sockets = []
    for monitor in seen.monitors:
        clients = {client for peer in monitor.peers for client in owners.get(peer, ())}
        sockets.append(replace(monitor.socket, clients=tuple(sorted(clients, key=lambda each: each.pid))))
    return RunningQemu(
        process=host_process(seen.pid),
        name=machine_name(seen.options),
        daemon=seen.daemon,
        sockets=tuple(sockets),
        disks=open_disks(seen.pid, seen.options),
    )
