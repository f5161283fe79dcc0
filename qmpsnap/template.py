"""Templates and their clones: running machines that share the memory of a frozen guest copy-on-write."""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final, Generic

import anyio

from qmpsnap.errors import (
    Busy,
    Changed,
    CommandFailed,
    Incomplete,
    Interrupted,
    InvalidTarget,
    LinkLost,
    MachineDiffers,
    NotFound,
    QmpsnapError,
    Unsupported,
)
from qmpsnap.helper import kept_state, loaded, throwaway
from qmpsnap.model.arguments import refuse
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.hints import command
from qmpsnap.model.start import RAM_ID, GuestMemory, Start
from qmpsnap.model.template import (
    MEMORY,
    FileState,
    TemplateDisk,
    TemplateLayer,
    TemplateRecord,
    keeper_files,
)
from qmpsnap.model.view import DiskView
from qmpsnap.one_machine import M, OneMachine, Starter
from qmpsnap.plan.intent import Checkpoint, Commit, Delete, Load, Mode, SaveDevices
from qmpsnap.plan.plan import Plan
from qmpsnap.run import template_files
from qmpsnap.run.disk import in_thread, made_in_thread
from qmpsnap.run.images import Images
from qmpsnap.run.log import get_logger
from qmpsnap.run.memory_files import remove_state_file
from qmpsnap.run.outcome import Done
from qmpsnap.run.paths import absolute
from qmpsnap.run.safe_open import remove_tree
from qmpsnap.run.view_lock import held, hold
from qmpsnap.waking import ENDED, Waker, check_wake, woken

_log = get_logger("qmpsnap.template")
_UNDO_LIMIT: Final = 30.0  # seconds in which an overlay must be merged back after the caller's cancellation


