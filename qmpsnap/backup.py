"""Backups of a running machine: take a snapshot, copy the layers beneath it, and merge the overlays back.

A client that is killed in between leaves an ordinary snapshot, whose name tells that it belongs to a backup.
The next backup first merges its overlays back; `commit` does the same by hand.
"""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import anyio

from qmpsnap.errors import Busy, Changed, Incomplete, Interrupted, InvalidTarget, QmpsnapError, Refused
from qmpsnap.jobs import Jobs
from qmpsnap.model.arguments import number, refuse
from qmpsnap.model.backup import (
    BackupDisk,
    BackupRecord,
    backup_id,
    is_backup_moment,
    moment_name,
)
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import command
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.moments import MomentPart
from qmpsnap.model.names import disk_part, job_id
from qmpsnap.model.view import DiskView
from qmpsnap.plan.intent import Commit, Snapshot
from qmpsnap.plan.plan import Plan
from qmpsnap.run import backups
from qmpsnap.run.copying import alongside, check_image, compare_disk, copy_disk
from qmpsnap.run.disk import in_thread
from qmpsnap.run.executor import Executor
from qmpsnap.run.log import get_logger
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.run.paths import absolute
from qmpsnap.run.planning import Planning, both
from qmpsnap.run.progress import Meter
from qmpsnap.run.view_lock import held, hold

_log = get_logger("qmpsnap.backup")
_NONE: Final = BackupRecord("", "")
_MERGE_LIMIT: Final = 30.0  # seconds that a cancelled backup may take to merge its overlays back


@dataclass(frozen=True, slots=True)
class BackedUp(Done):
    """The result of a backup; `bytes` is the size of its images.

    Attributes:
        backup: Its record: the images, their sizes and checksums.
        directory: Directory of the images.
    """

    backup: BackupRecord = _NONE
    directory: str = ""

    @property
    def files(self) -> dict[str, str]:
        """Path of each disk's image."""
        return {name: posixpath.join(self.directory, disk.file) for name, disk in self.backup.disks.items()}

    def to_json(self) -> dict[str, object]:
        """The result as `--json` prints it."""
        # Not super(): the decorator creates a class with slots anew.
        return {
            **Done.to_json(self),
            "directory": self.directory,
            "files": self.files,
            "backup": self.backup.to_json(),
        }


