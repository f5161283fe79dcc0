"""Processes that end shortly after a client that was killed: QEMUs that it has started, and their guards."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from integration.machines import wait_for


def until_ended(running, *places):
    """Wait until only the machine and this process have something in these places open, or named.

    A process that the client was starting has the client's locks until it runs its own program.
    """
    spared = {str(os.getpid()), str(running.pid)}
    wait_for(lambda: not _programs_on(places, spared), "the end of what the client has started")


def _programs_on(places, spared):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name not in spared:
            with contextlib.suppress(OSError):
                names = [*_opened(process), (process / "cmdline").read_text(errors="replace")]
                if any(f"{place}/" in f"{name}/" for name in names for place in places):
                    found.append(process.name)
    return found


def _opened(process):
    """Names of the files that a process has open."""
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(link.readlink())
