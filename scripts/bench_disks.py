"""Snapshots and graphs, against the same commands sent bare."""

from __future__ import annotations

import asyncio
import shutil
import time

from bench_machines import Bench, bare_client
from bench_rows import ratio

import qmpsnap
from qmpsnap.model.parse import GRAPH_QUERIES

__all__ = ["graphs", "snapshots"]


async def snapshots(bench: Bench):
    for disks, bound in ((1, 2.5), (3, 1.4)):
        ours, stalls, bare = [], [], []
        for _ in range(bench.runs):
            for side in ("bare", "ours"):
                directory = bench.fresh()
                files = [directory / f"d{number}.qcow2" for number in range(disks)]
                for file in files:
                    bench.image("create", "-q", "-f", "qcow2", file, "64M")
                with bench.machine(directory, files) as socket:
                    if side == "bare":
                        actions = [
                            {
                                "type": "blockdev-snapshot-sync",
                                "data": {
                                    "device": f"drive{n}",
                                    "snapshot-file": f"{file}.new",
                                    "format": "qcow2",
                                },
                            }
                            for n, file in enumerate(files)
                        ]
                        async with bare_client(socket) as client:
                            started = time.perf_counter()
                            await client.execute("transaction", {"actions": actions})
                            bare.append(time.perf_counter() - started)
                    else:
                        async with qmpsnap.connect(socket) as vm:
                            started = time.perf_counter()
                            done = await vm.snapshot("bench")
                            ours.append(time.perf_counter() - started)
                            stalls.append(done.standstill_s)
                shutil.rmtree(directory)
        yield ratio(f"snapshot, {disks} disk(s): guest's I/O stall", stalls, bare, 0.7)
        yield ratio(f"snapshot, {disks} disk(s): total, verified", ours, bare, bound)


async def graphs(bench: Bench):
    shares = {}
    for depth in (1, 20, 200):
        directory, files = bench.fresh(), []
        for number in range(depth):
            files.append(directory / f"{number}.qcow2")
            backing = ["-b", files[-2], "-F", "qcow2"] if number else []
            bench.image("create", "-q", "-f", "qcow2", "-u", *backing, files[-1], "64M")
        second = directory / "second.sock"
        with bench.machine(directory, files[-1:], "-qmp", f"unix:{second},server=on,wait=off") as socket:
            async with bare_client(str(second)) as client, qmpsnap.connect(socket) as vm:
                ours, bare, share = [], [], []
                for _ in range(bench.runs):
                    started = time.perf_counter()
                    await asyncio.gather(*(client.execute(one, dict(given)) for one, given in GRAPH_QUERIES))
                    bare.append(time.perf_counter() - started)
                    started, used = time.perf_counter(), time.process_time()
                    graph = await vm.graph()
                    ours.append(time.perf_counter() - started)
                    share.append(time.process_time() - used)
                assert len(graph.disks["disk0"].layers) == depth
        shares[depth] = share
        yield ratio(f"graph at depth {depth}", ours, bare, 1.3)
        shutil.rmtree(directory)
    yield ratio("graph: our own share (CPU) at 200 against 20", shares[200], shares[20], 12.0)
