"""Reads what a machine is beyond its disks: how it stands, and what VM state of it fits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from qmpsnap.errors import CommandFailed, Malformed
from qmpsnap.model.parse_machine import MACHINE_QUERIES, device_path, parse_machine, parse_status
from qmpsnap.run.shared import identity

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk, Graph
    from qmpsnap.model.machine import Machine, Status
    from qmpsnap.run.session import Session

__all__ = ["is_running", "read_machine", "read_standing", "run_state"]


async def read_machine(session: Session, graph: Graph) -> Machine:
    """Ask QEMU for its machine, all at once.

    Args:
        session: The link.
        graph: The block graph as read.

    Raises:
        LinkLost: When the link goes.
        Malformed: When an answer is not of the schema's shape.

    QAPI: query-status, query-migrate and its settings, query-version, query-memory-size-summary,
    query-cpus-fast, query-kvm, qom-get, qom-list.
    """
    disks = [disk for disk in graph.disks.values() if disk.qdev]
    answers, cpu, kinds = await asyncio.gather(
        asyncio.gather(*(session.query(command, arguments) for command, arguments in MACHINE_QUERIES)),
        _cpu(session),
        asyncio.gather(*(_kind(session, disk) for disk in disks)),
    )
    known = {disk.name: kind for disk, kind in zip(disks, kinds, strict=True) if kind}
    return parse_machine(
        answers,
        known,
        graph,
        cpu=cpu,
        passes_files=session.is_unix,
        process=identity(session.peer_pid),
    )


async def read_standing(session: Session) -> Status:
    """Whether the machine runs, and whether it migrates. QAPI: query-status, query-migrate."""
    return parse_status(*await asyncio.gather(session.query("query-status"), session.query("query-migrate")))


async def run_state(session: Session) -> str:
    """QEMU's run state, now. QAPI: query-status (run-state.json)."""
    return str((await _status(session))["status"])


async def is_running(session: Session) -> bool:
    """Whether the guest's CPUs run, now. QAPI: query-status (run-state.json)."""
    return bool((await _status(session))["running"])


async def _status(session: Session) -> dict[str, object]:
    answer = await session.query("query-status")
    if not isinstance(answer, dict) or not {"status", "running"} <= set(answer):
        raise Malformed(f"QEMU's answer to query-status has not the expected shape: {answer!r}")
    return answer


async def _cpu(session: Session) -> str:
    """QOM type of the first CPU; all are alike. "" where there is none, as with `-M none`."""
    cpus = await session.query("query-cpus-fast")
    if cpus == []:
        return ""
    try:
        path = cast("list[dict[str, object]]", cpus)[0]["qom-path"]
    except (KeyError, IndexError, TypeError) as error:
        raise Malformed(f"QEMU's answer to query-cpus-fast has not the expected shape: {cpus!r}") from error
    return str(await session.query("qom-get", {"path": path, "property": "type"}))


async def _kind(session: Session, disk: Disk) -> str:
    """QOM type of the disk's device; "" where QEMU has none under that path."""
    try:
        return str(await session.query("qom-get", {"path": device_path(disk.qdev), "property": "type"}))
    except CommandFailed:
        return ""
