"""The limit of open files of this process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Let this process open exactly so many more files in the block."""
    used, limit = {int(path.name) for path in Path("/proc/self/fd").iterdir()}, 0
    used = {number for number in used if os.path.lexists(f"/proc/self/fd/{number}")}  # not that of the list
    while count or limit in used:
        count -= limit not in used
        limit += 1
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
