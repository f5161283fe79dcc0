"""How much of the host's memory a process can still get. Blocking."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from qmpsnap.run.safe_open import kernel_text

MEMINFO: Final = Path("/proc/meminfo")
CGROUP: Final = Path("/sys/fs/cgroup")  # of a container: its own


def available_memory(*, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return the bytes of memory that this process could still get; None if that is not known.

    Args:
        meminfo: The kernel's account of memory.
        cgroup: Directory of our control group, which may have a limit.
    """
    known: list[int] = []
    with contextlib.suppress(OSError):
        for line in kernel_text(str(meminfo)).splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                known.append(int(rest.split()[0]) << 10)
    with contextlib.suppress(OSError, ValueError):  # "max", or no limits here
        limit, used = (int(kernel_text(str(cgroup / f"memory.{name}"))) for name in ("max", "current"))
        known.append(limit - used)
    return min(known, default=None)
