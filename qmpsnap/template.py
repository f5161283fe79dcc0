"""Templates and their clones: running machines that share the memory of a frozen guest copy-on-write."""

from __future__ import annotations

import os
import posixpath
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Generic

import anyio

from qmpsnap.cloning import resume, waiting, wake_clone
from qmpsnap.errors import Busy, Changed, InvalidTarget, NotFound, TargetExists
from qmpsnap.helper import choose_launcher
from qmpsnap.model.hints import command
from qmpsnap.model.start import RAM_ID, GuestMemory
from qmpsnap.model.template import MEMORY, TemplateRecord
from qmpsnap.one_machine import M, Starter
from qmpsnap.run import template_files
from qmpsnap.run.disk import in_thread, made_in_thread
from qmpsnap.run.keepers import Keepers, keepers_of, remove_keepers
from qmpsnap.run.outcome import Done
from qmpsnap.run.paths import absolute
from qmpsnap.run.safe_open import remove_tree
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
        unkept: Sequence[str] = (),
        keepers: Keepers | None = None,
    ) -> None:
        self.directory = directory
        self.record = record
        self.launcher = launcher
        self.taken: Done | None = None
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
            block=self.record.fingerprint.ram or RAM_ID,
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
