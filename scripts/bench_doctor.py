"""The doctor: what it takes to look at a healthy machine, against the bare queries that it needs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from bench_machines import Bench, bare_client
from bench_rows import ratio

import qmpsnap
from qmpsnap.model.parse import GRAPH_QUERIES

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["doctor"]

DISKS, DEPTH = 3, 10
QUERIES = (
    *GRAPH_QUERIES,
    *((name, {}) for name in ("query-jobs", "query-block-jobs", "query-status", "query-migrate")),
)


async def doctor(bench: Bench):
    """A machine with three disks, whose images lie in one directory; both calls on an open connection."""
    directory = bench.fresh()
    active: list[Path] = []
    for disk in range(DISKS):
        files: list[Path] = []
        for number in range(DEPTH):
            files.append(directory / f"{disk}-{number}.qcow2")
            backing = ["-b", files[-2], "-F", "qcow2"] if number else []
            bench.image("create", "-q", "-f", "qcow2", "-u", *backing, files[-1], "64M")
        active.append(files[-1])
    second = directory / "second.sock"
    with bench.machine(directory, active, "-qmp", f"unix:{second},server=on,wait=off") as socket:
        async with bare_client(str(second)) as client, qmpsnap.connect(socket) as vm:
            ours, bare = [], []
            for _ in range(bench.runs):
                started = time.perf_counter()
                await asyncio.gather(*(client.execute(one, dict(given)) for one, given in QUERIES))
                bare.append(time.perf_counter() - started)
                started = time.perf_counter()
                findings = await vm.diagnose()
                ours.append(time.perf_counter() - started)
                assert not any(finding.is_trouble for finding in findings), findings
    yield ratio(f"doctor of {DISKS} disks at depth {DEPTH}", ours, bare, 3.0)
