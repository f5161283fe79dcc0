"""A checkpoint that an operation takes for itself, and deletes again when it fails or no longer needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio

from qmpsnap.errors import (
    Changed,
    GraphMismatch,
    Incomplete,
    Interrupted,
    InvalidTarget,
    LinkLost,
    NotFound,
    QmpsnapError,
    Unsupported,
)
from qmpsnap.helper import Source, kept_state, source_of
from qmpsnap.model.hints import command
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.option_hints import names
from qmpsnap.model.start import RAM_ID
from qmpsnap.model.step import Step
from qmpsnap.model.view import DiskView
from qmpsnap.one_machine import OneMachine
from qmpsnap.plan import view
from qmpsnap.plan.intent import Checkpoint, Commit, Delete
from qmpsnap.plan.plan import Plan
from qmpsnap.run.disk import in_thread
from qmpsnap.run.log import get_logger
from qmpsnap.run.memory_files import remove_state_file
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.run.view_lock import Locks

_log = get_logger("qmpsnap.template")
T = TypeVar("T")
_UNDO_LIMIT: Final = 30.0  # seconds in which an overlay must be merged back after the caller's cancellation


class _Otherwise(Exception):
    """The checkpoint is not taken in the way that was foreseen."""


async def planned(vm: OneMachine, name: str, *, memory: str = "", fork: bool = False) -> Plan:
    """Plan a checkpoint in the way that pauses the guest for the shortest time, and leaves it as it was.

    Args:
        vm: The machine.
        name: The checkpoint's name.
        memory: A file that takes its memory if the guest keeps running meanwhile, and if this QEMU can be
            given that file; "": beside the first disk's active layer.
        fork: Whether a fork takes it.
    """
    ways: list[Checkpoint] = []
    if (await vm.status()).running:
        files = (memory, "") if memory else ("",)
        ways = [Checkpoint(name, "background", file, fork=fork) for file in files]
    for way in ways:
        with suppress(Unsupported, *([InvalidTarget] if way.memory else [])):
            return await _planned(vm, way)
    return await _planned(vm, Checkpoint(name, "in-place", fork=fork))


async def _planned(vm: OneMachine, checkpoint: Checkpoint) -> Plan:
    try:
        return await vm.plan(checkpoint)
    except (InvalidTarget, Unsupported) as error:  # its hint may name an option that our caller does not have
        if names(error, "memory"):
            error.hint = (
                "free some space there, or take a checkpoint first, whose memory is elsewhere "
                "(checkpoint NAME --memory FILE), and use that"
            )
        elif names(error, "plain"):
            error.hint = (
                "an encrypted disk cannot be forked, nor be part of a template; for a revert alone, take a "
                "checkpoint with --plain"
            )
        raise


class Own:
    """A checkpoint that is taken inside a block, and deleted at its end unless it is kept.

    Attributes:
        name: Its name.
        plan: Its plan.
        done: Its result, once it was taken.
    """

    def __init__(self, vm: OneMachine, name: str, plan: Plan) -> None:
        self.name = name
        self.plan = plan
        self.done: Done | None = None
        self._vm = vm
        self._to_delete = False  # whether the end deletes it
        self._covered = anyio.Event()
        self._complete = anyio.Event()
        self._known = anyio.Event()
        self._state: KeptState | None = None
        self._views: tuple[DiskView, ...] = ()  # how the disks will be read, if work may begin early

    async def take(self) -> Done:
        """Take it."""
        try:
            self.done = await self._take()
        except QmpsnapError as error:
            if error.changed is Changed.YES and not isinstance(error, LinkLost):  # its overlays were put on
                error.changed, error.left = Changed.NO, ()  # unless it stays
                self._to_delete = True
            raise
        except BaseException:  # once its overlays were there it may be complete nevertheless
            self._to_delete = True
            raise
        self._to_delete = True
        self._complete.set()
        return self.done

    async def take_while(self, work: Callable[[Source], Awaitable[T]]) -> T:
        """Take it, and begin with work on it at once; return the work's result.

        If it cannot be taken, the work is cancelled, and has ended when this raises. If the work fails, it is
        taken nevertheless.

        Args:
            work: Called with the checkpoint before that is taken, or, where it is not known before how the
                disks will be read, once it is complete; then perhaps a second time.

        Raises:
            InvalidTarget: When the layers are not those with which the work began.
            Exception: What taking it, or else the work, raises.
        """
        self._views = await self._foreseen()
        results: list[T] = []
        errors: list[Exception] = []

        async def begin() -> None:
            try:
                if self._views:
                    with suppress(_Otherwise):
                        results.append(await work(self._early()))
                        return
                await self._complete.wait()
                results.append(await work(await self.source()))
            except Exception as error:  # noqa: BLE001 - the task group would wrap it
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin)
            try:
                await self.take()
                await self._look_back()
            except Exception as error:  # noqa: BLE001 - as above
                errors.insert(0, error)
                tasks.cancel_scope.cancel()
        if errors:
            raise errors[0]
        return results[0]

    async def source(self) -> Source:
        """The checkpoint, once it was taken."""
        return await source_of(self._vm, self.name)

    def keep(self) -> None:
        """Leave it there at the end of the block."""
        self._to_delete = False

    async def end(self, error: BaseException | None) -> None:
        """Delete it if it is there, as `take_back` does."""
        if self._to_delete:
            await take_back(self._vm, self.name, self.plan, error)

    async def _take(self) -> Done:
        try:
            return await self._taken()
        except GraphMismatch as error:
            if error.changed is Changed.NO:  # the caller knows of no plan
                error.hint = "another client has changed the machine at the same time: try again"
            raise

    async def _taken(self) -> Done:
        try:
            return await self._vm.run(self.plan, Hooks(before=self._note))
        except Unsupported:  # only now QEMU says whether it can follow the writes to such memory
            if not isinstance(self.plan.intent, Checkpoint) or self.plan.intent.mode != "background":
                raise
        in_place = Checkpoint(self.name, "in-place", fork=self.plan.intent.fork)
        self._views = ()
        self._covered.set()
        self.plan = await _planned(self._vm, in_place)
        return await self._vm.run(self.plan)

    def _note(self, step: Step) -> None:
        """Note when the guest runs again, on its overlays, and only its memory is still being written."""
        if self._views and step.command == "await-migration" and step.arguments["until"] == "kept":
            self._covered.set()

    async def _foreseen(self) -> tuple[DiskView, ...]:
        """How the disks will be read, if that is simple and the checkpoint's memory becomes a stream."""
        if not isinstance(self.plan.intent, Checkpoint) or self.plan.intent.mode != "background":
            return ()
        foreseen = view.foreseen(self.name, self.plan)
        files = [file for disk in foreseen for layer in disk.layers for file in (layer.file, layer.data_file)]
        return foreseen if await in_thread(partial(_regular, files)) else ()

    def _early(self) -> Source:
        """The checkpoint before it is taken, or complete."""
        (sealed,) = (step for step in self.plan.steps if step.command == "seal-memory")

        async def state() -> KeptState:
            await self._known.wait()
            assert self._state is not None  # noqa: S101 - it is set first
            return self._state

        async def begun() -> None:
            await self._covered.wait()
            if not self._views:
                raise _Otherwise

        machine = sealed.detail["fingerprint"]
        foreseen = self.plan.record.state if self.plan.record is not None else None
        return Source(
            self.name,
            self._views,
            machine["memory"],
            machine["ram"] or RAM_ID,
            stream=True,
            state=state,
            foreseen=foreseen,
            begun=begun,
        )

    async def _look_back(self) -> None:
        """Let work that began early go on; refuse layers that are not those with which it began."""
        if not self._views:
            return
        self._state = await kept_state(self._vm, self.name)
        if not view.as_foreseen(await self._vm.views(self.name), self._views):
            file = self._views[0].files[0]
            raise InvalidTarget(f"the layers of {self.name!r} were changed while it was taken", file=file)
        self._known.set()


