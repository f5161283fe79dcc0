"""Templates and their clones: running machines that share the memory of a frozen guest copy-on-write."""

from __future__ import annotations

import os
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Generic

import anyio

from qmpsnap.cloning import memory_of, refuse_other_memory, resume, waiting, wake_clone
from qmpsnap.errors import Busy, Changed, InvalidTarget, NotFound, QmpsnapError, TargetExists
from qmpsnap.helper import Source, choose_launcher, expendable, loaded, source_of
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.hints import command
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.start import GuestMemory
from qmpsnap.model.template import MEMORY, TemplateDisk, TemplateRecord
from qmpsnap.model.view import DiskView
from qmpsnap.one_machine import M, OneMachine, Starter
from qmpsnap.own_checkpoint import own, planned
from qmpsnap.plan.intent import SaveDevices
from qmpsnap.plan.plan import Plan
from qmpsnap.run import template_files
from qmpsnap.run.disk import in_thread, made_in_thread
from qmpsnap.run.keepers import Keepers, keepers_of, remove_keepers, remove_left
from qmpsnap.run.outcome import Done
from qmpsnap.run.paths import absolute
from qmpsnap.run.safe_open import remove_tree
from qmpsnap.run.template_layers import layers_of, refuse_of_fork, refuse_written
from qmpsnap.run.view_lock import held, hold
from qmpsnap.waking import Waker, check_wake


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
        keepers: Keepers | None = None,
    ) -> None:
        self.directory = directory
        self.record = record
        self.launcher = launcher
        self.taken = taken
        self.unkept = tuple(unkept)
        self._keepers = keepers  # of a template that is not to outlive this process

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
            directory: Where that directory is created; None: among the system's temporary files.
            keep: A new directory in which the overlays are created instead, and which stays. An empty image
                beside each layer stays, too: it shows that the layer is needed, also once the template is
                removed. None: no such directory.
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
        start = choose_launcher(launcher, self.launcher)
        check_wake(wake)
        place = "" if directory is None else absolute("directory", directory)
        keep_directory = "" if keep is None else absolute("keep", keep)
        record, up = self.record, anyio.Event()
        async with AsyncExitStack() as stack:
            memory = self._memory()
            await stack.enter_async_context(self.in_use())
            await in_thread(partial(template_files.refuse_changed, self.directory, record))
            if keep_directory:
                create = partial(template_files.create_directory, keep_directory)
                await made_in_thread(create, lambda _: remove_tree(keep_directory))
                keepers = Keepers("clone", keep_directory)
                stack.push_async_callback(_drop, keep_directory, keepers, up)
                await keepers.create(record.views(), record.name, synced=True)
            clone = await stack.enter_async_context(
                waiting(start, record.views(), memory, directory=place, keep=keep_directory)
            )
            await resume(clone, record, self.directory)
            up.set()
            await wake_clone(clone.vm, wake, of=record.name)
            yield clone.vm

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Keep the template from being removed, also by another process, while the block lasts."""
        memory = posixpath.join(self.directory, MEMORY)
        lock = await made_in_thread(partial(_hold, memory, self.name), _release)
        try:
            yield
        finally:
            _release(lock)

    async def remove(self) -> tuple[str, ...]:
        """Remove the template, and the images that show that its layers are needed.

        Files of yours in its directory stay, and so does the directory then. Memory, state or
        images that are already gone are ignored. If the directory is a copy of a template's, only the copy is
        removed.

        Returns:
            The images that were removed.

        Raises:
            Busy: When a clone of it is running.
            NotFound: When its directory was moved or removed.
            TargetExists: When another template is in the directory now.
            InvalidTarget: When a file cannot be removed; `changed` says whether others were. Call it again
                then.
        """
        memory = posixpath.join(self.directory, MEMORY)
        if await in_thread(partial(held, memory, self.record.name)):
            raise Busy(f"a clone of {self.record.name!r} is running", node="", job_id="", hint="end it first")
        if self._keepers is not None:
            self._keepers.release()
        else:
            await self._refuse_other()
        keepers = await keepers_of(self.directory, self.record.keepers)
        removed = await remove_keepers(keepers)
        try:
            await in_thread(partial(template_files.remove_files, self.directory))
        except InvalidTarget as error:
            if removed:
                error.changed = Changed.YES
            raise
        return tuple(keepers)

    async def _refuse_other(self) -> None:
        """Refuse a directory that is no longer that of this template."""
        try:
            there = await in_thread(partial(template_files.read_template, self.directory))
        except NotFound as error:
            error.hint = (
                "if it was moved, remove it there; if it was removed, name one of the images beside the "
                f"layers ({command('template', '--remove', 'IMAGE')})"
            )
            raise
        if there != self.record:
            raise TargetExists(
                f"another template is in {self.directory!r} now",
                file=self.directory,
                hint="open that one, or name one of the images beside the layers "
                f"({command('template', '--remove', 'IMAGE')})",
            )

    def __repr__(self) -> str:
        return f"<Template {self.name!r} in {self.directory!r}>"

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
    await in_thread(partial(template_files.refuse_place, directory))
    await memory_of(vm)
    if keepers:
        await _refuse_of_fork(vm)
    async with own(vm, name) as checkpoint:
        taken = await checkpoint.take()
        source = await checkpoint.source()
        frozen = await template_of(source, directory, launcher, scratch=scratch, keepers=keepers)
        checkpoint.keep()
    frozen.taken = taken
    return frozen


async def plan_template(vm: OneMachine, directory: str, name: str) -> Plan | None:
    """Plan the checkpoint that is taken for a template, and refuse what `freeze` would; None: it exists.

    Args:
        vm: The machine.
        directory: The directory; absolute.
        name: Name of the checkpoint.
    """
    await in_thread(partial(template_files.refuse_place, directory))
    if (await vm.moments()).named(name):
        await source_of(vm, name)
        return None
    await memory_of(vm)
    await _refuse_of_fork(vm)
    return await planned(vm, name)


async def _refuse_of_fork(vm: OneMachine) -> None:
    chains = (await vm.graph()).chains()
    await in_thread(partial(refuse_of_fork, chains))


async def template_of(
    source: Source,
    directory: str,
    launcher: Starter[M],
    *,
    scratch: str = "",
    lasting: bool = True,
    keepers: bool = True,
    began: Callable[[Sequence[DiskView], GuestMemory, str, KeptState], None] | None = None,
    finished: Callable[[Template[M]], Awaitable[None]] | None = None,
) -> Template[M]:
    """Make a template of a checkpoint; the machine is not changed. See `VM.freeze_template`.

    Args:
        source: The checkpoint; all that does not need its memory is done before it is complete.
        directory: The directory; absolute.
        launcher: Starts the helper QEMU.
        scratch: Directory for what is thrown away.
        lasting: Whether it has to outlive a power cut: then all is on the disk.
        keepers: Whether an empty image beside each layer shows that it is needed; without them the caller
            keeps others from changing the layers.
        began: Only for one that is not `lasting`: called once the helper runs, with how each disk is read,
            the memory that a clone maps, the template's name, and where the devices' state will be. From then
            on a clone's QEMU can be started, but its guest not resumed. None: no function.
        finished: Called with the template as soon as it is complete, while the helper's QEMU ends. None: no
            function.

    Raises:
        QmpsnapError: As `VM.freeze_template`, but what concerns the checkpoint itself.
    """
    name, views = source.name, source.views
    if lasting and keepers:
        await in_thread(partial(refuse_of_fork, {view.disk: view.files for view in views}))
    unfinished = await made_in_thread(
        partial(template_files.Partial, directory, source.memory_bytes, renamed=lasting),
        template_files.Partial.close,
    )
    kept = Keepers("template" if lasting else "fork", directory)
    complete = sealed = False
    disks: Frozen[str, TemplateDisk] = Frozen()
    memory = GuestMemory(file=unfinished.memory, size_bytes=source.memory_bytes, share=True)

    async def protect() -> None:
        nonlocal disks
        if unfinished.swept:
            await remove_left(directory, (file for view in views for file in view.files))
        if keepers:
            await kept.create(views, name, synced=lasting)
        disks = await in_thread(partial(layers_of, views))

    async def check_helper(helper: M) -> None:
        nonlocal sealed
        await refuse_other_memory(helper, memory)
        sealed = await _seals(helper)

    async def begin() -> None:
        if source.foreseen is not None:
            await protect()
        if began is not None:
            state = source.foreseen or await source.state()
            devices = KeptState("stop", unfinished.state, "", running=True, fingerprint=state.fingerprint)
            began(views, replace(memory, share=False, sealed=sealed), name, devices)

    async def finish() -> Template[M]:
        nonlocal complete
        record = await _finish(
            unfinished, source, disks, sealed=sealed, lasting=lasting, keepers=Frozen(kept.made)
        )
        complete = True
        return Template(directory, record, launcher, unkept=kept.unkept, keepers=None if lasting else kept)

    try:
        if source.foreseen is None:
            await protect()
        async with loaded(
            source, launcher, memory=memory, directory=scratch, started=check_helper, begun=begin
        ) as helper:
            await expendable(helper, helper.do(SaveDevices(name, unfinished.state)))
            if finished is not None:
                await finished(template := await finish())
        if finished is None:  # nobody waits for it: the QEMU that wrote the memory has ended by now
            template = await finish()
    except BaseException:
        with anyio.CancelScope(shield=True), suppress(QmpsnapError):
            await kept.remove()
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(partial(unfinished.close, keep=complete))
    if lasting:
        kept.release()
    return template


async def _finish(
    unfinished: template_files.Partial,
    source: Source,
    disks: Frozen[str, TemplateDisk],
    *,
    sealed: bool,
    lasting: bool,
    keepers: Frozen[str, str],
) -> TemplateRecord:
    """Complete the files of a template, whose memory and devices are all there; return its record."""
    memory, devices = await in_thread(partial(unfinished.seal, sealed=sealed, synced=lasting))
    record = TemplateRecord(
        name=source.name,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        fingerprint=(await source.state()).fingerprint,
        memory=memory,
        state=devices,
        sealed=sealed,
        disks=disks,
        keepers=keepers,
    )
    await in_thread(partial(refuse_written, source.views, disks))
    await in_thread(partial(unfinished.finish, record))
    return record


async def _seals(vm: OneMachine) -> bool:
    """Whether this QEMU can map a file that it may only read, without making it a ROM."""
    answer = await vm.execute("qom-list-properties", {"typename": "memory-backend-file"})
    return isinstance(answer, list) and any(
        isinstance(row, dict) and row.get("name") == "rom" for row in answer
    )


async def _drop(directory: str, keepers: Keepers, up: anyio.Event) -> None:
    """Remove the overlays of a clone that never ran, and the images that show that its layers are needed."""
    if up.is_set():
        keepers.release()
        return
    with anyio.CancelScope(shield=True):
        await in_thread(partial(remove_tree, directory))
        await keepers.remove()


def _hold(file: str, name: str) -> int | None:
    """Mark the template as in use; return None if that is not possible, or the template is gone."""
    try:
        return hold(file, name)
    except OSError:
        return None


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
