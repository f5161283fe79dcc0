"""Medians of both sides, taken in turn in one run, their ratio, and the bound that it has to keep.

Each function of GROUPS measures one row group and yields rows; nothing here is a test, and no test has a
clock.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from bench_backups import backups
from bench_checkpoints import checkpoints
from bench_clones import clones
from bench_deletes import deletes
from bench_disks import graphs, snapshots
from bench_doctor import doctor
from bench_itself import events, listing, many, processes
from bench_jobs import job_ends, jobs
from bench_machines import Bench
from bench_offline import offline
from bench_plugin import plugin
from bench_rows import HEADER
from bench_sessions import recording, watching
from bench_trees import trees

GROUPS = (
    snapshots, deletes, checkpoints, clones, graphs, job_ends, jobs, backups, processes, listing, many,
    events, trees, offline, plugin, doctor, watching, recording,
)  # fmt: skip


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="measurements of each side (default 30)")
    parser.add_argument("--only", default="", help="only the groups whose name has this word")
    parser.add_argument("--qemu", type=Path, default=None, help="directory of QEMU's programs")
    given = parser.parse_args()
    qemu = given.qemu or Path(shutil.which("qemu-system-x86_64") or "/usr/bin/qemu").parent
    missed = 0
    print(HEADER)
    with tempfile.TemporaryDirectory(prefix="qmpsnap-bench-") as directory:
        bench = Bench(qemu, given.runs, Path(directory))
        for group in GROUPS:
            if given.only in group.__name__:
                async for row in group(bench):
                    print(row, flush=True)
                    missed += row.missed
    print(f"{missed} bound(s) missed" if missed else "all bounds kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
