"""Checkpoints and reverts of a real guest, against `savevm` of the same guest, and against its boot.

Each run boots a guest of its own. In it every side has its turn, the first one another in each run, and
before each turn the guest dirties the same amount of its memory and of its disks.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from bench_machines import MIB, Bench, bare_client
from bench_rows import Row, plain, ratio

import qmpsnap
from qmpsnap.testing.guest import Guest, open_guest
from qmpsnap.testing.machine import GuestDisk, find_guest_image, guest_argv

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.qmp import EventListener, QMPClient

__all__ = ["checkpoints"]

MEMORY = 256  # MiB of the guest
DIRTIED = 16  # MiB of it that are random anew before each turn, on top of what the guest itself has
WRITTEN = 4  # MiB that go to each disk before each turn
DISKS = ("vda", "vdb")


@dataclass
class Taken:
    """Seconds, of each run."""

    savevm: list[float] = field(default_factory=list)
    background: list[float] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)
    stored_back: list[float] = field(default_factory=list)
    in_place: list[float] = field(default_factory=list)
    boot: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    returned: list[float] = field(default_factory=list)
    disks_back: list[float] = field(default_factory=list)
    state: list[int] = field(default_factory=list)


@dataclass
class Running:
    """A guest that has booted, our VM, and a monitor for the bare commands."""

    vm: qmpsnap.VM
    guest: Guest
    client: QMPClient
    turns: int = 0

    async def dirty(self) -> None:
        self.turns += 1
        script = f"dd if=/dev/urandom of=/tmp/again bs=1M count={DIRTIED} conv=notrunc\n"
        for disk in DISKS:
            device = await self.guest.device(disk)
            script += f"dd if=/tmp/again of={device} bs=1M count={WRITTEN} seek={self.turns * WRITTEN}\n"
        await self.guest.run(f"{{ {script} sync; }} 2> /dev/null", limit=120)


async def checkpoints(bench: Bench):
    """Standstills of checkpoints, and ways back; at least ten runs, since each has one of a kind."""
    taken = Taken()
    turns = (savevm, background, in_place)
    for number in range(max(10, bench.runs // 3)):
        directory = bench.fresh()
        async with running(bench, directory, taken) as machine:
            for turn in (*turns[number % 3 :], *turns[: number % 3]):
                await machine.dirty()
                await turn(machine, taken)
            await disks_back(machine, taken)
        shutil.rmtree(directory)
    yield ratio(
        "checkpoint, background, with a store: standstill / savevm", taken.background, taken.savevm, 0.1
    )
    yield ratio("revert to that, until the guest runs / boot to init", taken.stored_back, taken.boot, 0.09)
    yield plain("checkpoint, background, until its store is made", taken.stored)
    yield ratio("checkpoint, in-place, 2 disks: standstill / savevm", taken.in_place, taken.savevm, 1.3)
    yield ratio("revert, in-place, until the guest runs / boot to init", taken.back, taken.boot, 0.1)
    yield plain("revert, in-place, until the call returns", taken.returned)
    yield plain("revert of 2 disks in place, until `cont`", taken.disks_back)
    state = statistics.median(taken.state) / MIB
    yield Row("VM state of these checkpoints", f"{state:.0f} MiB", "-", state, None, "MiB")


@contextlib.asynccontextmanager
async def running(bench: Bench, directory: Path, taken: Taken):
    """Boot a guest with two qcow2 disks; notes how long it took to the first line of its init."""
    disks = [GuestDisk(name=name, file=directory / f"{name}.qcow2") for name in DISKS]
    for disk in disks:
        bench.image("create", "-q", "-f", "qcow2", disk.file, "256M")
    port, monitor, console = (directory / name for name in ("port", "monitor", "console"))
    system = bench.qemu / "qemu-system-x86_64"
    argv = guest_argv(system, disks, image=find_guest_image(), port=port, memory_mib=MEMORY, console=console)
    argv += ["-qmp", f"unix:{monitor},server=on,wait=off"]
    started = time.perf_counter()
    async with qmpsnap.launch(argv) as vm:
        while not (console.exists() and console.stat().st_size):  # a file has no event for its first line
            await anyio.sleep(0.002)
        taken.boot.append(time.perf_counter() - started)
        async with open_guest(port) as guest, bare_client(str(monitor)) as client:
            yield Running(vm, guest, client)


async def savevm(machine: Running, taken: Taken) -> None:
    """The bare command: seconds from STOP to RESUME, by QEMU's clock."""
    with machine.client.listener(("STOP", "RESUME")) as listener:
        text = await machine.client.execute("human-monitor-command", {"command-line": "savevm bare"})
        assert text == "", text
        stopped = await when(listener, "STOP")
        taken.savevm.append(await when(listener, "RESUME") - stopped)
    # Else each later layer would stand on one that is larger by the state.
    assert await machine.client.execute("human-monitor-command", {"command-line": "delvm bare"}) == ""


async def background(machine: Running, taken: Taken) -> None:
    """Take one that gets its store, which a helper QEMU makes, and revert to it in the same QEMU."""
    done = await machine.vm.checkpoint("background", mode="background")
    assert done.standstill_s, done
    assert "reverts in place" in done.notes[-1], done
    taken.background.append(done.standstill_s)
    taken.stored.append(done.elapsed_s)
    await back(machine, "background", taken.stored_back)


async def in_place(machine: Running, taken: Taken) -> None:
    """Take one, let the guest go on, and go back."""
    done = await machine.vm.checkpoint("in-place", mode="in-place")
    assert done.standstill_s, done
    taken.in_place.append(done.standstill_s)
    taken.state.append(done.bytes)
    taken.returned.append(await back(machine, "in-place", taken.back))


async def back(machine: Running, name: str, until_running: list[float]) -> float:
    """Let the guest go on, and revert: seconds from the call to RESUME; return those to its return."""
    await machine.dirty()
    with machine.client.listener("RESUME") as listener:
        started = time.time()
        await machine.vm.revert(name)
        returned = time.time() - started
        until_running.append(await when(listener, "RESUME") - started)
    await machine.guest.wait_ready()
    return returned


async def disks_back(machine: Running, taken: Taken) -> None:
    """Back to a moment of disks alone: seconds from the call to RESUME, by QEMU's clock."""
    await machine.vm.snapshot("disks")
    await machine.dirty()
    with machine.client.listener("RESUME") as listener:
        started = time.time()
        await machine.vm.revert("disks")
        taken.disks_back.append(await when(listener, "RESUME") - started)


async def when(listener: EventListener, name: str) -> float:
    """QEMU's time of the next such event, in seconds since 1970."""
    async for event in listener:
        if event["event"] == name:
            return event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
    raise SystemExit(f"QEMU has gone before {name}")
