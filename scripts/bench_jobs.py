"""Jobs: how soon their end is known, what is sent meanwhile, and how long they take."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import anyio
from bench_machines import MIB, Bench, bare_client
from bench_rows import Row, ms, ratio

import qmpsnap

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.qmp import EventListener, QMPClient

__all__ = ["completed", "job_ends", "jobs"]


async def job_ends(bench: Bench):
    """QEMU's time stamp of `concluded` to the waiter running, over many short jobs."""
    directory = bench.fresh()
    file = directory / "d.qcow2"
    bench.image("create", "-q", "-f", "qcow2", file, "64M")
    bench.fill(file, "write -P 7 0 32M")
    late, sent = [], []
    with bench.machine(directory, [file]) as socket:
        async with qmpsnap.connect(socket) as vm:
            target = vm._target  # the one place that needs to see the wire
            for number in range(bench.runs * 10):
                job = f"bench{number}"
                with target.watch(job) as watch:
                    await target.execute(
                        "blockdev-create",
                        {
                            "job-id": job,
                            "options": {"driver": "file", "filename": f"{file}.{number}", "size": MIB},
                        },
                    )
                    ended = await watch.until_concluded()
                    late.append(time.time() - watch.times[ended.status])
                await target.execute("job-dismiss", {"id": job})
            target.session.trace = sent.append
            async with anyio.create_task_group() as group:
                group.start_soon(slow_mirror, vm, directory / "slow.raw")
                await anyio.sleep(0.5)
                before = len(sent)
                await anyio.sleep(1.0)
                on_the_wire = len(sent) - before
                group.cancel_scope.cancel()
    late.sort()
    p99 = late[int(len(late) * 0.99)]
    yield Row("job end: QEMU's event to the waiter running, p99", ms(p99), "-", p99 * 1000, 10.0, "ms")
    yield Row("job runs, nobody asks: commands in a second", str(on_the_wire), "-", on_the_wire, 0.0, "")


async def slow_mirror(vm: qmpsnap.VM, target: Path) -> None:
    """Runs for half a minute, if it is let."""
    await vm.mirror("disk0", target, ending="finish", format="raw", speed=MIB)
    raise SystemExit("the slow job was not slow")


async def jobs(bench: Bench):
    """Commit, stream and mirror of 256 MiB against the same commands awaited by their events.

    QEMU calls a stream done with its data in a cache, and we do not: it is measured against the bare command
    that is followed by a flush, and, with no bound, against the command alone.
    """
    directory = bench.fresh()
    base, full = directory / "base.qcow2", directory / "full.qcow2"
    bench.image("create", "-q", "-f", "qcow2", base, "256M")
    bench.fill(base, "write -P 7 0 256M")
    bench.image("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", full, "256M")
    bench.fill(full, "write -P 8 0 256M")
    for op in ("commit", "stream", "mirror"):
        took: dict[str, list[float]] = {"bare": [], "flushed": [], "ours": []}
        for _ in range(bench.runs):
            for side in took if op == "stream" else ("bare", "ours"):
                where = bench.fresh()
                below, top = where / "base.qcow2", where / "top.qcow2"
                shutil.copyfile(base, below)
                if op == "commit":
                    shutil.copyfile(full, top)
                    bench.image("rebase", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", top)
                else:
                    bench.image("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", top, "256M")
                os.sync()
                with bench.machine(where, [top]) as socket:
                    seconds = await (
                        our_job(socket, op, where)
                        if side == "ours"
                        else bare_job(socket, op, where, flush=side == "flushed")
                    )
                took[side].append(seconds)
                shutil.rmtree(where)
        if op == "stream":
            yield ratio(
                "stream of 256 MiB, against one that is not flushed", took["ours"], took["bare"], None
            )
            yield ratio("stream of 256 MiB, both flushed", took["ours"], took["flushed"], 1.1)
        else:
            yield ratio(f"{op} of 256 MiB", took["ours"], took["bare"], 1.1)


async def bare_job(socket: str, op: str, where: Path, *, flush: bool) -> float:
    command, arguments = {
        "commit": ("block-commit", {}),
        "stream": ("block-stream", {}),
        "mirror": ("drive-mirror", {"target": str(where / "copy.qcow2"), "sync": "full", "format": "qcow2"}),
    }[op]
    async with bare_client(socket) as client:
        with client.listener(("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED")) as listener:
            started = time.perf_counter()
            await client.execute(command, {"job-id": "bare", "device": "drive0", **arguments})
            await completed(client, listener)
            if flush:
                said = await client.execute("human-monitor-command", {"command-line": "qemu-io drive0 flush"})
                assert said == "", said
            return time.perf_counter() - started


async def completed(client: QMPClient, listener: EventListener) -> None:
    async for event in listener:
        if event["event"] == "BLOCK_JOB_COMPLETED":
            return
        await client.execute("job-complete", {"id": "bare"})


async def our_job(socket: str, op: str, where: Path) -> float:
    async with qmpsnap.connect(socket) as vm:
        started = time.perf_counter()
        match op:
            case "commit":
                await vm.commit("disk0")
            case "stream":
                await vm.stream("disk0")
            case _:
                await vm.mirror("disk0", where / "copy.qcow2", ending="pivot")
        return time.perf_counter() - started
