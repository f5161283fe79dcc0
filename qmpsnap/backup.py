"""Backups of a running machine: take a snapshot, copy the layers beneath it, and merge the overlays back.

A client that is killed in between leaves an ordinary snapshot, whose name tells that it belongs to a backup.
The next backup first merges its overlays back; `commit` does the same by hand.
"""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import Final

import anyio

from qmpsnap.errors import Busy, Changed, Incomplete, QmpsnapError, Refused
from qmpsnap.jobs import Jobs
from qmpsnap.model.backup import (
    BackupRecord,
    backup_id,
    is_backup_moment,
    is_backup_overlay,
    moment_name,
    overlay_moment,
)
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import command
from qmpsnap.model.moments import MomentPart
from qmpsnap.plan.intent import Commit, Snapshot
from qmpsnap.plan.plan import Plan
from qmpsnap.run import backups
from qmpsnap.run.backup_copies import Copies, image_name
from qmpsnap.run.disk import in_thread
from qmpsnap.run.executor import Executor
from qmpsnap.run.log import get_logger
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.run.planning import Planning, Seen
from qmpsnap.run.view_lock import Locks, held

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
        plan = await self._plan(name, disks)
        await self._planning.coverable(plan)
        return replace(
            plan,
            notes=(
                *plan.notes,
                *(
                    f"then {disk} is copied to {posixpath.join(place, name, image_name(disk))}, and compared"
                    for disk in plan.disks
                ),
                f"then each overlay is committed and removed: {command('commit', 'DISK')} --folded remove",
            ),
        )

    async def run(self, place: str, disks: Sequence[str], *, speed: int, hooks: Hooks) -> BackedUp:
        """Take a backup; see `VM.backup`."""
        started = anyio.current_time()
        began, notes = await self._merge_left(disks, hooks)
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        name = backup_id(created, secrets.token_hex(4))
        async with AsyncExitStack() as stack:
            images, locks, reading = backups.Partial(place, name), Locks(moment_name(name)), Locks("")
            stack.push_async_callback(in_thread, images.close)
            stack.callback(locks.close)
            stack.callback(reading.close)
            plans: list[Plan] = []
            directory = ""

            async def prepare() -> Plan:
                plan = await self._plan(name, disks)
                covered = await self._planning.coverable(plan)
                await in_thread(partial(_refuse_running, covered))  # one may have begun since
                await in_thread(partial(images.create, need_bytes=_need(covered)))
                # The locks show other clients that this backup is running.
                await in_thread(partial(_mark, locks, [disk.active.file for disk in covered]))
                await in_thread(partial(_mark, reading, [file for disk in covered for file in disk.files]))
                plans.append(plan)
                return plan

            try:
                taken = await self._executor.do(prepare, hooks)
                copies = Copies(self._planning, images, locks.moment, plans[-1].disks, speed, hooks)
                record = BackupRecord(name, created, await copies.make())
                directory = await in_thread(partial(images.finish, record))
                reading.close()
                async with _patient(hooks) as patient:
                    merged = await self._merge(taken, patient, directory)
            except BaseException as error:
                reading.close()
                said = directory and isinstance(error, QmpsnapError)  # what stays
                if plans and not said:
                    await self._undo(plans[-1], error, hooks)
                raise
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
            standstill_s=None
            if taken.standstill_s is None
            else taken.standstill_s + sum(done.standstill_s or 0.0 for done in merged.values()),
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

    async def _undo(self, plan: Plan, error: BaseException, hooks: Hooks) -> None:
        """Merge the overlays back after a failure, within a time limit; note in the error what is left."""
        left: dict[str, str] = {}
        with anyio.CancelScope(shield=True), anyio.move_on_after(_MERGE_LIMIT), suppress(QmpsnapError):
            chains = (await self._planning.graph()).chains()
            pairs = {disk: _covering(plan, disk) for disk in plan.disks}
            left = {disk: overlay for disk, (overlay, _) in pairs.items() if overlay in chains.get(disk, ())}
            for disk, overlay in (*left.items(),):
                with suppress(QmpsnapError):
                    await self._fold(disk, overlay, pairs[disk][1], Hooks(on_pivot=hooks.on_pivot))
                    del left[disk]
        if left and isinstance(error, QmpsnapError):
            error.changed = Changed.YES
            error.left = (*error.left, *(f"{file}: {_merge_hint(disk)}" for disk, file in left.items()))

    async def _plan(self, name: str, disks: Sequence[str]) -> Plan:
        """The plan of a backup's snapshot.

        Raises:
            StillNeeded: When the machine is off, and other images are backed by an active layer.
        """
        plan = await self._planning.plan(Snapshot(moment_name(name), tuple(disks)))
        self._planning.refuse_below(plan.disks, plan.before)
        return plan

    async def _merge_left(
        self, disks: Sequence[str], hooks: Hooks
    ) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
        """Merge back the overlays of interrupted backups; refuse while another backup is running.

        Returns:
            The chains before, and notes for the user.
        """
        seen = await self._planning.seen()
        self._planning.refuse_below(disks, seen.graph)
        chains, notes = seen.graph.chains(), []
        if await self._finish_left(seen):
            seen = await self._planning.seen()
        for moment in seen.moments.moments:
            if moment.kind != "external" or not is_backup_moment(moment.name):
                continue
            for part in moment.held:
                if await in_thread(partial(held, part.file, moment.name)):
                    raise _running(part.disk)
                notes.append(await self._merge_part(moment.name, part, hooks))
        return chains, tuple(filter(None, notes))

    async def _merge_part(self, name: str, part: MomentPart, hooks: Hooks) -> str:
        """Merge back one overlay of an interrupted backup; return a note for the user, or ""."""
        if not part.in_chain or not part.overlay:
            return ""
        try:
            await self._fold(part.disk, part.overlay, part.file, replace(hooks, detach=None))
        except Refused as error:
            return f"{part.overlay}, the overlay of an interrupted backup, stays: {error.message}"
        return f"merged the overlay of an interrupted backup back into {part.file} ({name})"

    async def _finish_left(self, seen: Seen) -> bool:
        """Finish what clients that were killed have left of backups; whether there was any."""
        left = [
            record
            for record in await self._planning.unfinished(seen.graph, seen.records)
            if is_backup_moment(record.name) or (record.op == "commit" and is_backup_overlay(record.top))
        ]
        for record in left:
            with suppress(Refused):
                await self._jobs.wait(record.id)
        return bool(left)


