"""Troubles of a monitor: it does not greet."""

from __future__ import annotations

from collections.abc import Iterator

from qmpsnap.model.hints import ONE_MORE_MONITOR
from qmpsnap.model.host_process import HostProcess
from qmpsnap.plan.diagnosis.facts import Case, Facts


def monitor_held(facts: Facts) -> Iterator[Case]:
    """A monitor to which another client is connected, so that nobody else is served."""
    seen = facts.monitor
    if seen is None or seen.clients is None:
        return
    names = " and ".join(map(str, seen.clients)) or "a process that we may not see"
    are = "are" if len(seen.clients) > 1 else "is"
    cause = f"{names} {are} connected to it, and QEMU serves one client at a time"
    match seen.clients:
        case (HostProcess() as client,) if client.is_qmpsnap:
            advice = "it rolls back what it is at work on; or wait until it ends"
            yield Case(seen.address, cause, ("kill", str(client.pid)), advice)
        case _:
            advice = f"end that client if nobody needs it, or {ONE_MORE_MONITOR}"
            yield Case(seen.address, cause, advice=advice)


def monitor_silent(facts: Facts) -> Iterator[Case]:
    """A monitor that does not greet although no other client is connected: QEMU is stopped, or busy."""
    seen = facts.monitor
    if seen is None or seen.clients is not None:
        return
    if seen.stopped is not None:
        cause = f"QEMU ({seen.stopped}) was stopped by a signal, and answers nobody"
        yield Case(seen.address, cause, ("kill", "-CONT", str(seen.stopped.pid)))
    else:
        yield Case(
            seen.address,
            "it does not greet, and no other client is known to be connected: QEMU is busy, or hangs",
            advice="try again in a while: a save of VM state, or storage that does not answer, holds QEMU; "
            "if it is no monitor at all, but a serial port for example, qmpsnap ps lists the monitors",
        )
