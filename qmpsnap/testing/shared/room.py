"""Whether the host has room for a second QEMU like one that runs."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from qmpsnap.model.parse_machine import parse_memory
from qmpsnap.run.available_memory import CGROUP, MEMINFO, available_memory
from qmpsnap.run.disk import in_thread
from qmpsnap.vm import VM

_SHARE: Final = 4  # a further QEMU may take a quarter of the memory, and of the disk, that is free
_PROCESSORS: Final = 2  # for each worker: one for its test, one for the QEMU that is reset meanwhile


async def has_room(vm: VM, directory: Path, *, workers: int) -> bool:
    """Say whether each worker has a second processor, and room for a second guest like this one.

    QAPI: query-memory-size-summary (machine.json).
    """
    size_bytes = parse_memory(await vm.execute("query-memory-size-summary")).total
    return await in_thread(lambda: is_room_for(size_bytes, directory, workers=workers))


def is_room_for(
    size_bytes: int, directory: Path, *, workers: int, cgroup: Path = CGROUP, meminfo: Path = MEMINFO
) -> bool:
    """Say whether each of the workers has room for one more guest of that size.

    Args:
        size_bytes: Memory of the guest.
        directory: Where its checkpoint is kept.
        workers: Number of processes that run tests.
        cgroup: Directory of our control group, which may limit both.
        meminfo: The kernel's account of memory.
    """
    processors = min(float(len(os.sched_getaffinity(0))), _quota(cgroup))
    free = [shutil.disk_usage(directory).free, available_memory(meminfo=meminfo, cgroup=cgroup)]
    room = min(number for number in free if number is not None)
    return processors >= _PROCESSORS * workers and room >= _SHARE * size_bytes * workers


def _quota(cgroup: Path) -> float:
    """Processors that the control group may use; infinite without a limit."""
    with contextlib.suppress(OSError, ValueError):
        most, period = (cgroup / "cpu.max").read_text().split()
        return int(most) / int(period)  # "max" is no number
    return float("inf")
