"""Steps on files of ours: overlays, VM state, records, and what is put away. No QMP here."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, assert_never

import anyio
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.disk_renames import with_names
from qmpsnap.model.moments import without_layers
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.plan.host_steps import (
    CreateOverlay,
    CreatePlaceholder,
    FinishRecord,
    KeepMoment,
    RemoveMade,
    RemoveOrphan,
    RetireFile,
    WriteRecord,
)
from qmpsnap.plan.memory_steps import (
    CreateMemory,
    CreateStore,
    KeepBranch,
    KeepLink,
    KeepLost,
    KeepPlace,
    MemoryStep,
    RemoveState,
    SealMemory,
    SealStore,
)
from qmpsnap.run import memory_files
from qmpsnap.run.disk import in_thread
from qmpsnap.run.log import get_logger
from qmpsnap.run.os_errors import hint, reason, unusable
from qmpsnap.run.state_files import remove_state_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qmpsnap.model.record import Record
    from qmpsnap.plan.host_steps import HostStep
    from qmpsnap.run.catalog import Catalog
    from qmpsnap.run.images import Created, Images

__all__ = ["Host"]

_log = get_logger("qmpsnap.run")
_STORE_BYTES = 1 << 20  # what a guest would see of a store; VM state grows beyond it


class Host:
    """Performs host steps, and remembers what it made so that it removes nothing else.

    Args:
        images: Makes and removes image files.
        catalog: Writes and removes records.
    """

    def __init__(self, images: Images, catalog: Catalog) -> None:
        self._images = images
        self._catalog = catalog
        self._made: dict[str, Created] = {}
        self._rewriting = anyio.Lock()  # a moment's record, which operations on several disks may share
        self._sealed: dict[str, tuple[int, int]] = {}  # of each file of VM state its inode and owner
        self._names: dict[str, dict[str, str]] = {}  # of a moment's record: what its disks are called now
        self.state_bytes = 0  # of the last file of VM state that was sealed

    async def perform(self, step: HostStep | MemoryStep) -> None:
        """Do one step.

        Raises:
            TargetExists: When a file that is to be made is there.
            InvalidTarget: When it cannot be made, renamed or removed.
        """
        if isinstance(step, KeepBranch | KeepLink | KeepLost | KeepPlace):
            async with self._rewriting:
                await self._perform_on_memory(step)
            return
        if isinstance(step, MemoryStep):
            await self._perform_on_memory(step)
            return
        match step:
            case WriteRecord():
                await self._catalog.write_intent(step.record, step.directory)
            case FinishRecord():
                records, _ = await self._catalog.read((step.directory,))
                for record in records:
                    if record.id in (step.ids if isinstance(record, IntentRecord) else step.moments):
                        await self._catalog.finish(record)
            case KeepMoment():
                await self._catalog.to_moment(
                    await self._with_identity(await self._intent(step.directory, step.id))
                )
            case CreateOverlay():
                self._made[step.file] = await self._images.create_overlay(
                    step.file,
                    size_bytes=step.size_bytes,
                    backing=step.backing,
                    backing_format=step.backing_format,
                    like=step.like,
                )
            case CreatePlaceholder():
                self._made[step.file] = await self._images.create_image(
                    step.file, size_bytes=0, format="raw", like=step.like or None
                )
            case RetireFile():
                await self._images.retire(step.file, step.policy, step.to, step.proof)
            case RemoveMade():
                created = self._made.pop(step.file, None) or await self._images.as_created(step.file)
                if created is not None:
                    await self._images.remove_created(created)
            case RemoveOrphan():
                await self._images.remove_orphan(step.file, step.backing)
            case _:
                assert_never(step)

    async def _perform_on_memory(self, step: MemoryStep) -> None:
        match step:
            case CreateMemory():
                self._made[step.file] = await self._images.create_image(
                    step.file, size_bytes=0, format="raw", like=None
                )
                if step.reserve_bytes:
                    await self._reserve(step)
            case CreateStore():
                self._made[step.file] = await self._images.create_image(
                    step.file, size_bytes=_STORE_BYTES, format="qcow2", like=step.like, private=True
                )
            case SealMemory() | SealStore():
                await self._seal(step)
            case RemoveState():
                await self._remove_state(step)
            case KeepBranch():
                moment = await self._moment(step.directory, step.id)
                if step.overlays not in moment.branches:
                    branches = (*moment.branches, step.overlays)
                    await self._catalog.rewrite(replace(moment, branches=branches))
            case KeepLink():
                moment = await self._moment(step.directory, step.id)
                await self._catalog.rewrite(replace(moment, state=None, deleted=True))
            case KeepLost():
                moment = await self._moment(step.directory, step.id)
                if step.disk not in moment.lost:
                    await self._catalog.rewrite(replace(moment, lost=(*moment.lost, step.disk)))
            case KeepPlace():
                moment = await self._moment(step.directory, step.id)
                await self._catalog.rewrite(without_layers(moment, step.disk, gone=step.gone, into=step.into))
            case _:
                assert_never(step)

    def learn(self, read: Iterable[Record], now: Iterable[Record]) -> None:
        """Remember what disks are called now that the records, as read, call otherwise."""
        for was, one in zip(read, now, strict=True):
            if isinstance(was, MomentRecord) and isinstance(one, MomentRecord) and was != one:
                self._names[was.id] = dict(zip(was.covered, one.covered, strict=True))

    def made(self, file: str) -> Created | None:
        """The file of that name that was made here, or None."""
        return self._made.get(file)

    async def _remove_state(self, step: RemoveState) -> None:
        remove = partial(remove_state_file, step.file, step.id, step.tag)
        try:
            left = not await in_thread(remove) and await in_thread(partial(os.path.lexists, step.file))
        except OSError as error:
            raise unusable(step.file, error, "remove") from error
        if left:
            _log.warning("state.left", file=step.file, reason="it belongs to another operation")

    async def _reserve(self, step: CreateMemory) -> None:
        try:
            await in_thread(
                partial(memory_files.reserve, step.file, step.reserve_bytes, self.made(step.file))
            )
        except OSError as error:
            await self._images.remove_created(self._made.pop(step.file))
            raise InvalidTarget(
                f"cannot reserve {step.reserve_bytes} bytes for {step.file!r}: {reason(error)}",
                file=step.file,
                hint=hint(error),
            ) from error

    async def _seal(self, step: SealMemory | SealStore) -> None:
        seal = (
            partial(memory_files.seal_memory, step, self.made(step.partial))
            if isinstance(step, SealMemory)
            else partial(memory_files.seal_store, step, self.made(step.partial))
        )
        try:
            sealed = await in_thread(seal)
        except FileExistsError as error:
            raise TargetExists(f"{step.file!r} exists already", file=step.file) from error
        except OSError as error:
            raise unusable(step.file, error, "keep") from error
        self.state_bytes = sealed.size_bytes
        self._sealed[step.file] = (sealed.inode, sealed.user)

    async def _with_identity(self, intent: IntentRecord) -> IntentRecord:
        """The same, with what tells the file of VM state from one that takes its name later."""
        state = intent.state
        if state is None:
            return intent
        if state.file in self._sealed:
            inode, user = self._sealed[state.file]
        else:  # an earlier run of ours gave it its name
            fact = (await in_thread(partial(memory_files.look, (state.file,))))[state.file]
            inode, user = fact.inode, fact.user
        return replace(intent, state=replace(state, inode=inode, user=user))

    async def _intent(self, directory: str, record_id: str) -> IntentRecord:
        records, _ = await self._catalog.read((directory,))
        for record in records:
            if record.id == record_id and isinstance(record, IntentRecord):
                return record
        raise InvalidTarget(f"the record {record_id} no longer exists in {directory}", file=directory)

    async def _moment(self, directory: str, record_id: str) -> MomentRecord:
        """The record, with its disks called as the plan calls them."""
        records, _ = await self._catalog.read((directory,))
        for record in records:
            if record.id == record_id and isinstance(record, MomentRecord):
                return with_names(record, self._names.get(record_id, {}))
        raise InvalidTarget(f"the moment {record_id} no longer exists in {directory}", file=directory)