class Backups:
    """Takes backups of one machine.

    Args:
        executor: Runs plans on it.
        planning: Makes plans for it.
        jobs: Its jobs, and what an earlier client left.
    """

    def __init__(self, executor: Executor, planning: Planning, jobs: Jobs) -> None:
        self._executor = executor
        self._planning = planning
        self._jobs = jobs

    async def plan(self, place: str, disks: Sequence[str]) -> Plan:
        """The plan of the snapshot, with notes on the copies and commits that follow."""
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        name = backup_id(created, secrets.token_hex(4))
        await self._planning.refuse_below(disks)
        plan = await self._planning.plan(Snapshot(moment_name(name), tuple(disks)))
        await self._planning.readable(plan.disks)
        return replace(
            plan,
            notes=(
                *plan.notes,
                *(
                    f"then {disk} is copied to {posixpath.join(place, name, _image(disk))}, and compared"
                    for disk in plan.disks
                ),
                f"then each overlay is committed and removed: {command('commit', 'DISK')} --folded remove",
            ),
        )

    async def run(self, place: str, disks: Sequence[str], *, speed: int, hooks: Hooks) -> BackedUp:
        """Take a backup; see `VM.backup`."""
        started = anyio.current_time()
        began = (await self._planning.refuse_below(disks)).chains()
        notes = await self._merge_left(hooks)
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        name = backup_id(created, secrets.token_hex(4))
        intent = Snapshot(moment_name(name), tuple(disks))
        plan = await self._planning.plan(intent)
        covered = await self._planning.readable(plan.disks)
        async with AsyncExitStack() as stack:
            images = await in_thread(partial(backups.Partial, place, name, need_bytes=_need(covered)))
            stack.push_async_callback(in_thread, images.close)
            for disk in covered:  # the lock shows other clients that this backup is running
                lock = await in_thread(partial(hold, disk.active.file, intent.name))
                if lock is not None:
                    stack.callback(os.close, lock)
            taken = await self._executor.run(plan, hooks, check=self._planning.check)
            copies = _Copies(self._planning, images, intent.name, plan.disks, speed, hooks)
            try:
                record = BackupRecord(name, created, await copies.make())
                directory = await in_thread(partial(images.finish, record))
            except BaseException as error:
                await self._undo(taken, error, hooks)
                raise
            merged = await self._merge(taken, hooks, directory)
        return BackedUp(
            op="backup",
            chains={disk: done.chains[disk] for disk, done in merged.items()},
            active=Frozen(
                {
                    disk: done.chains[disk][0]
                    for disk, done in merged.items()
                    if done.chains[disk][0] != began[disk][0]
                }
            ),
            standstill_s=sum(done.standstill_s or 0.0 for done in (taken, *merged.values())),
            elapsed_s=anyio.current_time() - started,
            bytes=record.image_bytes,
            left=tuple(node for done in merged.values() for node in done.left),
            notes=(*notes, *taken.notes),
            backup=record,
            directory=directory,
        )

    async def _merge(self, taken: Done, hooks: Hooks | None, directory: str) -> dict[str, Done]:
        """Commit each overlay into the layer that it covers; where one stays, the chains are changed."""
        merged: dict[str, Done] = {}
        failed: QmpsnapError | None = None
        for disk, files in taken.chains.items():
            try:
                merged[disk] = await self._fold(disk, files[0], files[1], hooks)
            except QmpsnapError as error:
                if failed is None:
                    hints = (f"the backup is complete: {directory}", error.hint, _merge_hint(disk))
                    failed = _unmerged(error)
                    failed.hint = "; ".join(filter(None, hints))
                failed.left = (*failed.left, f"{files[0]}: {_merge_hint(disk)}")
        if failed is not None:
            raise failed
        return merged

    async def _fold(self, disk: str, overlay: str, base: str, hooks: Hooks | None) -> Done:
        intent = Commit(disk, top=overlay, base=base, folded="remove")
        return await self._executor.do(partial(self._planning.plan, intent), hooks)

    async def _undo(self, taken: Done, error: BaseException, hooks: Hooks) -> None:
        """Merge the overlays back after a failure, within a time limit; note in the error what is left."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(_MERGE_LIMIT), suppress(QmpsnapError):
            left = dict(taken.chains)
            for disk, files in taken.chains.items():
                await self._fold(disk, files[0], files[1], Hooks(on_pivot=hooks.on_pivot))
                del left[disk]
            return
        if isinstance(error, QmpsnapError):
            error.changed = Changed.YES
            error.left = (*error.left, *(f"{files[0]}: {_merge_hint(disk)}" for disk, files in left.items()))

    async def _merge_left(self, hooks: Hooks) -> tuple[str, ...]:
        """Merge back the overlays of interrupted backups; refuse while another backup is running."""
        await self._finish_left()
        notes = []
        moments = await self._planning.moments()
        for moment in moments.moments:
            if moment.kind != "external" or not is_backup_moment(moment.name):
                continue
            for part in moment.held:
                if await in_thread(partial(held, part.file, moment.name)):
                    raise Busy(
                        f"another backup of {part.disk} is running",
                        node="",
                        job_id="",
                        hint="wait until it ends",
                    )
                notes.append(await self._merge_part(moment.name, part, hooks))
        return tuple(filter(None, notes))

    async def _merge_part(self, name: str, part: MomentPart, hooks: Hooks) -> str:
        """Merge back one overlay of an interrupted backup; return a note for the user, or ""."""
        if not part.in_chain or not part.overlay:
            return ""
        try:
            await self._fold(part.disk, part.overlay, part.file, replace(hooks, detach=None))
        except Refused as error:
            return f"{part.overlay}, the overlay of an interrupted backup, stays: {error.message}"
        return f"merged the overlay of an interrupted backup back into {part.file} ({name})"

    async def _finish_left(self) -> None:
        """Finish a snapshot or a commit of a backup during which the client was killed."""
        overlays = {
            part.overlay
            for moment in (await self._planning.moments()).moments
            if is_backup_moment(moment.name)
            for part in moment.held
        }
        for record in await self._jobs.interrupted():
            if is_backup_moment(record.name) or (record.op == "commit" and record.top in overlays):
                with suppress(Refused):
                    await self._jobs.wait(record.id)


@dataclass(frozen=True, slots=True)
class _Copies:
    """Copies the disks of a moment into a backup, one after the other.

    Attributes:
        planning: Makes the views.
        partial: The backup.
        moment: The moment's name.
        disks: Names of the disks.
        speed: Limit in bytes/s; 0: none.
        hooks: The caller's callbacks, and its request to stop.
    """

    planning: Planning
    partial: backups.Partial
    moment: str
    disks: tuple[str, ...]
    speed: int
    hooks: Hooks

    async def make(self) -> dict[str, BackupDisk]:
        """Copy all disks, and compare each copy with the moment; return the manifest's entry of each.

        Raises:
            Interrupted: When the caller's hooks ask to stop.
            CommandFailed: When a copy fails, or differs.
        """
        copies: dict[str, BackupDisk] = {}
        with anyio.CancelScope() as scope:
            async with alongside(self._watch(scope)):
                for view in await self.planning.views(self.moment, self.disks):
                    copies[view.disk] = await self._copy(view)
        if scope.cancelled_caught:
            raise Interrupted("the backup was stopped, and nothing of it is left")
        return copies

    async def _watch(self, scope: anyio.CancelScope) -> None:
        if self.hooks.cancel is not None:
            await self.hooks.cancel.wait()
            scope.cancel()

    async def _copy(self, view: DiskView) -> BackupDisk:
        directory = self.partial.directory
        file = posixpath.join(directory, _image(view.disk))
        total = view.allocated if view.allocated is not None else view.virtual_size
        meter, name = Meter(), job_id("backup", "keep", self.moment[-8:])

        async def tell(done: float) -> None:
            job = Job(name, "backup", JobStatus.RUNNING, round(done * total), total, self.speed)
            await self.hooks.tell(meter.look(job))

        await copy_disk(
            view, file, speed=self.speed, remove=directory, tell=tell, interval=self.hooks.interval
        )
        (crc, size), _ = await both(
            partial(in_thread, partial(backups.checksum, file)),
            partial(compare_disk, view, file, remove=directory),
        )
        return BackupDisk(_image(view.disk), "qcow2", view.virtual_size, size, crc, view.files)


async def list_backups(directory: str | os.PathLike[str]) -> tuple[BackupRecord, ...]:
    """Every backup in a directory, the oldest first. One with a damaged manifest is logged, and left out.

    Raises:
        InvalidTarget: When the directory cannot be read.
    """
    damaged: list[InvalidTarget] = []
    found = await in_thread(partial(backups.find_backups, absolute("directory", directory), damaged))
    for error in damaged:
        _log.warning("backup.damaged", reason=error.message)
    return found


async def verify_backup(directory: str | os.PathLike[str], *, at: int | None = None) -> BackupRecord:
    """Check every image of a backup: its checksum, and that it is consistent and needs no other file.

    Args:
        directory: The directory of backups.
        at: Number of the backup, counted from 1 in the order of the list; None: the newest.

    Raises:
        NotFound: When there is no such backup.
        InvalidTarget: When an image is missing, or its checksum differs.
        CommandFailed: When qemu-img finds an image damaged.
    """
    place, record = await _chosen(directory, at)
    for disk in record.disks.values():
        file = posixpath.join(place, disk.file)
        await in_thread(partial(backups.verify_image, file, disk))
        await check_image(file)
    return record


async def restore_backup(
    directory: str | os.PathLike[str], to: str | os.PathLike[str], *, at: int | None = None
) -> dict[str, str]:
    """Copy the images of a backup out of it, and verify the checksum of each.

    No file is replaced, and a file gets its name only once it is complete and synced. After a failure the
    images that were complete stay.

    Args:
        directory: The directory of backups.
        to: Directory that receives `DISK.qcow2` of each disk; created if it does not exist.
        at: Number of the backup, counted from 1 in the order of the list; None: the newest.

    Returns:
        Path of each disk's image, by the disk's name: start the machine from these.

    Raises:
        NotFound: When there is no such backup.
        TargetExists: When a file exists; nothing was copied.
        InvalidTarget: When a file cannot be created, or an image in the backup is missing or damaged.
    """
    place, record = await _chosen(directory, at)
    target = absolute("to", to)
    files = {name: posixpath.join(target, disk.file) for name, disk in record.disks.items()}
    await in_thread(partial(backups.make_directory, target))
    await in_thread(partial(backups.refuse_taken, tuple(files.values())))
    for name, disk in record.disks.items():
        source = posixpath.join(place, disk.file)
        await in_thread(partial(backups.restore_image, source, disk, files[name]))
    return files


async def _chosen(directory: str | os.PathLike[str], at: int | None) -> tuple[str, BackupRecord]:
    if at is not None and (not isinstance(at, int) or isinstance(at, bool)):
        refuse("at", at, "give a number, from 1, or None")
    if at is not None:
        number("at", at)
    place = absolute("directory", directory)
    record = await in_thread(partial(backups.choose, place, at))
    return posixpath.join(place, record.id), record


def _image(disk: str) -> str:
    return f"{disk_part(disk)}.qcow2"


def _need(disks: Iterable[Disk]) -> int:
    """Bytes that the images may take: at most what the layers take, and at most the size of each disk."""
    return sum(
        min(disk.active.virtual_size, sum(layer.allocated or 0 for layer in disk.layers)) for disk in disks
    )


def _unmerged(error: QmpsnapError) -> QmpsnapError:
    """The error of an overlay that stays, so that the chain is not as before."""
    if isinstance(error, Refused):
        return Incomplete(f"the backup is complete, but its overlay stays: {error.message}")
    if error.changed is Changed.NO:
        error.changed = Changed.YES
    return error


def _merge_hint(disk: str) -> str:
    return f"the next backup merges the overlay back; to do it now: {command('commit', disk)}"
