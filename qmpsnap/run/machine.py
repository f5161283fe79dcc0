"""Reads what a machine is beyond its disks: its run state, and what VM state has to match."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from qmpsnap.errors import CommandFailed
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.machine import Machine, Status
from qmpsnap.model.parse_machine import (
    BUILD_QUERIES,
    MACHINE_QUERIES,
    Build,
    CpuInfoFast,
    StatusInfo,
    device_path,
    parse_build,
    parse_cpu_threads,
    parse_machine,
    parse_status,
)
from qmpsnap.model.qapi import read
from qmpsnap.model.start import USES_PATH, block_name
from qmpsnap.run.both import both
from qmpsnap.run.descriptors import identity
from qmpsnap.run.disk import in_thread
from qmpsnap.run.occupied_memory import occupied_bytes, runs_threads
from qmpsnap.run.session import Session


async def read_build(session: Session) -> Build:
    """Ask QEMU for what does not change while it runs.

    Raises:
        LinkLost: When the link is lost.
        Malformed: When an answer is not of the schema's shape.

    QAPI: query-version, query-kvm, query-cpus-fast, qom-get.
    """
    names = partial(both, partial(_cpu, session), partial(_ram, session))
    answers, (cpu, ram) = await both(partial(session.ask, *BUILD_QUERIES), names)
    return parse_build(answers, cpu, ram=ram)


async def read_machine(session: Session, graph: Graph, build: Build, *, occupied: bool = False) -> Machine:
    """Ask QEMU for its machine, with all queries in one go.

    Args:
        session: The link.
        graph: The block graph as read.
        build: What does not change.
        occupied: Whether it is looked up how much memory is in use, which a save needs to know alone.

    Raises:
        LinkLost: When the link is lost.
        Malformed: When an answer is not of the schema's shape.

    QAPI: query-status, query-migrate and its settings, query-memory-size-summary, query-cpus-fast,
    query-block-exports, query-iothreads, qom-get, qom-list.
    """
    disks = [disk for disk in graph.disks.values() if disk.qdev]
    answers, kinds = await both(
        partial(session.ask, *MACHINE_QUERIES),
        partial(_kinds, session, disks),
    )
    known = {disk.name: kind for disk, kind in zip(disks, kinds, strict=True) if kind}
    machine = parse_machine(
        answers,
        known,
        graph,
        build=build,
        passes_files=session.is_unix,
        process=identity(session.peer_pid),
    )
    if not occupied:
        return machine
    look = partial(_occupied, machine.process, session, parse_cpu_threads(answers))
    return replace(machine, occupied_bytes=await in_thread(look))


def _occupied(process: str, session: Session, cpu_threads: Sequence[int]) -> int | None:
    """How much memory QEMU has in use, if its process is certainly the one at the other end. Blocking."""
    pid = session.peer_pid if session.is_unix else None
    if pid is None or not runs_threads(pid, cpu_threads):
        return None
    return occupied_bytes(process)


async def read_status(session: Session) -> Status:
    """Whether the machine runs, and whether it migrates. QAPI: query-migrate, query-status."""
    try:
        return parse_status(*await session.ask(("query-migrate", {}), ("query-status", {})))
    except CommandFailed as error:
        if not is_preconfig(error):
            raise
        return Status("preconfig", running=False)


def is_preconfig(error: CommandFailed) -> bool:
    """Whether QEMU refused a command because it waits for `x-exit-preconfig`, and has no machine yet.

    The run state does not tell: it is "prelaunch" on 7.2, 10.0 and 11.1. QEMU's text: qapi/qmp-dispatch.c.
    """
    return "permitted only after machine initialization" in error.desc


async def run_state(session: Session) -> str:
    """QEMU's run state, now. QAPI: query-status (run-state.json)."""
    return (await _status(session)).status


async def is_running(session: Session) -> bool:
    """Whether the guest's CPUs run, now. QAPI: query-status (run-state.json)."""
    return (await _status(session)).running


async def _status(session: Session) -> StatusInfo:
    return read(StatusInfo, await session.query("query-status"), "query-status")


async def _cpu(session: Session) -> str:
    """QOM type of the first CPU; all are alike. "" where there is none, as with `-M none`."""
    cpus = read(list[CpuInfoFast], await session.query("query-cpus-fast"), "query-cpus-fast")
    return await _type(session, cpus[0].qom_path) if cpus else ""


async def _ram(session: Session) -> str:
    """Name of the block that is the guest's RAM; "" where it is in the objects of NUMA nodes."""

    async def get(path: str, name: str) -> object:
        return await session.query("qom-get", {"path": path, "property": name})

    ram_id = posixpath.basename(read(str, await get("/machine", "memory-backend"), "qom-get"))
    if not ram_id:
        return ""
    uses_path = read(bool, await get(f"/objects/{ram_id}", USES_PATH), "qom-get")
    return block_name(ram_id, uses_path=uses_path)


async def _kinds(session: Session, disks: Sequence[Disk]) -> list[str]:
    return await asyncio.gather(*(_kind(session, disk) for disk in disks))


async def _kind(session: Session, disk: Disk) -> str:
    """QOM type of the disk's device; "" where QEMU has none under that path."""
    try:
        return await _type(session, device_path(disk.qdev))
    except CommandFailed:
        return ""


async def _type(session: Session, path: str) -> str:
    """QOM type of an object. QAPI: qom-get (qom.json)."""
    return read(str, await session.query("qom-get", {"path": path, "property": "type"}), "qom-get")
