"""Why a guest is not running, read from its machine; `VM.why_paused` without a VM."""

from __future__ import annotations

from contextlib import suppress

from qmpsnap.errors import Refused
from qmpsnap.jobs import Jobs
from qmpsnap.model.arguments import refuse
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.machine import Status
from qmpsnap.model.pause import Pause
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.vmstate.pause import IO_ERROR, pause_of
from qmpsnap.run.io_errors import failed_disks
from qmpsnap.run.target import Target, guest_of


async def why_paused(target: Target, jobs: Jobs, graph: Graph | None) -> Pause | None:
    """Why the guest is not running; None while it is running. See `VM.why_paused`."""
    if not isinstance(graph, Graph | None):
        refuse("graph", graph, "give a graph that graph() returned")
    status = await guest_of(target).status()
    return None if status.running else await pause_in(status, target, jobs, graph)


async def pause_in(status: Status, target: Target, jobs: Jobs, graph: Graph | None) -> Pause:
    """Why the guest is in that state, which is not running.

    Args:
        status: The state, as it has just been read.
        target: The machine.
        jobs: Its jobs.
        graph: Its graph, if it has just been read; None: it is read if need be.
    """
    records: tuple[IntentRecord, ...] = ()
    with suppress(Refused):  # the graph cannot be read now; the state is known all the same
        records = await jobs.interrupted(graph, live=True)
    failed: Frozen[str, str] = Frozen()
    if status.state == IO_ERROR:
        failed = await failed_disks(target)
        graph = graph if graph is not None else await target.graph()
    return pause_of(status, records, failed, graph)