class Template(Generic[M]):
    """A directory with the memory and devices of a guest, from which clones are started.

    Neither its files nor the layers of its disks may be written to: if one was, no clone is started. An empty
    image beside each layer shows other operations that the layer is needed.

    Attributes:
        directory: The directory; absolute.
        record: Which machine it was, and the size and time of each file.
        launcher: Starts a QEMU of that machine; None: each call needs its own.
        taken: The result of the checkpoint that was taken for it, with the guest's standstill; else None.
        unkept: Layers beside which no image could be created, each as "FILE: REASON".
    """

    def __init__(
        self,
        directory: str,
        record: TemplateRecord,
        launcher: Starter[M] | None,
        *,
        taken: Done | None = None,
        unkept: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.record = record
        self.launcher = launcher
        self.taken = taken
        self.unkept = tuple(unkept)

    @property
    def name(self) -> str:
        """The template's name: that of the checkpoint from which it was made."""
        return self.record.name

    @asynccontextmanager
    async def clone(
        self,
        *,
        launcher: Starter[M] | None = None,
        directory: str | os.PathLike[str] | None = None,
        keep: str | os.PathLike[str] | None = None,
        wake: Waker[M] | None = None,
    ) -> AsyncIterator[M]:
        """Start a new machine whose guest goes on from where the template's stopped; it ends with the block.

        Any number of clones may run at once. Each has its own copy of what it changes: of the memory, page by
        page, and of the disks, in new overlays. What they have in common (MAC addresses, the clock, random
        numbers, names) the caller has to change, for instance with `wake`.

        The overlays lie in a private directory, which is removed with the block, also after a failure or a
        cancellation; the next clone removes it if our process was killed.

        Args:
            launcher: Starts the QEMU; None: that of the template.
            directory: Where that directory lies; None: in that for temporary files.
            keep: A new directory that gets the overlays instead, and stays; None: none. An empty image beside
                each layer stays, too: it shows that the layer is needed, also once the template is removed.
            wake: Called with the machine once its guest runs.

        Yields:
            The machine, its guest running.

        Raises:
            InvalidTarget: When a file of the template was changed, or an overlay cannot be created.
            MachineDiffers: When the launcher starts another machine, or does not use the memory of the
                `Start`.
            Refused, TargetError: As the launcher does.
            Incomplete: When `wake` fails; the machine has ended.
        """
        start = self._launcher(launcher)
        check_wake(wake)
        place = "" if directory is None else absolute("directory", directory)
        keep_directory = "" if keep is None else absolute("keep", keep)
        record, up = self.record, anyio.Event()
        async with AsyncExitStack() as stack:
            memory = self._memory()
            lock = await made_in_thread(partial(_hold, memory.file, record.name), _release)
            stack.callback(_release, lock)
            await in_thread(partial(template_files.refuse_changed, self.directory, record))
            if keep_directory:
                create = partial(template_files.create_directory, keep_directory)
                await made_in_thread(create, lambda _: remove_tree(keep_directory))
                keepers: dict[str, str] = {}
                stack.push_async_callback(_drop, keep_directory, keepers, up)
                await _keep(record.views(), record.name, keepers, synced=True)
            disks, own = await stack.enter_async_context(
                throwaway(record.views(), place, keep=keep_directory)
            )
            given = Start(disks=disks, memory=memory, incoming=True, paused=True, directory=own)
            vm = await stack.enter_async_context(start(given))
            vm.records_in(posixpath.join(keep_directory or own, "records"))
            await refuse_other_memory(vm, memory)
            state = record.kept_state(self.directory)
            load = Load(record.name, state, disks, mapped=True, resume=True)
            await vm.run(await vm.plan(load))
            up.set()
            await woken(vm, wake, what=f"the start of a clone of {record.name!r}", hint=ENDED)
            yield vm

    async def remove(self) -> None:
        """Remove the template, and the images that show that its layers are needed.

        Raises:
            Busy: When a clone of it is running.
            InvalidTarget: When a file cannot be removed; call it again then.
        """
        memory = posixpath.join(self.directory, MEMORY)
        if await in_thread(partial(held, memory, self.record.name)):
            raise Busy(f"a clone of {self.record.name!r} is running", node="", job_id="", hint="end it first")
        await _remove_keepers(self.record.keepers)
        await in_thread(partial(template_files.remove_files, self.directory))

    def to_json(self) -> dict[str, object]:
        """The template as `--json` prints it; `taken`, `chains` and `active` are of the checkpoint."""
        taken = self.taken.to_json() if self.taken is not None else {}
        return {
            "taken": self.taken is not None,
            "chains": taken.get("chains", {}),
            "active": taken.get("active", {}),
            "name": self.name,
            "directory": self.directory,
            "created": self.record.created,
            "memory_bytes": self.record.fingerprint.memory,
            "disks": {
                name: [layer.file for layer in disk.layers] for name, disk in self.record.disks.items()
            },
            "keepers": dict(self.record.keepers),
            "unkept": list(self.unkept),
            "standstill_s": self.taken.standstill_s if self.taken is not None else None,
        }

    def _memory(self) -> GuestMemory:
        return GuestMemory(
            file=posixpath.join(self.directory, MEMORY),
            size_bytes=self.record.fingerprint.memory,
            share=False,
            sealed=self.record.sealed,
        )

    def _launcher(self, given: Starter[M] | None) -> Starter[M]:
        launcher = self.launcher if given is None else given
        if launcher is None or not callable(launcher):
            refuse("launcher", launcher, "give a function that starts a QEMU from a qmpsnap.Start")
        return launcher


async def open_template(
    directory: str | os.PathLike[str], *, launcher: Starter[M] | None = None
) -> Template[M]:
    """Open a template that exists.

    Args:
        directory: Its directory.
        launcher: Starts a QEMU of the machine from which it was made; None: each `clone` needs its own.

    Raises:
        NotFound: When there is none.
        InvalidTarget: When other users may write to it, or its record is damaged.
    """
    place = absolute("directory", directory)
    record = await in_thread(partial(template_files.read_template, place))
    return Template(place, record, launcher)


async def freeze(
    vm: OneMachine,
    directory: str,
    name: str,
    launcher: Starter[M],
    *,
    scratch: str = "",
    keepers: bool = True,
) -> Template[M]:
    """Take a checkpoint of a machine with the shortest standstill, and make a template of it.

    See `VM.freeze_template`.

    Args:
        vm: The machine.
        directory: The directory; absolute.
        name: Name of the checkpoint and of the template.
        launcher: Starts the helper QEMU.
        scratch: Directory for what is thrown away.
        keepers: As for `template_of`.
    """
    plan, taken = await take(vm, name)
    try:
        frozen = await template_of(vm, name, directory, launcher, scratch=scratch, keepers=keepers)
    except BaseException as error:
        await take_back(vm, name, plan, error)
        raise
    frozen.taken = taken
    return frozen


async def take(vm: OneMachine, name: str) -> tuple[Plan, Done]:
    """Take a checkpoint in the way that pauses the guest for the shortest time, and leaves it as it was.

    After a failure or a cancellation it is deleted again: see `take_back`.

    Returns:
        Its plan, and its result.
    """
    if (await vm.status()).running:
        with suppress(Unsupported):  # of such memory, or over such a monitor
            return await _taken(vm, name, "background")
    return await _taken(vm, name, "in-place")


async def _taken(vm: OneMachine, name: str, mode: Mode) -> tuple[Plan, Done]:
    plan = await vm.plan(Checkpoint(name, mode))
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


async def template_of(
    vm: OneMachine,
    name: str,
    directory: str,
    launcher: Starter[M],
    *,
    scratch: str = "",
    lasting: bool = True,
    keepers: bool = True,
) -> Template[M]:
    """Make a template of an existing checkpoint; the machine is not changed. See `VM.freeze_template`.

    Args:
        vm: The machine.
        name: The checkpoint's name.
        directory: The directory; absolute.
        launcher: Starts the helper QEMU.
        scratch: Directory for what is thrown away.
        lasting: Whether it has to outlive a power cut: then all is on the disk.
        keepers: Whether an empty image beside each layer shows that it is needed; without them the caller
            keeps others from changing the layers.
    """
    state = await kept_state(vm, name)
    views = await vm.views(name)
    partly = template_files.Partial
    unfinished = await made_in_thread(partial(partly, directory, state.fingerprint.memory), partly.close)
    kept: dict[str, str] = {}
    try:
        unkept = await _keep(views, name, kept, synced=lasting) if keepers else ()
        disks = await in_thread(partial(_disks, views))
        memory = GuestMemory(file=unfinished.memory, size_bytes=state.fingerprint.memory, share=True)
        async with loaded(vm, name, launcher, memory=memory, directory=scratch) as helper:
            await refuse_other_memory(helper, memory)
            await helper.run(await helper.plan(SaveDevices(name, unfinished.state)))
            sealed = await _seals(helper)
        memory_state, devices_state = await in_thread(partial(unfinished.seal, sealed=sealed, synced=lasting))
        record = TemplateRecord(
            name=name,
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
            fingerprint=state.fingerprint,
            memory=memory_state,
            state=devices_state,
            sealed=sealed,
            disks=disks,
            keepers=kept,
        )
        await in_thread(partial(_refuse_written, views, disks))
        await in_thread(partial(unfinished.finish, record))
    except BaseException:
        with anyio.CancelScope(shield=True), suppress(QmpsnapError):
            await _remove_keepers(kept)
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(unfinished.close)
    return Template(directory, record, launcher, unkept=unkept)


async def refuse_other_memory(vm: OneMachine, memory: GuestMemory) -> None:
    """Refuse a machine unless its memory is the given file, shared or private as given.

    Raises:
        MachineDiffers: When it is not; the message names the properties that differ.

    QAPI: qom-get (qom.json).
    """
    expected: Mapping[tuple[str, str], object] = {
        ("/machine", "memory-backend"): RAM_ID,
        (f"/objects/{RAM_ID}", "mem-path"): memory.file,
        (f"/objects/{RAM_ID}", "share"): memory.share,
    }
    problems = []
    for (path, name), value in expected.items():
        try:
            actual = await vm.execute("qom-get", {"path": path, "property": name})
        except CommandFailed as error:
            actual = error.desc
        if actual not in {value, f"/objects/{value}"}:
            problems.append(f"{name} of {path} is {actual!r}, not {value!r}")
    if problems:
        raise MachineDiffers(
            f"the launcher did not use the memory that it was given: {'; '.join(problems)}",
            differences=problems,
            hint="append the arguments of the Start to the command line: [..., *start.arguments]",
        )


async def _seals(vm: OneMachine) -> bool:
    """Whether this QEMU can map a file that it may only read, without making it a ROM."""
    answer = await vm.execute("qom-list-properties", {"typename": "memory-backend-file"})
    return isinstance(answer, list) and any(
        isinstance(row, dict) and row.get("name") == "rom" for row in answer
    )


async def _keep(
    views: Iterable[DiskView], name: str, made: dict[str, str], *, synced: bool
) -> tuple[str, ...]:
    """Create an empty image that is based on each layer; return the layers for which that failed.

    Args:
        views: How each disk is read.
        name: The template's name.
        made: Receives each image with its layer.
        synced: Whether they are synced to the disk.
    """
    images, token, unkept = Images(), secrets.token_hex(4), []
    layers = {layer.file: (layer, view) for view in views for layer in view.layers if not layer.is_device}
    for file, keeper in keeper_files(layers, name, token).items():
        layer, view = layers[file]
        made[keeper] = file
        try:
            await images.create_image(
                keeper,
                size_bytes=view.virtual_size,
                format="qcow2",
                like=file,
                backing=file,
                backing_format=layer.format,
                synced=synced,
            )
        except InvalidTarget as error:
            del made[keeper]
            unkept.append(f"{file}: {error.message}")
    return tuple(unkept)


async def _remove_keepers(keepers: Mapping[str, str]) -> None:
    images = Images()
    for file, layer in keepers.items():
        await images.remove_orphan(file, layer)


def _disks(views: Sequence[DiskView]) -> Frozen[str, TemplateDisk]:
    """Return size, time and inode of the layers of the disks, as of now. Blocking.

    Raises:
        InvalidTarget: When one is gone.
    """
    return Frozen(
        {
            view.disk: TemplateDisk(
                tuple(
                    TemplateLayer(
                        layer.file,
                        "raw" if layer.format == "raw" else "qcow2",
                        _state(layer.file),
                        Frozen({layer.data_file: _state(layer.data_file)} if layer.data_file else {}),
                    )
                    for layer in view.layers
                ),
                view.virtual_size,
            )
            for view in views
        }
    )


def _refuse_written(views: Sequence[DiskView], disks: Mapping[str, TemplateDisk]) -> None:
    """Refuse if a layer was written to or replaced. Blocking."""
    if _disks(views) != disks:
        raise InvalidTarget(
            "a layer was written to while the template was made",
            file=views[0].layers[0].file,
            hint="end the job that writes to it, and try again",
        )


def _state(file: str) -> FileState:
    state = template_files.look((file,))[file]
    if state is None:
        raise InvalidTarget(f"the layer {file!r} is gone", file=file)
    return state


async def _drop(directory: str, keepers: Mapping[str, str], up: anyio.Event) -> None:
    """Remove the overlays of a clone that never ran, and the images that show that its layers are needed."""
    if not up.is_set():
        with anyio.CancelScope(shield=True):
            await in_thread(partial(remove_tree, directory))
            await _remove_keepers(keepers)


def _hold(file: str, name: str) -> int | None:
    """Mark the template as in use; return None if that is not possible, or the template is gone."""
    try:
        return hold(file, name)
    except OSError:
        return None


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
