"""Steps on files of ours: overlays, records, and what is put away. No QMP here."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from qmpsnap.errors import TargetUnusable
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

if TYPE_CHECKING:
    from qmpsnap.model.record import IntentRecord
    from qmpsnap.plan.host_steps import HostStep
    from qmpsnap.run.catalog import Catalog
    from qmpsnap.run.images import Created, Images

__all__ = ["Host"]


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

    async def perform(self, step: HostStep) -> None:
        """Do one step.

        Raises:
            TargetExists: When a file that is to be made is there.
            TargetUnusable: When it cannot be made, renamed or removed.
        """
        match step:
            case WriteRecord():
                await self._catalog.write_intent(step.record, step.directory)
            case FinishRecord():
                records, _ = await self._catalog.read((step.directory,))
                for record in records:
                    if record.id in step.ids:
                        await self._catalog.finish(record)
            case KeepMoment():
                await self._catalog.to_moment(await self._intent(step.directory, step.id))
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
                    step.file, size_bytes=0, format="raw", like=step.like
                )
            case RetireFile():
                await self._images.retire(step.file, step.policy, step.to)
            case RemoveMade():
                created = self._made.pop(step.file, None) or await self._images.as_created(step.file)
                if created is not None:
                    await self._images.remove_created(created)
            case RemoveOrphan():
                await self._images.remove_orphan(step.file, step.backing)
            case _:
                assert_never(step)

    async def _intent(self, directory: str, record_id: str) -> IntentRecord:
        records, _ = await self._catalog.read((directory,))
        for record in records:
            if record.id == record_id and record.file_name.startswith("intent-"):
                return record  # type: ignore[return-value]
        raise TargetUnusable(f"the record {record_id} is gone from {directory}", file=directory)
