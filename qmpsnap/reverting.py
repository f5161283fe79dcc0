"""Reverts to a checkpoint in a new QEMU, on new overlays."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from qmpsnap.errors import NotFound
from qmpsnap.model.start import Start
from qmpsnap.one_machine import M, OneMachine, Starter
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.vmstate.load import refuse_other_images
from qmpsnap.run.executor import Executor
from qmpsnap.starting import another
from qmpsnap.store import has_store
from qmpsnap.waking import ENDED, Waker, woken


@asynccontextmanager
async def reverted_in_new(
    vm: OneMachine, executor: Executor, name: str, launcher: Starter[M], *, wake: Waker[M] | None
) -> AsyncIterator[M]:
    """Start a QEMU that goes on from a checkpoint, for the block; see `VM.reverted`.

    Args:
        vm: The machine.
        executor: That of the machine, which creates the overlays, and removes them if the new QEMU fails.
        name: The checkpoint's name.
        launcher: Starts the new QEMU.
        wake: Called with it once its guest runs; None: no function.
    """
    plan = await vm.plan(Revert(name, into="new"))
    stored = await has_store(vm, name)
    try:
        done = await executor.run(plan)
    except anyio.get_cancelled_exc_class():  # the overlays may be complete nevertheless
        await executor.remove_overlays(plan)
        raise
    loaded = False
    try:
        start = Start(disks=done.prepared, nodes=plan.nodes, incoming=not stored, paused=True)
        async with another(launcher, start) as new:
            try:
                await new.do(Revert(name, into="incoming"))
            except NotFound:  # the records are found by the layers
                refuse_other_images(await new.graph(), done.prepared, same=operator.eq)
                raise
            loaded = True
            await woken(new, wake, what=f"the revert to {name!r}", hint=ENDED)
            yield new
    finally:
        if not loaded:
            await executor.remove_overlays(plan)
