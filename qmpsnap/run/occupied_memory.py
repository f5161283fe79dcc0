"""How much of QEMU's memory can hold a guest's data, as the kernel tells. Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from qmpsnap.model import stream_size
from qmpsnap.model.frozen import Frozen
from qmpsnap.run.descriptors import identity
from qmpsnap.run.safe_open import kernel_text


def runs_threads(pid: int, threads: Iterable[int]) -> bool:
    """Whether the process has all of these threads, and there is one: QEMU knows those of its CPUs.

    A proxy that listens for QEMU, or a QEMU in another PID namespace, does not have them.
    """
    wanted = tuple(threads)
    return bool(wanted) and all(Path(f"/proc/{pid}/task/{thread}").exists() for thread in wanted)


def code_bytes(process: str) -> Mapping[str, int]:
    """Bytes in use of each mapping of translated code, by its addresses; none where it is not known.

    It takes some milliseconds for each 100 MiB that an emulated guest uses; with KVM there is no such code.

    Args:
        process: The process, as `identity` calls it.
    """
    try:
        pid = _pid(process)
        if stream_size.has_code(kernel_text(f"/proc/{pid}/maps")):
            return stream_size.code_bytes(kernel_text(f"/proc/{pid}/smaps"))
    except (OSError, ValueError):
        pass
    return Frozen()


def occupied_bytes(process: str, code: Mapping[str, int] = Frozen()) -> int | None:
    """Bytes of its memory that can hold a guest's data, at most; None: not known.

    Args:
        process: The process, as `identity` calls it.
        code: As `code_bytes` returned it, now or earlier.
    """
    try:
        pid = _pid(process)
        status, maps = (kernel_text(f"/proc/{pid}/{name}") for name in ("status", "maps"))
    except (OSError, ValueError):
        return None
    return stream_size.occupied_bytes(
        status, maps, code, cpus=os.cpu_count() or 1, page_bytes=os.sysconf("SC_PAGE_SIZE")
    )


def _pid(process: str) -> int:
    """The process's id; ValueError if it has ended, or is none."""
    pid = int(process.partition(".")[0])
    if identity(pid) != process:
        raise ValueError(process)
    return pid
