"""What becomes of a moment's record when layers leave its chain, or the moment is deleted."""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from qmpsnap.model.record import MomentRecord


def without_layers(record: MomentRecord, disk: str, *, gone: Collection[str], into: str = "") -> MomentRecord:
    """The record after layers have left the moment's chain; the moment's data is unchanged.

    Args:
        record: The moment's record.
        disk: The disk of these layers.
        gone: Files of these layers.
        into: The file that now holds the moment, if one of them held it.
    """
    covered = record.covered.get(disk)
    if covered is None:
        return record
    files, formats = record.chains.get(disk, ()), record.formats.get(disk, ())
    kept = [index for index, file in enumerate(files) if file not in gone]
    chains = {**record.chains, disk: tuple(files[index] for index in kept)}
    kept_formats = {**record.formats, disk: tuple(formats[index] for index in kept if index < len(formats))}
    return replace(
        record,
        covered={**record.covered, disk: into if covered in gone else covered},
        chains=chains if files else record.chains,
        formats=kept_formats if formats else record.formats,
    )


def deleted_from(record: MomentRecord, disks: Collection[str] = ()) -> MomentRecord:
    """The record after the moment was deleted from these disks, or from all; its VM state fits none then."""
    gone = tuple(dict.fromkeys((*record.deleted_from, *disks)))
    if not disks or not record.covered.keys() - gone:
        return replace(record, state=None, deleted=True)
    return replace(record, state=None, deleted_from=gone)
