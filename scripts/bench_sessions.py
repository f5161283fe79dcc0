"""What it costs to watch a machine, and to record a session."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import anyio
from bench_machines import MIB, Bench
from bench_rows import Row, ratio

import qmpsnap

__all__ = ["recording", "watching"]

_SECONDS = 10.0
_COMMANDS = 50


def _machine(bench: Bench):
    """A machine with three disks, each with ten layers; the directory and the machine."""
    directory = bench.fresh()
    active = []
    for disk in range(3):
        file = directory / f"d{disk}-0.qcow2"
        bench.image("create", "-q", "-f", "qcow2", file, 64 * MIB)
        for layer in range(1, 10):
            below, file = file, directory / f"d{disk}-{layer}.qcow2"
            bench.image("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", file)
        active.append(file)
    return directory, bench.machine(directory, active)


def _processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def watching(bench: Bench):
    """`top` on a terminal, while nothing happens."""
    _, machine = _machine(bench)
    with machine as socket:
        ours, theirs = pty.openpty()
        command = [Path(sys.executable).with_name("qmpsnap"), "-s", socket, "top"]
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        ) as top:
            os.close(theirs)
            os.read(ours, 1)
            await anyio.sleep(2)
            began = _processor_time(top.pid)
            await anyio.sleep(_SECONDS)
            share = (_processor_time(top.pid) - began) / _SECONDS * 100
            top.kill()
        os.close(ours)
    yield Row("qmpsnap top at rest, 3 disks at depth 10", f"{share:.2f} %", "-", share, 2.0, "%")


async def recording(bench: Bench):
    """The same queries of one session, with a record of it and without."""
    directory, machine = _machine(bench)
    with machine as socket:
        took: dict[bool, list[float]] = {True: [], False: []}
        for number in range(bench.runs):
            for recorded in (False, True):
                record = directory / f"record-{number}" if recorded else None
                async with qmpsnap.connect(socket, record=record) as vm:
                    for command in ("query-status", "query-named-block-nodes") * _COMMANDS:
                        started = time.perf_counter()
                        await vm.execute(command)
                        took[recorded].append(time.perf_counter() - started)
    small = [{key: values[part::2] for key, values in took.items()} for part in (0, 1)]
    for what, times in zip(("query-status", "query-named-block-nodes"), small, strict=True):
        yield ratio(f"a recorded {what}, against one that is not", times[True], times[False], 1.1)
