"""Launchers of helper QEMUs for machines without a guest, and what may happen to them."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import qmpsnap
from integration.machines import CHEAP, blockdev


def launcher(qemu, *extra, seen=None, at=None):
    """Start a QEMU for a `Start`; `at` is called with each step of a plan that is run on it, and a number."""

    @asynccontextmanager
    async def start(given):
        if seen is not None:
            seen.append(given)
        disks = itertools.chain.from_iterable(blockdev(name, file) for name, file in given.disks.items())
        async with qmpsnap.launch([qemu.system, *CHEAP, *disks, *extra, *given.arguments]) as vm:
            if at is not None:
                _watch(vm, at)
            yield vm

    return start


def _watch(vm, at):
    perform, numbers = vm._target.perform, itertools.count()

    async def performed(step):
        seconds = await perform(step)
        at(vm, step, next(numbers))
        return seconds

    vm._target.perform = performed
