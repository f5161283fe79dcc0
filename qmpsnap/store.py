"""Makes a store of a checkpoint by a helper QEMU, so that the machine can revert in place.

The plan is made for the machine, but run on the helper; no command that changes anything goes to the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio

from qmpsnap.errors import Changed, ConnectFailed, Interrupted, LinkLost, NotFound, QmpsnapError
from qmpsnap.helper import expendable, loaded, source_of
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.hints import command
from qmpsnap.one_machine import M, OneMachine, Starter
from qmpsnap.plan.intent import MakeStore
from qmpsnap.plan.vmstate.checkpoint import STORE_NEXT
from qmpsnap.run.log import get_logger
from qmpsnap.run.outcome import Done, Hooks, joined

_log = get_logger("qmpsnap.store")


async def make_store(vm: OneMachine, name: str, launcher: Starter[M], hooks: Hooks | None) -> Done:
    """Write the memory of a checkpoint into a store; see `VM.make_store`."""
    intent = MakeStore(name)  # checks the name
    begun = time.monotonic()
    finished = await _clear(vm, name)
    if finished is not None and await has_store(vm, name):
        return replace(finished, notes=(*finished.notes, _in_place(name)))
    plan = await vm.plan(intent)
    source = await source_of(vm, name)
    try:
        async with _unless_stopped(hooks) as starts, loaded(source, launcher) as helper:
            starts.cancel()  # from here on the helper's operation itself heeds the hooks
            graph = await helper.graph()
            helper_plan = replace(plan, intent=None, disks=(), before=graph, after=graph)
            done = await expendable(helper, helper.run(helper_plan, hooks))
    except LinkLost as error:
        await _clear(vm, name)
        raise ConnectFailed(
            f"the helper QEMU ended before the store of {name!r} was complete: {error}",
            hint=f"{name!r} is unchanged, and reverts in a new QEMU",
        ) from error
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await _clear(vm, name)
        raise
    if not await has_store(vm, name):
        raise NotFound(
            f"{name!r} was deleted while its store was made", hint="qmpsnap list shows what there is"
        )
    chains, elapsed = Frozen(plan.chains_before), time.monotonic() - begun
    return replace(
        done, chains=chains, standstill_s=None, elapsed_s=elapsed, notes=(*done.notes, _in_place(name))
    )


async def with_store(
    vm: OneMachine, done: Done, name: str, launcher: Starter[M] | None, hooks: Hooks | None
) -> Done:
    """Make the store of a checkpoint that was just taken, if possible; return the checkpoint's result.

    The checkpoint is complete even if its store cannot be made; the notes say how it reverts, and why.

    Raises:
        Interrupted: When the caller asked to stop before the store was made; the checkpoint is complete.
    """
    begun = time.monotonic()
    noted = await _with_store(vm, done, name, launcher, hooks)
    return replace(noted, elapsed_s=done.elapsed_s + time.monotonic() - begun)


async def _with_store(
    vm: OneMachine, done: Done, name: str, launcher: Starter[M] | None, hooks: Hooks | None
) -> Done:
    convert = command("checkpoint", "--convert", name, "--launcher", "COMMAND")
    done = replace(done, notes=tuple(note for note in done.notes if note != STORE_NEXT))
    if launcher is None:
        why = "no launcher is known"
    else:
        try:
            if await has_store(vm, name):  # the guest was paused
                return done
            _refuse_stopped(hooks)
            stored = await make_store(vm, name, launcher, hooks)
            return replace(joined(done, stored), bytes=stored.bytes or done.bytes)
        except Interrupted as error:
            raise Interrupted(
                f"stopped as requested; the checkpoint {name!r} is complete, without a store: it reverts in "
                "a new QEMU",
                changed=Changed.YES,
                left=error.left,
                hint=convert,
            ) from error
        except QmpsnapError as error:
            why = f"its store was not made: {error}"
        except Exception as error:  # noqa: BLE001 - of the caller's launcher; the checkpoint is there
            why = f"the launcher has failed: {type(error).__name__}: {error}"
        _log.info("store.failed", vm=vm.name, checkpoint=name, reason=why)
    note = f"{name!r} reverts in a new QEMU: {why}; to make it revert in place: {convert}"
    return replace(done, notes=(*done.notes, note))


async def has_memory(vm: OneMachine, name: str) -> bool:
    """Whether the snapshot is a checkpoint, that is, holds memory, too."""
    return any(moment.mode for moment in (await vm.moments()).named(name))


async def has_store(vm: OneMachine, name: str) -> bool:
    """Whether the memory of the checkpoint is in a store."""
    return "in-place" in {moment.mode for moment in (await vm.moments()).named(name)}


@asynccontextmanager
async def _unless_stopped(hooks: Hooks | None) -> AsyncIterator[asyncio.Task[None]]:
    """Leave the block as soon as the caller asks to stop, until the task is cancelled that waits for that.

    Raises:
        Interrupted: When the caller has asked to stop.
    """
    with anyio.CancelScope() as scope:
        waits = asyncio.ensure_future(_cancel_when_stopped(hooks, scope))
        try:
            yield waits
        finally:
            waits.cancel()
    if scope.cancelled_caught:
        raise Interrupted("stopped as requested")


async def _cancel_when_stopped(hooks: Hooks | None, scope: anyio.CancelScope) -> None:
    if hooks is not None and hooks.cancel is not None:
        await hooks.cancel.wait()
        scope.cancel()


def _refuse_stopped(hooks: Hooks | None) -> None:
    """Start no helper for a caller who has asked to stop by now."""
    if hooks is not None and hooks.cancel is not None and hooks.cancel.is_set():
        raise Interrupted("stopped as requested")


def _in_place(name: str) -> str:
    return f"{name!r} reverts in place: its memory is in a store"


async def _clear(vm: OneMachine, name: str) -> Done | None:
    """Finish or remove an incomplete store of the checkpoint, as left by an earlier client or a helper.

    Returns:
        The result; None if nothing was left.
    """
    for record in await vm.jobs.interrupted():
        if (record.op, record.name) == ("store", name):
            done = await vm.jobs.wait(record.id)
            return done if isinstance(done, Done) else None
    return None