@asynccontextmanager
async def _patient(hooks: Hooks) -> AsyncIterator[Hooks]:
    """The hooks of a complete backup: after a request to stop, its merges have some time left."""
    if hooks.cancel is None:
        yield hooks
        return
    asked, over = hooks.cancel, anyio.Event()

    async def give_up() -> None:
        await asked.wait()
        await anyio.sleep(_MERGE_LIMIT)
        over.set()

    task = asyncio.create_task(give_up())
    try:
        yield replace(hooks, cancel=over)
    finally:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})


def _covering(plan: Plan, disk: str) -> tuple[str, str]:
    """The overlay that a snapshot's plan puts on a disk, and the layer that it covers."""
    assert plan.after is not None  # noqa: S101 - a snapshot's is predicted
    overlay, covered, *_ = plan.after.disks[disk].files
    return overlay, covered


def _refuse_running(disks: Iterable[Disk]) -> None:
    """Refuse while another backup of one of the disks is running. Blocking."""
    for disk in disks:
        for overlay, covered in pairwise(disk.files):
            if (moment := overlay_moment(overlay)) and held(covered, moment):
                raise _running(disk.name)


def _mark(locks: Locks, files: Iterable[str]) -> None:
    """Set the marks in these layers. Blocking.

    Raises:
        InvalidTarget: When one cannot be opened.
    """
    for file in files:
        try:
            locks.hold((file,))
        except OSError as error:
            raise unusable(file, error, "read") from error


def _running(disk: str) -> Busy:
    return Busy(f"another backup of {disk} is running", node="", job_id="", hint="wait until it ends")


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
