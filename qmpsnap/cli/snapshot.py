"""`qmpsnap snapshot`: new overlays, or snapshots inside the images, all at one instant."""

from __future__ import annotations

from datetime import datetime

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, dry_run, plain
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Snapshot, SnapshotInternal

__all__ = ["snapshot"]


@verb(
    "snapshot",
    example="qmpsnap -s /run/vm1/qmp.sock snapshot before-upgrade --disk vda --disk vdb=/fast/vdb.qcow2",
    short_help="Put an overlay on each disk, or snapshot inside its image, all at one instant.",
)
@click.argument("name", required=False)
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="D[=FILE]",
    type=DISK,
    help="A disk to take, and where its overlay goes. May be repeated. "
    "[default: every writable disk with a medium; beside the active layer, STEM-of-base.NAME.qcow2, "
    "or STEM-of-base.DISK.NAME.qcow2 where two would be one]",
)
@click.option(
    "--use-existing",
    is_flag=True,
    help="The overlays are there already: check size, backing file and format. [default: make them]",
)
@click.option(
    "--internal",
    is_flag=True,
    help="Inside each active layer, which has to be qcow2; no chain changes. [default: overlays]",
)
@plain
@dry_run
def snapshot(
    name: str | None,
    disks: tuple[str, ...],
    *,
    use_existing: bool,
    internal: bool,
    plain: bool,
    dry_run: bool,
) -> None:
    """Put a new overlay on each disk, all at one instant, while the guest runs.

    With --internal the moment is kept inside the images instead.

    NAME is the moment's name. [default: snap-YYYYmmddTHHMMSS, local time]
    """
    spelled, files = [], {}
    for one in disks:
        disk, equals, file = one.partition("=")
        if not disk or (equals and not file):
            raise click.BadParameter(f"{one!r} is not D or D=FILE", param_hint="--disk")
        spelled.append(disk)
        if file:
            files[disk] = FILE.convert(file, None, None)
    # Local time, as it is for people; the moment's record has UTC.
    moment = name if name is not None else f"snap-{datetime.now().astimezone():%Y%m%dT%H%M%S}"
    if internal:
        if files or use_existing:
            raise click.UsageError(
                "--internal makes no files: leave out --use-existing and the FILE of --disk"
            )
        change(SnapshotInternal(moment, tuple(spelled)), dry_run=dry_run)
        return
    change(Snapshot(moment, tuple(spelled), files, use_existing, plain), dry_run=dry_run)
