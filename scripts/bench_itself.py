"""What qmpsnap costs by itself: whole processes, many machines, memory."""

from __future__ import annotations

import compileall
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import anyio
from bench_machines import MIB, Bench
from bench_rows import Row, ms, ratio

import qmpsnap

__all__ = ["events", "listing", "many", "processes"]


async def processes(bench: Bench):
    """Whole processes, in the environment that runs this, against importing what we depend on.

    That is what a user of the library, and of the command line, pays in any case.
    """
    directory = bench.fresh()
    file = directory / "d.qcow2"
    bench.image("create", "-q", "-f", "qcow2", file, "64M")
    command = Path(sys.executable).with_name("qmpsnap")
    with bench.machine(directory, [file]) as socket:
        sides = {
            "library": [sys.executable, "-c", "import qemu.qmp, anyio, anyio.to_thread, structlog, msgspec"],
            "import": [sys.executable, "-c", "import qmpsnap; qmpsnap.connect"],
            "command line": [
                sys.executable,
                "-c",
                "import qemu.qmp, anyio, anyio.to_thread, structlog, msgspec, click, rich.table",
            ],
            "chain": [command, "-s", socket, "chain"],
        }
        took: dict[str, list[float]] = {name: [] for name in sides}
        compileall.compile_dir(qmpsnap.__path__[0], quiet=1)  # as an installed package is
        for _ in range(bench.runs):
            for name, arguments in sides.items():
                started = time.perf_counter()
                subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
                took[name].append(time.perf_counter() - started)
    yield ratio("import of qmpsnap.connect, against its packages", took["import"], took["library"], 1.2)
    yield ratio("qmpsnap chain, against its packages", took["chain"], took["command line"], 1.6)


async def listing(bench: Bench):
    """`qmpsnap ps` as a process, with machines that have a chain and two monitors each; in seconds."""
    command = [Path(sys.executable).with_name("qmpsnap"), "ps", "--json"]
    count, took = 20, []
    with contextlib.ExitStack() as running:
        for number in range(count):
            directory = bench.fresh()
            files = [directory / f"{layer}.qcow2" for layer in range(3)]
            for layer, file in enumerate(files):
                below = ["-b", files[layer - 1], "-F", "qcow2"] if layer else []
                bench.image("create", "-q", "-f", "qcow2", *below, file, "64M")
            other = f"unix:{directory}/other,server=on,wait=off"
            running.enter_context(
                bench.machine(directory, [files[-1]], "-qmp", other, "-name", f"vm{number}")
            )
        for _ in range(bench.runs):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            took.append(time.perf_counter() - started)
    seconds = statistics.median(took)
    yield Row(f"qmpsnap ps, {count} machines", ms(seconds), "-", seconds, 0.5, "s")


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def many(bench: Bench):
    """Fifty machines, a graph and a snapshot each: side by side against one after the other."""
    count = 50
    with contextlib.ExitStack() as machines:
        sockets = []
        for _ in range(count):
            directory = bench.fresh()
            bench.image("create", "-q", "-f", "qcow2", directory / "d.qcow2", "64M")
            sockets.append(machines.enter_context(bench.machine(directory, [directory / "d.qcow2"])))
        async with contextlib.AsyncExitStack() as stack:
            async with qmpsnap.connect(
                sockets[0]
            ) as vm:  # what the first use of anything costs is not per machine
                await vm.graph()
            before = resident()
            vms = [await stack.enter_async_context(qmpsnap.connect(socket)) for socket in sockets]

            async def visit(vm: qmpsnap.VM, name: str) -> None:
                await vm.graph()
                await vm.snapshot(name)

            together, apart = [], []
            for number in range(max(3, bench.runs // 10)):
                started = time.perf_counter()
                async with anyio.create_task_group() as group:
                    for vm in vms:
                        group.start_soon(visit, vm, f"together{number}")
                together.append(time.perf_counter() - started)
                started = time.perf_counter()
                for vm in vms:
                    await visit(vm, f"apart{number}")
                apart.append(time.perf_counter() - started)
            each = (resident() - before) / count / MIB
    yield ratio(f"{count} machines side by side, against one by one", together, apart, 0.8)
    yield Row("memory of ours per machine", f"{each:.2f} MiB", "-", each, 1.0, "MiB")


async def events(bench: Bench):
    """20 000 events that nobody reads, sent by another process."""
    path = bench.fresh() / "qmp.sock"
    server = subprocess.Popen([sys.executable, "-c", EVENTS, str(path)], stdout=subprocess.PIPE)
    try:
        server.stdout.readline()
        async with qmpsnap.connect(str(path)) as vm:
            before = resident()
            await vm._target.session.query("send-events")
            more = (resident() - before) / MIB
    finally:
        server.kill()
        server.wait()
    yield Row("20 000 events, nobody listening: more memory", f"{more:.2f} MiB", "-", more, 5.0, "MiB")


EVENTS = """
import asyncio, json, sys
async def client(reader, writer):
    version = {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": ""}
    writer.write(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\\r\\n")
    decoder, text = json.JSONDecoder(), ""
    while data := await reader.read(65536):
        text += data.decode()
        while text.strip():
            try:
                message, end = decoder.raw_decode(text.lstrip())
            except ValueError:
                break
            text = text.lstrip()[end:]
            if message["execute"] == "send-events":
                for number in range(20000):
                    event = {"event": "BLOCK_JOB_ERROR", "timestamp": {"seconds": 1, "microseconds": 0},
                             "data": {"device": f"job{number}", "operation": "write", "action": "ignore"}}
                    writer.write(json.dumps(event).encode() + b"\\r\\n")
                    if number % 100 == 0:
                        await writer.drain()
            answer = [] if message["execute"].startswith("query-") else {}
            reply = {"return": answer, **({"id": message["id"]} if "id" in message else {})}
            writer.write(json.dumps(reply).encode() + b"\\r\\n")
            await writer.drain()
async def main():
    async with await asyncio.start_unix_server(client, sys.argv[1]) as server:
        print("ready", flush=True)
        await server.serve_forever()
asyncio.run(main())
"""
