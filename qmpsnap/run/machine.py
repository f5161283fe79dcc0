"""Reads what a machine is beyond its disks: how it stands, and what VM state of it fits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qmpsnap.errors import CommandFailed
from qmpsnap.model.parse_machine import MACHINE_QUERIES, device_path, parse_machine

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk, Graph
    from qmpsnap.model.machine import Machine
    from qmpsnap.run.session import Session

__all__ = ["read_machine"]


async def read_machine(session: Session, graph: Graph) -> Machine:
    """Ask QEMU for its machine, all at once.

    Args:
        session: The link.
        graph: The block graph as read.

    Raises:
        LinkLost: When the link goes.
        Malformed: When an answer is not of the schema's shape.

    QAPI: query-status, query-migrate and its settings, query-version, query-memory-size-summary,
    query-cpus-fast, qom-get, qom-list.
    """
    disks = [disk for disk in graph.disks.values() if disk.qdev]
    answers, kinds = await asyncio.gather(
        asyncio.gather(*(session.query(command, arguments) for command, arguments in MACHINE_QUERIES)),
        asyncio.gather(*(_kind(session, disk) for disk in disks)),
    )
    known = {disk.name: kind for disk, kind in zip(disks, kinds, strict=True) if kind}
    return parse_machine(answers, known, graph, passes_files=session.is_unix)


async def _kind(session: Session, disk: Disk) -> str:
    """QOM type of the disk's device; "" where QEMU has none under that path."""
    try:
        return str(await session.query("qom-get", {"path": device_path(disk.qdev), "property": "type"}))
    except CommandFailed:
        return ""
