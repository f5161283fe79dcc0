"""A checkpoint that an operation takes for itself, and deletes again when it fails or no longer needs it."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

import anyio

from qmpsnap.errors import (
    Changed,
    Incomplete,
    Interrupted,
    InvalidTarget,
    LinkLost,
    NotFound,
    QmpsnapError,
    Unsupported,
)
from qmpsnap.model.hints import command
from qmpsnap.one_machine import OneMachine
from qmpsnap.plan.intent import Checkpoint, Commit, Delete
from qmpsnap.plan.plan import Plan
from qmpsnap.run.disk import in_thread
from qmpsnap.run.log import get_logger
from qmpsnap.run.memory_files import remove_state_file
from qmpsnap.run.outcome import Done

_log = get_logger("qmpsnap.template")
_UNDO_LIMIT: Final = 30.0  # seconds in which an overlay must be merged back after the caller's cancellation


async def planned(vm: OneMachine, name: str, *, memory: str = "") -> Plan:
    """Plan a checkpoint in the way that pauses the guest for the shortest time, and leaves it as it was.

    Args:
        vm: The machine.
        name: The checkpoint's name.
        memory: A file that takes its memory if the guest keeps running meanwhile, and if this QEMU can be
            given that file; "": beside the first disk's active layer.
    """
    ways: list[Checkpoint] = []
    if (await vm.status()).running:
        files = (memory, "") if memory else ("",)
        ways = [Checkpoint(name, "background", file) for file in files]
    for way in ways:
        with suppress(Unsupported, *([InvalidTarget] if way.memory else [])):
            return await _planned(vm, way)
    return await _planned(vm, Checkpoint(name, "in-place"))


async def _planned(vm: OneMachine, checkpoint: Checkpoint) -> Plan:
    try:
        return await vm.plan(checkpoint)
    except InvalidTarget as error:
        if "--memory" in error.hint:  # which our caller does not have
            error.hint = (
                "free some space there, or take a checkpoint first, whose memory is elsewhere "
                "(checkpoint NAME --memory FILE), and use that"
            )
        raise


async def take(vm: OneMachine, name: str, *, memory: str = "") -> tuple[Plan, Done]:
    """Take a checkpoint as `planned` plans it.

    After a failure or a cancellation it is deleted again: see `take_back`.

    Returns:
        Its plan, and its result.
    """
    plan = await planned(vm, name, memory=memory)
    try:
        return await _taken(vm, name, plan)
    except Unsupported:  # only now QEMU says whether it can follow the writes to such memory
        if not isinstance(plan.intent, Checkpoint) or plan.intent.mode != "background":
            raise
    return await _taken(vm, name, await _planned(vm, Checkpoint(name, "in-place")))


async def _taken(vm: OneMachine, name: str, plan: Plan) -> tuple[Plan, Done]:
    try:
        return plan, await vm.run(plan)
    except QmpsnapError as error:
        if error.changed is Changed.YES and not isinstance(error, LinkLost):  # its overlays were put on
            error.changed, error.left = Changed.NO, ()  # unless it stays
            await take_back(vm, name, plan, error)
        raise
    except BaseException as error:  # once its overlays were there it may be complete nevertheless
        await take_back(vm, name, plan, error)
        raise


async def take_back(vm: OneMachine, name: str, plan: Plan, error: BaseException | None = None) -> None:
    """Delete a checkpoint that was taken for a template, so that the disks write to the files of before.

    Within a time limit, and whatever cancels us meanwhile. What stays, because the machine has ended for
    example, is an error of its own, or is noted in the one that there is.

    Args:
        vm: The machine.
        name: The checkpoint's name.
        plan: Its plan.
        error: What failed, or the cancellation; None: nothing.

    Raises:
        Incomplete: When the checkpoint stays, and nothing else has failed.
        Interrupted: When we were cancelled, and the checkpoint stays.
    """
    why = f"it took longer than {_UNDO_LIMIT:g} s"
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(_UNDO_LIMIT):
            try:
                await _merge_back(vm, name, plan)
            except QmpsnapError as reason:
                why = reason.message
                _log.warning("checkpoint.left", vm=vm.name, moment=name, reason=str(reason))
            else:
                return
    if error is None:
        files = ", ".join(f"{disk} to {files[0]}" for disk, files in plan.chains_after.items())
        raise Incomplete(
            f"the checkpoint {name!r} could not be merged back: {why}; since then the disks have written to "
            f"layers of their own: {files}",
            remaining=(command("delete", name),),
            hint="start the machine from these files; qmpsnap list shows them",
        )
    left = f"the checkpoint {name!r}: {command('delete', name)}"
    if isinstance(error, anyio.get_cancelled_exc_class()):
        raise Interrupted(
            f"stopped as requested, but the checkpoint {name!r}, which had been taken, could not be deleted",
            changed=Changed.YES,
            left=(left,),
            hint=command("delete", name),
        ) from error
    if isinstance(error, QmpsnapError):
        error.changed = Changed.YES
        error.left = (*error.left, left)


async def _merge_back(vm: OneMachine, name: str, plan: Plan) -> None:
    """Commit each overlay that is still active, which ends the moment, and remove its VM state."""
    graph, moments = await vm.graph(), (await vm.moments()).named(name)
    for disk, files in plan.chains_after.items():
        if disk in graph.disks and graph.disks[disk].files[:2] == files[:2]:
            commit = Commit(disk, top=files[0], base=files[1], folded="remove")
            await vm.run(await vm.plan(commit))
    if not any(moment.record is not None and moment.record.id == plan.operation_id for moment in moments):
        return
    try:
        await vm.run(await vm.plan(Delete(name)))
    except NotFound:
        for record in (moment.record for moment in moments):
            if record is not None and record.state is not None:
                state = record.state
                await in_thread(partial(remove_state_file, state.file, record.id, state.tag))
