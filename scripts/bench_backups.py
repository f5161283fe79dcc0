"""Live backups against `cp` of the same layers, both whole: on the disk, compared, and merged back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from bench_jobs import completed
from bench_machines import Bench, bare_client
from bench_rows import ratio

import qmpsnap

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["backups"]


async def backups(bench: Bench):
    """A backup of 1 GiB of data, against a snapshot, `cp --sparse=always` of its layer and a bare commit.

    A copy that may still be lost, or may differ, is no backup: the second row is against a copy that is
    synced and compared, too.
    """
    source = bench.fresh() / "source.qcow2"
    bench.image("create", "-q", "-f", "qcow2", source, "2G")
    bench.fill(source, "write -P 7 0 1G")
    os.environ["PATH"] = f"{bench.qemu}:{os.environ['PATH']}"
    took: dict[str, list[float]] = {"ours": [], "bare": [], "safe": []}
    for _ in range(max(bench.runs // 6, 3)):
        for side, seconds in took.items():
            where = bench.fresh()
            file = where / "disk.qcow2"
            subprocess.run(["cp", "--sparse=always", source, file], check=True)
            os.sync()
            with bench.machine(where, [file]) as socket:
                started = time.perf_counter()
                if side == "ours":
                    async with qmpsnap.connect(socket) as vm:
                        started = time.perf_counter()
                        await vm.backup(where / "backups")
                        seconds.append(time.perf_counter() - started)
                else:
                    seconds.append(await bare_backup(socket, where, safe=side == "safe"))
            shutil.rmtree(where)
    yield ratio("backup of 1 GiB, cp neither synced nor compared", took["ours"], took["bare"], 1.1)
    yield ratio("backup of 1 GiB, both synced and compared", took["ours"], took["safe"], 1.1)


async def bare_backup(socket: str, where: Path, *, safe: bool) -> float:
    file, copy = where / "disk.qcow2", where / "copy.qcow2"
    async with bare_client(socket) as client:
        started = time.perf_counter()
        await client.execute(
            "blockdev-snapshot-sync",
            {"device": "drive0", "snapshot-file": str(where / "overlay.qcow2"), "format": "qcow2"},
        )
        subprocess.run(["cp", "--sparse=always", file, copy], check=True)
        if safe:
            subprocess.run(["sync", copy], check=True)
            subprocess.run(["cmp", file, copy], check=True)
        with client.listener(("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED")) as listener:
            await client.execute("block-commit", {"job-id": "bare", "device": "drive0"})
            await completed(client, listener)
        return time.perf_counter() - started
