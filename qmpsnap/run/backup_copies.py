"""Copies the disks of a backup's snapshot into the backup, and compares each copy with the snapshot."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from functools import partial

import anyio

from qmpsnap.errors import Interrupted
from qmpsnap.model.backup import BackupDisk
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.names import disk_part, job_id
from qmpsnap.model.view import DiskView
from qmpsnap.run import backups
from qmpsnap.run.both import both
from qmpsnap.run.copying import alongside, compare_disk, copy_disk
from qmpsnap.run.disk import in_long_thread
from qmpsnap.run.outcome import Hooks
from qmpsnap.run.planning import Planning
from qmpsnap.run.progress import Meter


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies the disks of a moment into a backup, one after the other.

    Attributes:
        planning: Provides the views of the disks.
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
        file = posixpath.join(directory, image_name(view.disk))
        total = view.allocated if view.allocated is not None else view.virtual_size
        meter, name = Meter(), job_id("backup", "keep", self.moment[-8:])

        async def tell(done: float) -> None:
            job = Job(name, "backup", JobStatus.RUNNING, round(done * total), total, self.speed)
            await self.hooks.tell(meter.look(job))

        await copy_disk(
            view, file, speed=self.speed, remove=directory, tell=tell, interval=self.hooks.interval
        )
        (crc, size), _ = await both(
            partial(in_long_thread, partial(backups.checksum, file)),
            partial(compare_disk, view, file, remove=directory),
        )
        return BackupDisk(image_name(view.disk), "qcow2", view.virtual_size, size, crc, view.files)


def image_name(disk: str) -> str:
    """Name of a disk's image in a backup."""
    return f"{disk_part(disk)}.qcow2"
