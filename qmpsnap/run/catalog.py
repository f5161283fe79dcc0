"""Keeps records of intents and moments: one small JSON file each, beside the base image.

A record is created exclusively, synced, and only then given its name, so a reader never
sees an incomplete one. `record_search` reads them.

The record of an operation that is running is locked (`flock`), so that nobody else ends it. The lock
belongs to the open file: it goes with the client, however that ends.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH118, PTH120

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Collection
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from qmpsnap.errors import Busy, InvalidTarget, TargetExists
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.layer_stamps import layers_written
from qmpsnap.model.record import IntentRecord, MomentRecord, Record, moment_of
from qmpsnap.model.record_file import check, to_json
from qmpsnap.run.disk import in_thread, rename_exclusively, sync_directory
from qmpsnap.run.file_stamps import file_stamps
from qmpsnap.run.image_headers import file_mark, marks_in
from qmpsnap.run.log import get_logger
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.patient_lock import lock
from qmpsnap.run.record_directories import link, link_all, remove_empty, sync_all, unlink_all, within
from qmpsnap.run.record_reading import open_trusted
from qmpsnap.run.record_search import find_record, names_of, others_near
from qmpsnap.run.safe_open import create_file, open_file
from qmpsnap.run.unfinished_records import lock_unfinished, remove_unfinished, unfinished_name

_log = get_logger("qmpsnap.run")

_SAMPLE = 8  # records of other machines that are looked at with each that is written
_MONTH = timedelta(days=30)
_LOCK_SECONDS = 5.0

R = TypeVar("R", IntentRecord, MomentRecord)


class Catalog:
    """Records beside the images. Every call works in a thread, to its end, also when it is cancelled.

    An intent's record is locked until it is finished, becomes a moment's record, or is released.
    """

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], int] = {}  # descriptor of each intent, by directory and id

    async def write_intent(self, record: IntentRecord, directory: str) -> IntentRecord:
        """Record an operation that is about to start; durable when it returns.

        After a failure nothing is left. After a cancellation the record may exist; `finish` removes it.

        Returns:
            The record, for `finish` and `to_moment`, with its directory, and with the present stamps of its
            layers.

        Raises:
            TargetExists: When there is a record of that id.
            InvalidTarget: When it cannot be written there.
        """
        stored = await in_thread(partial(_with_stamps, replace(record, directory=directory)))
        await self._write(stored)
        return stored

    async def claim(self, records: Collection[IntentRecord]) -> None:
        """Lock the records of an interrupted operation, which nobody else finishes then.

        After a failure or cancellation some of them may be locked; `let_go` unlocks them.

        Raises:
            Busy: When another client has locked one, or has finished the operation meanwhile.
        """
        for record in records:
            if not await in_thread(partial(_claim, record, self._locks)):
                raise Busy(
                    f"another client is finishing {record.id}, or has finished it",
                    node="",
                    job_id=record.id,
                    hint="qmpsnap jobs shows whether anything is left of it",
                )

    def let_go(self, ids: Collection[str] | None = None) -> None:
        """Unlock the intents of these ids, or all of them, so that another client may finish them."""
        for key in [key for key in self._locks if ids is None or key[1] in ids]:
            os.close(self._locks.pop(key))

    async def finish(self, record: Record) -> None:
        """Remove a record, and its directory if nothing else is in it; idempotent.

        Raises:
            InvalidTarget: When it cannot be removed.
        """
        try:
            await in_thread(partial(_remove, record, self._locks))
        except OSError as error:
            raise _unusable(record, error, "remove") from error

    async def to_moment(self, intent: IntentRecord, *, frozen: Collection[str] = ()) -> MomentRecord:
        """Turn the intent of a snapshot that succeeded into its moment's record; durable when it returns.

        After a failure or cancellation the intent's record exists, or the moment's, or both; never neither.

        Args:
            intent: The intent's record.
            frozen: Layers to which QEMU does not write: the record shows later whether somebody has.

        Raises:
            TargetExists: When there is such a moment.
            InvalidTarget: When it cannot be written.
        """
        moment = await in_thread(partial(_stamped, moment_of(intent), frozen))
        await self._write(moment, instead_of=intent)
        return moment

    async def rewrite(self, record: MomentRecord) -> None:
        """Replace a moment's record; durable when it returns.

        After a failure or cancellation the old or the new record exists, complete.

        Raises:
            InvalidTarget: When it cannot be written.
        """
        try:
            await in_thread(partial(_rewrite, record))
        except (OSError, ValueError) as error:
            raise _unusable(record, error, "write") from error

    async def find(self, directory: str, record_id: str, kind: type[R]) -> R | None:
        """The record of that kind and id in the directory, or None.

        Raises:
            InvalidTarget: When the directory cannot be read.
        """
        try:
            return await in_thread(partial(find_record, directory, record_id, kind))
        except OSError as error:
            raise unusable(directory, error, "read") from error

    @contextlib.asynccontextmanager
    async def locked(self, directory: str) -> AsyncIterator[None]:
        """Hold the lock under which records of moments in that directory are read and replaced.

        Raises:
            InvalidTarget: When another client holds it for seconds, or the directory cannot be opened.
        """
        try:
            descriptor = await in_thread(partial(_lock, directory))
        except OSError as error:
            raise unusable(directory, error, "lock") from error
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def link(self, place: str, to: str) -> None:
        """Make one directory of records lead to another; idempotent, durable when it returns.

        Raises:
            InvalidTarget: When it cannot be written.
        """
        try:
            await in_thread(lambda: sync_all(link(place, to)))
        except (OSError, ValueError) as error:
            raise unusable(place, error, "write") from error

    async def _write(self, record: Record, *, instead_of: Record | None = None) -> None:
        try:
            await in_thread(partial(_write, record, instead_of, self._locks))
        except FileExistsError as error:
            file = os.path.join(record.directory, record.file_name)
            raise TargetExists(f"the record {file!r} exists already", file=file) from error
        except (OSError, ValueError) as error:
            raise _unusable(record, error, "write") from error


def _write(record: Record, instead_of: Record | None, locks: dict[tuple[str, str], int]) -> None:
    check(record)
    changed: set[str] = set()
    within(record.directory, partial(_write_into, record, instead_of, locks, changed), changed)
    sync_all(changed)


def _write_into(
    record: Record,
    instead_of: Record | None,
    locks: dict[tuple[str, str], int],
    changed: set[str],
    descriptor: int,
) -> None:
    """Write a record; add to `changed` the other directories that are to be synced afterwards."""
    remove_unfinished(descriptor)
    locked = _put(descriptor, record)
    if locked is not None:  # here, for what a cancelled call returns is lost
        locks[record.directory, record.id] = locked
    if isinstance(record, MomentRecord):
        _sweep(record, descriptor)
    if instead_of is not None:
        _unlink(instead_of.file_name, descriptor)
    if isinstance(record, MomentRecord):
        changed |= link_all(record)
    sync_directory(descriptor)
    if instead_of is not None:
        _unlock(instead_of, locks)


def _claim(record: IntentRecord, locks: dict[tuple[str, str], int]) -> bool:
    """Lock a record that was read before; False if another client has it, or has removed it.

    Where the file system has no locks, nobody else is kept away.
    """
    try:
        directory = open_trusted(record.directory)
        try:
            # For writing: NFS needs that for a lock.
            descriptor = open_file(record.file_name, write=True, directory=directory)
            try:
                lock(descriptor, _LOCK_SECONDS)  # readers lock it for an instant
                now = os.stat(record.file_name, dir_fd=directory, follow_symlinks=False)
            except OSError:
                os.close(descriptor)
                raise
        finally:
            os.close(directory)
    except (BlockingIOError, FileNotFoundError):
        return False
    except (OSError, ValueError):
        return True
    if not os.path.samestat(now, os.fstat(descriptor)):
        os.close(descriptor)
        return False
    locks[record.directory, record.id] = descriptor
    return True


def _rewrite(record: MomentRecord) -> None:
    record = _marked(record)
    check(record)
    descriptor = open_trusted(record.directory)
    try:
        for name in names_of(record, descriptor):  # it is found by its new keys before it says why
            os.rename(name, record.file_name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        _put(descriptor, record, replace=True)
        sync_directory(descriptor)
    finally:
        os.close(descriptor)


def _marked(record: MomentRecord) -> MomentRecord:
    """The record with the marks of the layers that lead to it; one that has gone keeps its mark.

    Names that these layers had before stay beside them: other records may have them.
    """
    marks = {}
    for file in sorted(record.leading):
        mark = record.marks.get(file, "")
        if not mark:
            with contextlib.suppress(OSError, ValueError):
                mark = file_mark(file)
        if mark:
            marks[file] = mark
    before = {file: mark for file, mark in record.marks.items() if mark in marks.values()}
    return replace(record, marks=Frozen({**before, **marks}))


def _with_stamps(record: IntentRecord) -> IntentRecord:
    """The record of an operation that begins, with the stamps of layers for which moments get new ones."""
    layers = layers_written(record).union(record.folded) if record.renews else ()
    return replace(record, stamps=Frozen(file_stamps(layers)))


def _stamped(record: MomentRecord, frozen: Collection[str]) -> MomentRecord:
    """The record of a new moment, with marks, and with stamps of those of its layers that are `frozen`."""
    layers = {file for files in record.chains.values() for file in files if file in frozen}
    return replace(_marked(record), stamps=Frozen(file_stamps(layers)))


def _lock(directory: str) -> int | None:
    """A descriptor that holds the directory's lock; None when it is missing, or not trusted."""
    try:
        descriptor = open_trusted(directory)
    except (FileNotFoundError, ValueError):
        return None
    try:
        lock(descriptor, _LOCK_SECONDS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(moment: MomentRecord, descriptor: int) -> None:
    """Remove records that nothing needs: of the moments that this one's layers held before, and some others.

    That is one whose overlays are missing, and the layers that held it too, or the guest has written to them
    until now. Where one of them lies elsewhere than beside the records, nobody knows, and the record stays.
    Nothing else shows that another machine is no more than that all of its layers are missing, so its records
    stay for a month: somebody may have moved the images, and will bring them back. Overlays that were renamed
    are known by their marks.
    """
    place, written = os.path.dirname(moment.directory), {*moment.covered.values()}
    month_ago = datetime.fromisoformat(moment.created) - _MONTH
    for name, other in others_near(moment, descriptor, sample=_SAMPLE).items():
        state = {other.state.file} if other.state is not None else set[str]()
        gone = {*other.all_going_on, *other.covered.values()} - written
        if (
            all(os.path.dirname(file) == place for file in gone)
            and not any(map(os.path.lexists, gone | state))
            and other.created < moment.created
            and (written & {*other.covered.values()} or datetime.fromisoformat(other.created) < month_ago)
            and not _renamed_within(place, {other.marks[file] for file in gone if file in other.marks})
        ):
            _log.info("record.removed", name=other.name, directory=other.directory)
            _unlink(name, descriptor)


def _renamed_within(place: str, marks: Collection[str]) -> bool:
    """Whether a layer with one of these marks is in the directory."""
    return bool(marks) and not marks_in(place).keys().isdisjoint(marks)


def _put(descriptor: int, record: Record, *, replace: bool = False) -> int | None:
    """Write a record and give it its name; returns a descriptor that locks it, if it is an intent."""
    name = unfinished_name(record.file_name)
    with os.fdopen(create_file(name, mode=0o644, directory=descriptor), "w", encoding="ascii") as file:
        try:
            lock_unfinished(file.fileno())
            file.write(to_json(record))
            file.flush()
            os.fsync(file.fileno())
            if replace:
                os.rename(name, record.file_name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
            else:
                rename_exclusively(name, record.file_name, directory=descriptor)
            return os.dup(file.fileno()) if isinstance(record, IntentRecord) else None
        except OSError:
            _unlink(name, descriptor)
            raise


def _remove(record: Record, locks: dict[tuple[str, str], int]) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = open_trusted(record.directory)
        try:
            for name in names_of(record, descriptor):
                _unlink(name, descriptor)
            sync_directory(descriptor)
        finally:
            os.close(descriptor)
        if remove_empty(record.directory) and isinstance(record, MomentRecord):
            unlink_all(record)
    _unlock(record, locks)


def _unlock(record: Record, locks: dict[tuple[str, str], int]) -> None:
    """Close the file that locks an intent: slow, as its blocks are freed then."""
    locked = locks.pop((record.directory, record.id), None)
    if locked is not None:
        os.close(locked)


def _unlink(name: str, descriptor: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=descriptor)


def _unusable(record: Record, error: OSError | ValueError, verb: str) -> InvalidTarget:
    file = os.path.join(record.directory, record.file_name)
    return unusable(file, error, f"{verb} the record")
