"""The monitors of a shared machine: one for the plugin, the others for tests and what they start."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import anyio

from qmpsnap.run.disk import in_thread
from qmpsnap.run.sockets import clients_of

MONITORS: Final = 4
"""Number of monitors of each QEMU: the first is for the plugin, the others are for tests."""

_PATIENCE_S: Final = 0.5  # for a client that is just ending, and for QEMU to notice it


def monitors(directory: Path) -> tuple[str, ...]:
    """Return the paths of the monitors of a QEMU."""
    return tuple(str(directory / f"qmp{number}") for number in range(MONITORS))


async def still_connected(directory: Path) -> dict[str, str]:
    """Return the monitors for tests to which a client is connected half a second later, and who that is."""
    found: dict[str, str] = {}
    with anyio.move_on_after(_PATIENCE_S):
        while found := await in_thread(partial(_connected, directory)):  # noqa: ASYNC110 - QEMU sends no event
            await anyio.sleep(0.02)
    return found


def _connected(directory: Path) -> dict[str, str]:
    found = {path: clients_of(path) for path in monitors(directory)[1:]}
    return {
        path: ", ".join(map(str, clients)) or "a process of another user"
        for path, clients in found.items()
        if clients is not None
    }
