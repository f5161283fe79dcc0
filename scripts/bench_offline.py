"""Machines that are off: what qemu-img does, and we do through a storage daemon, or by the headers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench_jobs import completed
from bench_machines import bare_client, listens
from bench_rows import ratio

import qmpsnap

if TYPE_CHECKING:
    from bench_machines import Bench

__all__ = ["offline"]

SIZE = "1G"
DEPTH = 50  # layers of the chain that is looked at


async def offline(bench: Bench):
    """Merges of 1 GiB, from the start of the daemon to its end, and a look at a chain.

    A stream is compared with the job that it is as well: block-stream, in a daemon that is given the images.
    """
    runs = max(3, bench.runs // 10)
    for op, words in (("commit", ("commit", "-q", "-d")), ("stream", ("rebase", "-q", "-b", ""))):
        made = bench.fresh()
        bench.image("create", "-q", "-f", "qcow2", made / "base.qcow2", SIZE)
        overlay = ("-b", made / "base.qcow2", "-F", "qcow2", made / "s1.qcow2")
        bench.image("create", "-q", "-f", "qcow2", *overlay)
        bench.fill(made / ("s1.qcow2" if op == "commit" else "base.qcow2"), f"write -P 7 0 {SIZE}")
        took: dict[str, list[float]] = {"ours": [], "bare": []} | ({"job": []} if op == "stream" else {})
        for _ in range(runs):
            for side, seconds in took.items():
                where = bench.fresh()
                for file in made.iterdir():
                    shutil.copy2(file, where)
                bench.image(
                    "rebase", "-q", "-u", "-b", where / "base.qcow2", "-F", "qcow2", where / "s1.qcow2"
                )
                os.sync()
                started = time.perf_counter()
                if side == "ours":
                    await ours(bench, op, where)
                else:
                    if side == "bare":
                        bench.image(*words, "-f", "qcow2", where / "s1.qcow2")
                    else:
                        await bare_stream(bench, where)
                    subprocess.run(["sync", *where.glob("*.qcow2")], check=True)
                seconds.append(time.perf_counter() - started)
                shutil.rmtree(where)
        yield ratio(f"offline {op} of 1 GiB, against qemu-img and sync", took["ours"], took["bare"], 1.15)
        if op == "stream":
            yield ratio("offline stream of 1 GiB, against the job and sync", took["ours"], took["job"], 1.15)
        shutil.rmtree(made)
    async for row in looks(bench):
        yield row


async def ours(bench: Bench, op: str, where: Path) -> None:
    daemon = bench.qemu / "qemu-storage-daemon"
    async with qmpsnap.offline(vda=where / "s1.qcow2", daemon=daemon) as vm:
        await (vm.commit("vda") if op == "commit" else vm.stream("vda"))


async def bare_stream(bench: Bench, where: Path) -> None:
    """Start a daemon on the two images, let block-stream run to its end, and quit."""
    socket, words = where / "qmp.sock", []
    for name, backing in (("base", ""), ("s1", "backing=base,")):
        file = f"file.driver=file,file.filename={where / name}.qcow2"
        words += ["--blockdev", f"driver=qcow2,node-name={name},{backing}{file}"]
    words += ["--chardev", f"socket,id=c,path={socket},server=on,wait=off", "--monitor", "chardev=c"]
    with subprocess.Popen([bench.qemu / "qemu-storage-daemon", *words]) as process:
        while not listens(socket):
            time.sleep(0.002)
        async with bare_client(str(socket)) as client:
            with client.listener("BLOCK_JOB_COMPLETED") as listener:
                await client.execute("block-stream", {"job-id": "bare", "device": "s1"})
                await completed(client, listener)
            await client.execute("quit")
        process.wait()


async def looks(bench: Bench):
    """The chain of 50 layers: in this process, and as a process, against qemu-img."""
    where = bench.fresh()
    below: tuple[object, ...] = ()
    for number in range(DEPTH):
        file = where / f"s{number}.qcow2"
        bench.image("create", "-q", "-f", "qcow2", *(("-u", *below) if below else ()), file, "64M")
        below = ("-b", file, "-F", "qcow2")
    command = Path(sys.executable).with_name("qmpsnap")
    took: dict[str, list[float]] = {"library": [], "process": [], "bare": []}
    for _ in range(bench.runs):
        started = time.perf_counter()
        async with qmpsnap.offline(vda=file, read_only=True) as vm:
            assert len((await vm.graph()).chains()["vda"]) == DEPTH
        took["library"].append(time.perf_counter() - started)
        for side, words in (
            ("process", (command, "-i", f"vda={file}", "chain")),
            ("bare", (bench.qemu / "qemu-img", "info", "--backing-chain", "-f", "qcow2", file)),
        ):
            started = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            took[side].append(time.perf_counter() - started)
    yield ratio("chain of 50 layers offline, against qemu-img info", took["library"], took["bare"], 3.0)
    yield ratio("qmpsnap -i chain as a process, against the same", took["process"], took["bare"], 3.0)
