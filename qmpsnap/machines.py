"""Finds the machines that run on this host, and how to connect to each."""

from __future__ import annotations

from qmpsnap.errors import AmbiguousName, ConnectFailed
from qmpsnap.model.arguments import refuse
from qmpsnap.model.running_qemu import RunningQemu
from qmpsnap.run.disk import in_thread
from qmpsnap.run.running_qemus import running_qemus

_LIST = (
    "qmpsnap ps lists the machines of this host; if it is a path, no such file exists; a TCP port is given "
    "as tcp:HOST:PORT"
)


async def list_machines() -> tuple[RunningQemu, ...]:
    """Every QEMU of this host, and every qemu-storage-daemon, by process id.

    Nothing is asked of QEMU, and no connection is made: all of it is read from /proc, from the kernel's list
    of sockets and from image headers. A process is a QEMU by what it runs, not by what it is called. Of
    another user's QEMU it returns only what the kernel tells everybody.
    """
    return await in_thread(running_qemus)


async def address_of(machine: str | int) -> str:
    """The address of a machine's QMP monitor, as `connect` takes it.

    If the machine has several monitors, it is one that serves no client, if there is one. Any user
    of this host can start a machine of any name: where that matters, give a process id or the monitor's path.

    Args:
        machine: The machine's name, as QEMU's `-name` gives it, or the id of its process.

    Raises:
        AmbiguousName: When several machines have that name; the message lists them.
        ConnectFailed: When there is no such machine, or no QMP monitor of it can be connected to.
    """
    if isinstance(machine, bool) or not isinstance(machine, str | int) or machine == "":
        refuse("machine", machine, "give the machine's name or the id of its process")
    wanted = str(machine)
    found = [each for each in await list_machines() if wanted in {each.name, str(each.pid)}]
    if len(found) > 1:
        raise AmbiguousName(
            f"{wanted!r} can be any of {len(found)} machines: {'; '.join(each.label for each in found)}",
            candidates=tuple(str(each.pid) for each in found),
            hint="give the process id instead",
        )
    if not found:
        raise ConnectFailed(f"no machine of this host has the name or the process id {wanted!r}", hint=_LIST)
    (qemu,) = found
    if qemu.daemon:
        raise ConnectFailed(f"{qemu.process} is a storage daemon, which has images but no machine")
    if not qemu.address:
        raise ConnectFailed(f"{qemu.label} has no QMP monitor that we can connect to", hint=_why(qemu))
    return qemu.address


def _why(qemu: RunningQemu) -> str:
    monitors = [f"{each.text}: {each.why}" for each in qemu.sockets if each.why]
    return "; ".join(monitors) or "QEMU has one when it is started with -qmp unix:PATH,server=on,wait=off"
