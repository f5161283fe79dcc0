"""`qmpsnap ps`: the machines of this host, their monitors, and who is connected to them."""

from __future__ import annotations

import qmpsnap
from qmpsnap.cli.app import verb
from qmpsnap.cli.output import Row, emit, json_line, relative, table
from qmpsnap.cli.runner import current_app, run_alone
from qmpsnap.model.running_qemu import OpenDisk, QmpSocket, RunningQemu, SocketState

_HEADER = ("NAME", "PID", "USER", "STATE", "MONITOR")
_DAEMON = "(storage daemon)"
_NO_NAME = "-"


@verb("ps", example="qmpsnap ps", short_help="List the machines of this host, and who is connected to them.")
def ps() -> None:
    """List the QEMU processes of this host: their monitors, who is connected to them, and their disks.

    A monitor is free, or held by the client that is connected to it. -s takes a NAME, a PID or a MONITOR.
    Nothing is asked of QEMU.
    """
    machines = run_alone(lambda _: qmpsnap.list_machines())
    if current_app().json:
        emit(json_line(machines=[machine.to_json() for machine in machines]))
    else:
        emit(*table(_HEADER, map(_row, machines), right=("PID",), indent="") or ["no machines"])


def _row(machine: RunningQemu) -> Row:
    name = machine.name or (_DAEMON if machine.daemon else _NO_NAME)
    monitors = sorted(machine.sockets, key=lambda each: each.address != machine.address)
    remarks = [_held_by(each) for each in monitors[:1] if each.state is not SocketState.FREE or each.why]
    remarks += [f"also {_where(monitor)}: {_held_by(monitor)}" for monitor in monitors[1:]]
    remarks += [_disk(disk) for disk in machine.disks or ()]
    if machine.disks is None:
        remarks.append("we may not look at its images")
    state, where = (
        (str(monitors[0].state), _where(monitors[0])) if monitors else ("", "no QMP monitor in its arguments")
    )
    return Row((name, str(machine.pid), machine.process.user, state, where), tuple(remarks))


def _where(monitor: QmpSocket) -> str:
    return monitor.address or monitor.text


def _held_by(monitor: QmpSocket) -> str:
    """Who is connected to the monitor, or why that is not known or nobody can be."""
    if clients := [*map(str, monitor.clients), *monitor.remote]:
        return f"held by {' and '.join(clients)}"
    if monitor.state is SocketState.HELD:
        return "held by a process that we may not see"
    return f"{monitor.state}: {monitor.why}" if monitor.why else str(monitor.state)


def _disk(disk: OpenDisk) -> str:
    layers = f"{len(disk.files)} layer{'s' if len(disk.files) != 1 else ''}"
    on = f", on {disk.rest}" if disk.rest else ""
    name = f"{disk.disk}: " if disk.disk else ""
    return f"{name}{relative(disk.files[0])} ({layers}{on})"
