"""Medians of both sides, taken in turn in one run, their ratio, and the bound that it has to keep.

Each function measures one row group and yields rows; nothing here is a test, and no test has a clock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import anyio
from qemu.qmp import EventListener, QMPClient

import qmpsnap
from qmpsnap.model.parse import GRAPH_QUERIES

MIB = 1024 * 1024
CHEAP = ["-M", "q35", "-m", "64", "-nodefaults", "-display", "none", "-S", "-accel", "tcg"]


@dataclass
class Row:
    what: str
    ours: str
    bare: str
    value: float
    bound: float
    unit: str = "x"

    def __str__(self) -> str:
        verdict = "ok" if self.value <= self.bound else "MISSED"
        return (
            f"{self.what:<52} {self.ours:>12} {self.bare:>12} "
            f"{self.value:>9.2f} {self.bound:>7.1f} {self.unit:<3} {verdict}"
        )


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def ratio(what: str, ours: list[float], bare: list[float], bound: float) -> Row:
    a, b = statistics.median(ours), statistics.median(bare)
    return Row(what, ms(a), ms(b), a / b, bound)


class Bench:
    """What all measurements share: the QEMU, how often, and a directory that is emptied at the end."""

    def __init__(self, qemu: Path, runs: int, directory: Path) -> None:
        self.qemu, self.runs, self.directory = qemu, runs, directory
        self._number = 0

    def fresh(self) -> Path:
        self._number += 1
        path = self.directory / str(self._number)
        path.mkdir()
        return path

    def image(self, *words: object) -> None:
        subprocess.run([self.qemu / "qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)

    def fill(self, file: Path, command: str) -> None:
        arguments = [self.qemu / "qemu-io", "-f", "qcow2", "-c", command, file]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)

    @contextlib.contextmanager
    def machine(self, directory: Path, files: list[Path], *more: str):
        """A QEMU without a guest; yields the path of its socket."""
        arguments = [str(self.qemu / "qemu-system-x86_64"), *CHEAP, "-pidfile", str(directory / "pid"), *more]
        socket = directory / "qmp.sock"
        arguments += ["-qmp", f"unix:{socket},server=on,wait=off"]
        for number, file in enumerate(files):
            arguments += ["-drive", f"file={file},if=none,id=drive{number},format=qcow2"]
            arguments += ["-device", f"virtio-blk-pci,drive=drive{number},id=disk{number}"]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ((directory / "pid").exists() and socket.exists()):
                if process.poll() is not None:
                    raise SystemExit(f"QEMU did not start: {arguments}")
                time.sleep(0.005)
            yield str(socket)
        finally:
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def bare_client(socket: str):
    client = QMPClient("bench")
    await client.connect(socket)
    try:
        yield client
    finally:
        with contextlib.suppress(EOFError, OSError):
            await client.disconnect()


async def snapshots(bench: Bench):
    for disks, bound in ((1, 5.0), (3, 3.5)):
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
                    await target.command(
                        "blockdev-create",
                        {
                            "job-id": job,
                            "options": {"driver": "file", "filename": f"{file}.{number}", "size": MIB},
                        },
                    )
                    ended = await watch.until_concluded()
                    late.append(time.time() - watch.times[ended.status])
                await target.command("job-dismiss", {"id": job})
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
    """Commit, stream and mirror of 256 MiB against the same commands awaited by their events."""
    directory = bench.fresh()
    base, full = directory / "base.qcow2", directory / "full.qcow2"
    bench.image("create", "-q", "-f", "qcow2", base, "256M")
    bench.fill(base, "write -P 7 0 256M")
    bench.image("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", full, "256M")
    bench.fill(full, "write -P 8 0 256M")
    for op in ("commit", "stream", "mirror"):
        ours, bare = [], []
        for _ in range(bench.runs):
            for side in ("bare", "ours"):
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
                        bare_job(socket, op, where) if side == "bare" else our_job(socket, op, where)
                    )
                (bare if side == "bare" else ours).append(seconds)
                shutil.rmtree(where)
        yield ratio(f"{op} of 256 MiB", ours, bare, 1.1)


async def bare_job(socket: str, op: str, where: Path) -> float:
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


async def processes(bench: Bench):
    """Whole processes, in the environment that runs this."""
    directory = bench.fresh()
    file = directory / "d.qcow2"
    bench.image("create", "-q", "-f", "qcow2", file, "64M")
    command = Path(sys.executable).with_name("qmpsnap")
    with bench.machine(directory, [file]) as socket:
        sides = {
            "qemu.qmp": [sys.executable, "-c", "import qemu.qmp"],
            "import": [sys.executable, "-c", "import qmpsnap"],
            "chain": [command, "-s", socket, "chain"],
        }
        took: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(bench.runs):
            for name, arguments in sides.items():
                started = time.perf_counter()
                subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
                took[name].append(time.perf_counter() - started)
    yield ratio("import qmpsnap, whole process", took["import"], took["qemu.qmp"], 2.4)
    yield ratio("qmpsnap chain, whole process", took["chain"], took["qemu.qmp"], 3.8)


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

GROUPS = (snapshots, graphs, job_ends, jobs, processes, many, events)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="measurements of each side (default 30)")
    parser.add_argument("--only", default="", help="only the groups whose name has this word")
    parser.add_argument("--qemu", type=Path, default=None, help="directory of QEMU's programs")
    given = parser.parse_args()
    qemu = given.qemu or Path(shutil.which("qemu-system-x86_64") or "/usr/bin/qemu").parent
    missed = 0
    print(f"{'what':<52} {'ours':>12} {'against':>12} {'ratio':>9} {'bound':>7}")
    with tempfile.TemporaryDirectory(prefix="qmpsnap-bench-") as directory:
        bench = Bench(qemu, given.runs, Path(directory))
        for group in GROUPS:
            if given.only in group.__name__:
                async for row in group(bench):
                    print(row, flush=True)
                    missed += row.value > row.bound
    print(f"{missed} bound(s) missed" if missed else "all bounds kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