@asynccontextmanager
async def own(
    vm: OneMachine, name: str, *, memory: str = "", marks: Locks | None = None
) -> AsyncIterator[Own]:
    """Plan a checkpoint as `planned` does; `Own.take` takes it, and the end of the block deletes it again.

    What stands on its layers has to end inside the block.

    Args:
        vm: The machine.
        name: The checkpoint's name.
        memory: As for `planned`.
        marks: Of a fork: they are set in the layers, and show that it is not over. If no layer can be marked,
            the checkpoint is like any other. None: it is not of a fork.

    Raises:
        Incomplete, Interrupted: As `take_back`, at the end.
    """
    plan = await planned(vm, name, memory=memory, fork=marks is not None)
    if marks is not None:
        await in_thread(partial(_mark, marks, plan))
        if not marks:
            plan = await planned(vm, name, memory=memory)
    checkpoint = Own(vm, name, plan)
    try:
        yield checkpoint
    except BaseException as error:
        await checkpoint.end(error)
        raise
    await checkpoint.end(None)


def _mark(marks: Locks, plan: Plan) -> None:
    """Set the marks in the layers that we may open. Blocking."""
    for file in (file for files in plan.chains_before.values() for file in files if file.startswith("/")):
        with suppress(OSError):
            marks.hold([file])


def _regular(files: Iterable[str]) -> bool:
    """Whether all are regular files; those without a name are not looked at."""
    return all(Path(file).is_file() for file in files if file)


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
    """Commit each overlay that is still active, and delete the moment, and its VM state.

    If possible it is one operation, which its record finishes if we are killed. A deletion that would leave
    an overlay, because something else needs the layer, is not enough.
    """
    graph, moments = await vm.graph(), (await vm.moments()).named(name)
    active = {
        disk: files
        for disk, files in plan.chains_after.items()
        if disk in graph.disks and graph.disks[disk].files[:2] == files[:2]
    }
    kept = any(moment.record is not None and moment.record.id == plan.operation_id for moment in moments)
    if kept and active:
        deletion = await vm.plan(Delete(name, down=True))
        if len(deletion.jobs) == len(active):
            await vm.run(deletion)
            return
    for disk, files in active.items():
        await vm.do(Commit(disk, top=files[0], base=files[1], folded="remove"))
    if not kept:
        return
    try:
        await vm.do(Delete(name))
    except NotFound:
        for record in (moment.record for moment in moments):
            if record is not None and record.state is not None:
                state = record.state
                await in_thread(partial(remove_state_file, state.file, record.id, state.tag))
