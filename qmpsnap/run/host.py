"""Steps on files of ours: overlays, VM state, records, and what is put away. No QMP here."""

# The actions take the arguments of their steps, `id` among them.
# ruff: noqa: A002

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping

import anyio
from msgspec import convert
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.disk_renames import with_names
from qmpsnap.model.files import Ask
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.layer_renames import Renames, with_paths
from qmpsnap.model.layer_stamps import frozen_layers, layers_written, renewed
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import IntentRecord, MomentRecord, Record
from qmpsnap.model.record_changes import deleted_from, without_layers
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.files import Proof
from qmpsnap.plan.intent import Folded
from qmpsnap.run import memory_files
from qmpsnap.run.catalog import Catalog
from qmpsnap.run.cleanup import Created
from qmpsnap.run.disk import in_thread
from qmpsnap.run.file_stamps import file_stamps
from qmpsnap.run.images import Images
from qmpsnap.run.log import get_logger
from qmpsnap.run.memory_files import Sealed, remove_state_file
from qmpsnap.run.os_errors import hint, reason, unusable
from qmpsnap.run.reservation import Reservation
from qmpsnap.run.scratch import sweep
from qmpsnap.run.survey import look

_log = get_logger("qmpsnap.run")
_BRANCHES = 64  # that a moment's record keeps even if their overlays are missing
_STORE_BYTES = 1 << 20  # what a guest would see of a store; VM state grows beyond it


