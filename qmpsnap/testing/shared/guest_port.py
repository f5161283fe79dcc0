"""The port of qmpsnap's own guest in a shared machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from qmpsnap.testing.guest import Guest, open_guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.shared.reset import Booted, console_end
from qmpsnap.testing.wake import wake

_ANSWERS_S: Final = 30.0  # it has booted


def has_port(booted: Booted) -> bool:
    """Say whether the machine runs qmpsnap's own guest."""
    return (booted.directory / PORT_NAME).exists()


@asynccontextmanager
async def open_woken(booted: Booted) -> AsyncIterator[Guest]:
    """Connect to the guest, whose clock and random seed are set if they are those of a checkpoint."""
    console = partial(console_end, booted.directory)
    async with open_guest(
        booted.directory / PORT_NAME, limit=_ANSWERS_S, vm=booted.vm, console=console
    ) as guest:
        if booted.wakes:
            await wake(guest)
            booted.wakes = False
        yield guest
