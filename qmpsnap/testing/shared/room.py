"""Whether the host has room for a second QEMU like one that runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Final, cast

from qmpsnap.run.disk import in_thread
from qmpsnap.vm import VM

_SHARE: Final = 4  # a further QEMU may take a quarter of the memory, and of the disk, that is free
_PROCESSORS: Final = 2  # for each worker: one for its test, one for the QEMU that is reset meanwhile
_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


async def has_room(vm: VM, directory: Path, *, workers: int) -> bool:
    """Say whether each worker has a second processor, and room for a second guest like this one.

    QAPI: query-memory-size-summary (machine.json).
    """
    answer = cast("dict[str, int]", await vm.execute("query-memory-size-summary"))
    size_bytes = answer["base-memory"] + answer.get("plugged-memory", 0)
    return await in_thread(lambda: is_room_for(size_bytes, directory, workers=workers))


def is_room_for(
    size_bytes: int, directory: Path, *, workers: int, cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO
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
    free_bytes = min(_free_bytes(cgroup, meminfo), shutil.disk_usage(directory).free)
    return processors >= _PROCESSORS * workers and free_bytes >= _SHARE * size_bytes * workers


def _quota(cgroup: Path) -> float:
    """Processors that the control group may use; infinite without a limit."""
    with contextlib.suppress(OSError, ValueError):
        most, period = (cgroup / "cpu.max").read_text().split()
        return int(most) / int(period)  # "max" is no number
    return float("inf")


def _free_bytes(cgroup: Path, meminfo: Path) -> float:
    free = float("inf")
    with contextlib.suppress(OSError):
        if found := re.search(r"^MemAvailable: +(\d+) kB", meminfo.read_text(), re.MULTILINE):
            free = int(found[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        most, used = ((cgroup / name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, int(most) - int(used))
    return free