class Host:
    """Performs host steps, and remembers what it made so that it removes nothing else.

    Args:
        images: Makes and removes image files.
        catalog: Writes and removes records.

    Attributes:
        graph: The graph as it was last read, or None.
        state_bytes: Bytes of the last file of VM state that was sealed.
    """

    def __init__(self, images: Images, catalog: Catalog) -> None:
        self._images = images
        self._catalog = catalog
        self._made: dict[str, Created] = {}
        self._reserved: dict[str, Reservation] = {}  # of each file of VM state that is not complete yet
        self._rewriting = anyio.Lock()  # a moment's record, which operations on several disks may share
        self._sealed: dict[str, tuple[int, int]] = {}  # of each file of VM state its inode and owner
        self._names: dict[str, dict[str, str]] = {}  # of a moment's record: what its disks are called now
        self._renames = Renames()
        self.graph: Graph | None = None
        self.state_bytes = 0
        self._actions: Mapping[str, Callable[..., Awaitable[None]]] = {
            "write-record": self._write_record,
            "finish-record": self._finish_record,
            "keep-moment": self._keep_moment,
            "create-overlay": self._create_image,
            "create-file": self._create_file,
            "create-image": self._create_image,
            "create-memory": self._create_memory,
            "reserve-memory": self._reserve_memory,
            "create-store": self._create_store,
            "apply-snapshot": self._apply_snapshot,
            "retire-file": self._retire_file,
            "remove-file": self._remove_file,
            "remove-orphan": self._remove_orphan,
            "remove-scratch": self._remove_scratch,
            "seal-memory": self._seal_memory,
            "seal-store": self._seal_store,
            "remove-state": self._remove_state,
            "keep-store": self._keep_store,
            "keep-branch": self._keep_branch,
            "keep-link": self._keep_link,
            "keep-lost": self._keep_lost,
            "keep-place": self._keep_place,
            "keep-continued": self._keep_continued,
            "link-records": self._link_records,
        }

    async def perform(self, step: Step) -> None:
        """Do one step.

        Raises:
            TargetExists: When a file that is to be made is there.
            InvalidTarget: When it cannot be made, renamed or removed.
        """
        await self._actions[step.command](step, **step.arguments)

    async def _write_record(self, step: Step, *, directory: str, **_: str) -> None:
        await self._catalog.write_intent(step.detail["record"], directory)

    async def _finish_record(
        self, _: Step, *, directory: str, ids: Collection[str], moments: Collection[str] = ()
    ) -> None:
        intents = [await self._catalog.find(directory, one, IntentRecord) for one in ids]
        for record in (
            *intents,
            *[await self._catalog.find(directory, one, MomentRecord) for one in moments],
        ):
            if isinstance(record, IntentRecord):
                await self._renew_stamps(record)
            if record is not None:
                await self._catalog.finish(record)

    async def _renew_stamps(self, intent: IntentRecord) -> None:
        """Let moments show that it was our operation that has written to their layers."""
        for record_id, directory in intent.renews.items():
            async with self._changing(directory):
                if await self._catalog.find(directory, record_id, MomentRecord) is None:
                    continue  # it was deleted
                moment = await self._moment(directory, record_id)
                written = layers_written(intent).intersection(moment.stamps)
                now = await in_thread(functools.partial(file_stamps, written))
                if (fresh := renewed(moment, intent.stamps, dict.fromkeys(written, "") | now)) != moment:
                    await self._catalog.rewrite(fresh)

    async def _keep_moment(self, _: Step, *, directory: str, id: str, **__: str) -> None:
        intent = await self._with_identity(await self._intent(directory, id))
        frozen = frozen_layers(self.graph) if self.graph is not None else ()
        await self._catalog.to_moment(intent, frozen=frozen)

    async def _create_file(self, _: Step, *, file: str, like: str) -> None:
        self._made[file] = await self._images.create_image(
            file, size_bytes=0, format="raw", like=like or None
        )

    async def _create_image(
        self,
        step: Step,
        *,
        file: str,
        size_bytes: int,
        like: str,
        format: str = "qcow2",
        backing: str | None = None,
        backing_format: str | None = None,
        **_: str,
    ) -> None:
        self._made[file] = await self._images.create_image(
            file,
            size_bytes=size_bytes,
            format=format,
            like=like or None,
            backing=backing,
            backing_format=backing_format,
            luks=step.detail.get("luks"),
        )

    async def _create_memory(self, _: Step, *, file: str) -> None:
        self._made[file] = await self._images.create_image(file, size_bytes=0, format="raw", like=None)

    async def _reserve_memory(self, _: Step, *, file: str, at_most_bytes: int, process: str) -> None:
        reservation = self._reserved.setdefault(file, Reservation(file, self._made[file]))
        try:
            await in_thread(functools.partial(reservation.extend, process, at_most_bytes))
        except OSError as error:
            raise InvalidTarget(
                f"cannot reserve space for the guest's memory in {file!r}: {reason(error)}",
                file=file,
                hint=hint(error),
            ) from error

    async def _create_store(self, _: Step, *, file: str, like: str) -> None:
        self._made[file] = await self._images.create_image(
            file, size_bytes=_STORE_BYTES, format="qcow2", like=like, private=True
        )

    async def _apply_snapshot(self, _: Step, *, file: str, name: str) -> None:
        await self._images.apply_snapshot(file, name)

    async def _retire_file(self, step: Step, *, file: str, policy: Folded, to: str) -> None:
        proof = step.detail.get("proof")
        if step.detail.get("alone"):
            await _refuse_backed(file)
        await self._images.retire(file, policy, to, proof and convert(proof, Proof))

    async def _remove_file(self, _: Step, *, file: str) -> None:
        self._reserved.pop(file, None)
        created = self._made.pop(file, None) or await self._images.as_created(file)
        if created is not None:
            await self._images.remove_created(created)

    async def _remove_orphan(self, _: Step, *, file: str, backing: str | None) -> None:
        await self._images.remove_orphan(file, backing)

    async def _remove_scratch(self, _: Step, *, places: Collection[str]) -> None:
        await in_thread(functools.partial(sweep, places))

    async def _seal_memory(self, step: Step, *, partial: str, file: str) -> None:
        seal = memory_files.seal_memory
        note = {**step.detail, "fingerprint": convert(step.detail["fingerprint"], Fingerprint)}
        await self._seal(file, functools.partial(seal, partial, file, **note, made=self.made(partial)))
        self._reserved.pop(partial, None)

    async def _seal_store(self, _: Step, *, partial: str, file: str) -> None:
        await self._seal(
            file, functools.partial(memory_files.seal_store, partial, file, made=self.made(partial))
        )

    async def _keep_store(self, _: Step, *, directory: str, id: str, by: str, instead_of: str) -> None:
        made = (await self._with_identity(await self._intent(directory, by))).state
        assert made is not None  # noqa: S101 - record_rules
        async with self._changing(directory):
            moment = await self._catalog.find(directory, id, MomentRecord)
            if moment is None or moment.state is None:
                _log.warning("store.unwanted", file=made.file, reason="the checkpoint was deleted meanwhile")
                await self._remove(made.file, by, made.tag)
                return
            if moment.state.file == instead_of:
                await self._catalog.rewrite(replace(await self._moment(directory, id), state=made))
        await self._remove(instead_of, id, "")

    async def _remove_state(self, _: Step, *, file: str, id: str, tag: str) -> None:
        await self._remove(file, id, tag)

    async def _remove(self, file: str, id: str, tag: str) -> None:
        """Remove a file of VM state if it is that of the operation."""
        try:
            removed = await in_thread(functools.partial(remove_state_file, file, id, tag))
            left = not removed and await in_thread(functools.partial(os.path.lexists, file))
        except OSError as error:
            raise unusable(file, error, "remove") from error
        if left:
            _log.warning("state.left", file=file, reason="it belongs to another operation")

    async def _keep_branch(
        self,
        _: Step,
        *,
        directory: str,
        id: str,
        overlays: Mapping[str, str],
    ) -> None:
        async with self._changing(directory):
            moment = await self._moment(directory, id)
            if overlays not in moment.branches:
                earlier = await in_thread(functools.partial(_without_missing, moment.branches))
                branches = (*earlier, Frozen(overlays))
                fresh = _without_marks(moment, overlays.values())
                await self._catalog.rewrite(replace(fresh, branches=branches))

    async def _keep_link(self, _: Step, *, directory: str, id: str, disks: tuple[str, ...] = ()) -> None:
        async with self._changing(directory):
            moment = await self._moment(directory, id)
            await self._catalog.rewrite(deleted_from(moment, disks))

    async def _keep_lost(self, _: Step, *, directory: str, id: str, disk: str) -> None:
        async with self._changing(directory):
            moment = await self._moment(directory, id)
            if disk not in moment.lost:
                await self._catalog.rewrite(replace(moment, lost=(*moment.lost, disk)))

    async def _keep_place(
        self,
        _: Step,
        *,
        directory: str,
        id: str,
        disk: str,
        gone: tuple[str, ...],
        into: str,
    ) -> None:
        async with self._changing(directory):
            moment = await self._moment(directory, id)
            await self._catalog.rewrite(without_layers(moment, disk, gone=gone, into=into))

    async def _keep_continued(self, _: Step, *, directory: str, id: str, disk: str, file: str) -> None:
        async with self._changing(directory):
            moment = await self._moment(directory, id)
            continued = {disk: file}
            if continued not in moment.continued:
                moment = replace(moment, continued=(*moment.continued, Frozen(continued)))
            await self._catalog.rewrite(_without_marks(moment, (file,)))

    async def _link_records(self, _: Step, *, place: str, directory: str) -> None:
        await self._catalog.link(place, directory)

    def learn(self, read: Iterable[Record], now: Iterable[Record], renames: Renames) -> None:
        """Remember what disks and layers are called now that the records, as read, call otherwise."""
        self._renames |= renames
        for was, one in zip(read, now, strict=True):
            if isinstance(was, MomentRecord) and isinstance(one, MomentRecord) and was != one:
                self._names[was.id] = dict(zip(was.covered, one.covered, strict=True))

    def made(self, file: str) -> Created | None:
        """The file of that name that was made here, or None."""
        return self._made.get(file)

    async def _seal(self, file: str, seal: Callable[[], Sealed]) -> None:
        try:
            sealed = await in_thread(seal)
        except FileExistsError as error:
            raise TargetExists(f"{file!r} exists already", file=file) from error
        except OSError as error:
            raise unusable(file, error, "keep") from error
        self.state_bytes = sealed.size_bytes
        self._sealed[file] = (sealed.inode, sealed.user)

    async def _with_identity(self, intent: IntentRecord) -> IntentRecord:
        """The same, with what tells the file of VM state from one that takes its name later."""
        state = intent.state
        if state is None:
            return intent
        if state.file in self._sealed:
            inode, user = self._sealed[state.file]
        else:  # an earlier run of ours gave it its name
            fact = (await in_thread(functools.partial(memory_files.look, (state.file,))))[state.file]
            inode, user = fact.inode, fact.user
        return replace(intent, state=replace(state, inode=inode, user=user))

    @contextlib.asynccontextmanager
    async def _changing(self, directory: str) -> AsyncIterator[None]:
        """Keep others, in this process or another, from changing a moment's record there meanwhile."""
        async with self._rewriting, self._catalog.locked(directory):
            yield

    async def _intent(self, directory: str, record_id: str) -> IntentRecord:
        record = await self._catalog.find(directory, record_id, IntentRecord)
        if record is not None:
            return record
        raise InvalidTarget(f"the record {record_id} no longer exists in {directory}", file=directory)

    async def _moment(self, directory: str, record_id: str) -> MomentRecord:
        """The record, with its disks and layers called as the plan calls them."""
        record = await self._catalog.find(directory, record_id, MomentRecord)
        if record is not None:
            return with_paths(with_names(record, self._names.get(record_id, {})), self._renames)
        raise InvalidTarget(f"the moment {record_id} no longer exists in {directory}", file=directory)


async def _refuse_backed(file: str) -> None:
    """Refuse to remove a layer on which somebody has based an image since it was planned."""
    found = await in_thread(functools.partial(look, Ask(files=(file,), survey=(posixpath.dirname(file),))))
    by = found.backed_by(file)
    if by:
        raise InvalidTarget(f"{file!r} stays: {', '.join(by)} is based on it by now", file=file)


def _without_marks(moment: MomentRecord, files: Collection[str]) -> MomentRecord:
    """The record without the marks of these files: another layer may have had the name before."""
    marks = {file: mark for file, mark in moment.marks.items() if file not in files}
    return replace(moment, marks=Frozen(marks))


def _without_missing(branches: tuple[Mapping[str, str], ...]) -> tuple[Mapping[str, str], ...]:
    """The branches; where there are many, without the oldest of those whose overlays are missing."""
    many, kept = len(branches) - _BRANCHES, []
    for branch in branches:
        if many > 0 and not any(map(os.path.lexists, branch.values())):
            many -= 1
        else:
            kept.append(branch)
    return tuple(kept)
