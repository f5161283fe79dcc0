"""Looks once at everything that a diagnosis needs, and has the rules look at that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import anyio
from msgspec.structs import replace

from qmpsnap.errors import Busy, Refused
from qmpsnap.model.arguments import Text, check
from qmpsnap.model.files import Files
from qmpsnap.model.finding import Finding
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import Job
from qmpsnap.model.machine import Status
from qmpsnap.model.moments import Moments
from qmpsnap.model.parse_machine import BlockExportInfo, MigrationInfo
from qmpsnap.model.qapi import read
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.diagnosis import rules
from qmpsnap.plan.diagnosis.facts import Broken, Facts
from qmpsnap.plan.diagnosis.nodes import covered, unexplained
from qmpsnap.run.both import both
from qmpsnap.run.disk import in_thread
from qmpsnap.run.examined_files import ExaminedFiles, examine_files, other_writers
from qmpsnap.run.examined_images import damages, follow_broken
from qmpsnap.run.examined_monitor import examine_monitor
from qmpsnap.run.freezing import is_frozen
from qmpsnap.run.io_errors import failed_disks
from qmpsnap.run.planning import Planning, Seen
from qmpsnap.run.target import Target
from qmpsnap.run.unopened import UnopenedTarget

_NOTHING = Facts(Graph(Frozen()), Files(), Moments((), Frozen(), records_seen=False))
_WRITERS_LIMIT = 2.0  # seconds; storage that hangs may keep the kernel from answering
_AGAIN = 0.2  # seconds; no event tells that a job which drains, or an operation, has gone on


async def diagnose(target: Target, planning: Planning, *, agent: str = "") -> tuple[Finding, ...]:
    """Everything that is wrong with a machine or its images.

    If there is a trouble of a running machine, it is looked at once more a moment later, and what is found
    both times is reported: jobs pause for an instant, and another client may be at work.
    """
    if isinstance(target, UnopenedTarget):
        return rules.diagnose(await _images(target, planning))
    found = rules.diagnose(await _machine(target, planning, agent))
    if not any(one.is_trouble for one in found):
        return found
    await anyio.sleep(_AGAIN)
    seen = {(one.code, one.subject) for one in found}
    again = rules.diagnose(await _machine(target, planning, agent))
    return tuple(one for one in again if (one.code, one.subject) in seen)


async def diagnose_monitor(address: str) -> tuple[Finding, ...]:
    """Why a monitor does not greet; nothing if nobody listens there, or if it is no QMP monitor.

    Args:
        address: Its path, or "tcp:HOST:PORT".

    Raises:
        BadArgument: When `address` is no text.
    """
    check("address", address, Text)
    known = await in_thread(partial(examine_monitor, address))
    return rules.diagnose(replace(_NOTHING, monitor=known))


async def _machine(target: Target, planning: Planning, agent: str) -> Facts:
    alone = partial(both, target.jobs, partial(_status, target))
    try:
        seen, (jobs, status) = await both(planning.seen, alone)
    except Busy:
        # The graph cannot be read while a concluded stream job is there: the jobs are the trouble.
        jobs, status = await alone()
        facts = replace(_NOTHING, jobs=jobs, status=status)
        if not rules.diagnose(facts):
            raise
        return facts
    graph = seen.graph
    operations = await _operations(planning, seen)
    states = [moment.vm_state_file for moment in seen.moments.moments if moment.vm_state_file]
    files = ExaminedFiles()
    writers: Mapping[str, str] = Frozen()
    if seen.files.shared:
        look = partial(examine_files, graph, seen.files, off=target.guest is None, asked=states)
        files, writers = await both(partial(in_thread, look), partial(_writers, graph, target.pid))
    return Facts(
        graph,
        seen.files,
        seen.moments,
        operations=operations,
        vanished=await _vanished(planning, operations, jobs),
        below=seen.below,
        jobs=jobs,
        uses=await target.block_graph() if unexplained(graph) else None,
        exported=await _exported(target) if covered(graph) else frozenset(),
        status=status,
        io_status=await _io_status(target, status),
        blocked=await _blocked(target) if status is not None and status.state != "preconfig" else (),
        room=files.room,
        read_only=files.read_only,
        missing=files.missing,
        writers=writers,
        frozen=await is_frozen(agent) if agent else None,
        agent=agent,
    )


async def _operations(planning: Planning, seen: Seen) -> tuple[IntentRecord, ...]:
    """Operations on the machine, and forks whose clients are gone."""
    unfinished = await planning.unfinished(seen.graph, seen.records, live=True)
    return (*unfinished, *await planning.forks_left(seen.graph, seen.records))


async def _writers(graph: Graph, pid: int | None) -> Mapping[str, str]:
    """Who else writes to the images; nobody if that cannot be found out in time."""
    look = partial(other_writers, graph, pid)
    with anyio.move_on_after(_WRITERS_LIMIT):
        return await anyio.to_thread.run_sync(look, abandon_on_cancel=True)  # the thread may be left behind
    return Frozen()


async def _status(target: Target) -> Status | None:
    return None if target.guest is None else await target.guest.status()


async def _exported(target: Target) -> frozenset[str]:
    """Nodes that QEMU exports. QAPI: query-block-exports (block-export.json)."""
    answer = await target.execute("query-block-exports")
    return frozenset(one.node_name for one in read(list[BlockExportInfo], answer, "query-block-exports"))


async def _blocked(target: Target) -> tuple[str, ...]:
    """Why the guest's memory cannot be saved, as far as QEMU knows before it tries. QAPI: query-migrate."""
    return read(MigrationInfo, await target.execute("query-migrate"), "query-migrate").blocked_reasons


async def _io_status(target: Target, status: Status | None) -> Frozen[str, str]:
    """Which disks a request failed on; asked only of a guest that is paused by that."""
    return await failed_disks(target) if status is not None and status.state == "io-error" else Frozen()


async def _vanished(
    planning: Planning, operations: tuple[IntentRecord, ...], jobs: tuple[Job, ...]
) -> Frozen[str, str]:
    """Which interrupted operations cannot be completed any more, and why."""
    running = {job.id for job in jobs}
    found = {}
    for record in operations:
        if not record.live and not record.permanent and record.id not in running:
            try:
                found[record.id] = (await planning.resume(record.id)).vanished
            except Refused:  # its images are not open, or it is another client's by now
                continue
    return Frozen(found)


async def _images(target: UnopenedTarget, planning: Planning) -> Facts:
    """Look at images that nothing has open: those of broken chains, and the others as a machine."""
    given = await in_thread(target.read_each)
    whole = UnopenedTarget(lambda: given.chains, name=target.name)
    looking = planning.on(whole)
    seen = await looking.seen()
    operations = await _operations(looking, seen)
    states = [moment.vm_state_file for moment in seen.moments.moments if moment.vm_state_file]
    files = await in_thread(partial(examine_files, seen.graph, seen.files, off=True, asked=states))
    broken = [
        await in_thread(partial(follow_broken, disk, file, error, given.allowed))
        if file
        else Broken(disk, error.message, error.hint)
        for disk, file, error in given.broken
    ]
    return Facts(
        seen.graph,
        seen.files,
        seen.moments,
        operations=operations,
        below=seen.below,
        room=files.room,
        writers=await _writers(seen.graph, None),
        missing=files.missing,
        broken=tuple(broken),
        damaged=Frozen(await in_thread(partial(damages, given.chains))),
    )
