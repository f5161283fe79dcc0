"""Clones and forks of a real guest, against boots of it, and `savevm`.

Each run boots a guest of its own; the boots of the runs are the other side.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from bench_rows import Row, ms, ratio

import qmpsnap
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.machine import PORT_NAME, guest_machine

if TYPE_CHECKING:
    from bench_machines import Bench

__all__ = ["clones"]

RUNS = 5
TEN = 10
CHILDREN = 5
MIB = 1 << 20
# Each guest has this much of its memory in use, half of it before it is frozen.
USE = "dd if=/dev/urandom of=/tmp/{name} bs=1M count=16 2> /dev/null"


@dataclass
class Taken:
    """Seconds of each run, and bytes."""

    boot: list[float] = field(default_factory=list)
    clone: list[float] = field(default_factory=list)
    savevm: list[float] = field(default_factory=list)
    standstill: list[float] = field(default_factory=list)
    forked: list[float] = field(default_factory=list)


async def clones(bench: Bench):
    """A clone, a fork of five, and the memory of ten clones."""
    taken = Taken()
    for number in range(RUNS):
        directory = bench.fresh()
        async with booted(bench, directory, taken) as (machine, vm):
            await one_run(vm, directory, taken)
            if not number:
                memory = await memory_of_clones(vm, directory), await memory_of_boots(machine, directory)
        shutil.rmtree(directory)
    yield ratio("clone, call to its guest running / boot to init", taken.clone, taken.boot, 0.08)
    yield ratio("fork(5) of a running guest: standstill / savevm", taken.standstill, taken.savevm, 0.3)
    five = statistics.median(taken.boot) * CHILDREN
    last = statistics.median(taken.forked)
    yield Row("fork(5), call to the last child / five boots", ms(last), ms(five), last / five, 0.08)
    ours, booted_ = memory
    share = ours / booted_
    yield Row(
        "ten clones: memory beyond the first / booted",
        f"{ours // MIB} MiB",
        f"{booted_ // MIB} MiB",
        share,
        0.4,
    )


@contextlib.asynccontextmanager
async def booted(bench: Bench, directory: Path, taken: Taken):
    """A guest that answers; notes how long it took to the first line of its init."""
    file = directory / "vda.qcow2"
    bench.image("create", "-q", "-f", "qcow2", file, "256M")
    disk = qmpsnap.MachineDisk(name="vda", file=file)
    machine = guest_machine(bench.qemu / "qemu-system-x86_64", [disk])
    async with started(machine, directory / "console", taken) as vm:
        yield machine, vm


@contextlib.asynccontextmanager
async def started(machine: qmpsnap.Machine, console: Path, taken: Taken | None = None, **how):
    began = time.perf_counter()
    async with qmpsnap.launch(machine, console_log=console, **how) as vm:
        while not (console.exists() and console.stat().st_size):  # a file has no event for its first line
            await anyio.sleep(0.002)
        if taken is not None:
            taken.boot.append(time.perf_counter() - began)
        guest = guest_of(vm)
        await guest.wait_ready()
        await guest.run(USE.format(name="before"))
        yield vm


def guest_of(vm: qmpsnap.VM) -> Guest:
    return Guest(vm.port(PORT_NAME))


async def one_run(vm: qmpsnap.VM, directory: Path, taken: Taken) -> None:
    began = time.perf_counter()
    await vm.execute("human-monitor-command", {"command-line": "savevm bare"})
    taken.savevm.append(time.perf_counter() - began)
    await vm.execute("human-monitor-command", {"command-line": "delvm bare"})
    template = await vm.freeze_template(directory / "template")
    for _ in range(3):
        began = time.perf_counter()
        async with template.clone():
            taken.clone.append(time.perf_counter() - began)
    await template.remove()
    began = time.perf_counter()
    async with vm.fork(CHILDREN) as children:
        async for child in children:
            last = time.perf_counter() - began
            assert child.error is None, child.error
        taken.forked.append(last)
        taken.standstill.append(children.standstill_s)


async def memory_of_clones(vm: qmpsnap.VM, directory: Path) -> int:
    """Bytes (PSS) of nine used clones beside a first one."""
    template = await vm.freeze_template(directory / "ten")
    async with contextlib.AsyncExitStack() as stack:
        machines = [await stack.enter_async_context(template.clone()) for _ in range(TEN)]
        for one in machines:
            await guest_of(one).run(USE.format(name="after"))
        return sum(pss(one.pid) for one in machines[1:])


async def memory_of_boots(machine: qmpsnap.Machine, directory: Path) -> int:
    """The same of nine booted guests: nine times two, for time's sake."""
    sizes = []
    for number in range(2):
        file = directory / f"more{number}.qcow2"
        shutil.copy(machine.disks[0].file, file)
        start = qmpsnap.Start(disks={"vda": str(file)})
        async with started(machine, directory / f"console{number}", start=start) as vm:
            await guest_of(vm).run(USE.format(name="after"))
            sizes.append(pss(vm.pid))
    return round(statistics.mean(sizes) * (TEN - 1))


def pss(pid: int) -> int:
    """Bytes of a process's memory, what it shares counted in shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"no Pss of {pid}")
