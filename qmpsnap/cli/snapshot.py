"""`qmpsnap snapshot`: new overlays, or snapshots inside the images, all at one instant."""

from __future__ import annotations

from datetime import datetime

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, dry_run, plain, wait
from qmpsnap.cli.picture import of_plan
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Snapshot


@verb(
    "snapshot",
    example="qmpsnap -s /run/vm1/qmp.sock snapshot before-upgrade --disk vda --disk vdb=/fast/vdb.qcow2",
    short_help="Take a snapshot of disks at one instant, in overlays or inside the images.",
)
@click.argument("name", required=False)
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="D[=FILE]",
    type=DISK,
    help="A disk to snapshot, and the file of its overlay. May be repeated. "
    "[default: every writable disk with a medium; beside the active layer, STEM-of-base.NAME.qcow2, "
    "or STEM-of-base.DISK.NAME.qcow2 where two would have the same name]",
)
@click.option(
    "--use-existing",
    is_flag=True,
    help="The overlays exist: check their size, backing file and format. [default: create them]",
)
@click.option(
    "--internal",
    is_flag=True,
    help="Take it inside each active layer, which must be qcow2; no chain changes. [default: overlays]",
)
@wait
@plain
@dry_run
@of_plan
def snapshot(
    name: str | None, disks: tuple[str, ...], *, use_existing: bool, internal: bool, plain: bool
) -> None:
    """Put a new overlay on each disk, all at one instant; a running guest keeps running.

    With --internal the snapshot is taken inside the images instead; to revert to it, the machine has to be
    off.

    NAME is the snapshot's name. [default: snap-YYYYmmddTHHMMSS, local time]
    """
    names: list[str] = []
    files: dict[str, str] = {}
    for argument in disks:
        disk, equals, file = argument.partition("=")
        if not disk or (equals and not file):
            raise click.BadParameter(f"{argument!r} is not DISK or DISK=FILE", param_hint="--disk")
        names.append(disk)
        if file:
            files[disk] = FILE.convert(file, None, None)
    # Local time, for the user; the snapshot's record has UTC.
    moment = name if name is not None else f"snap-{datetime.now().astimezone():%Y%m%dT%H%M%S}"
    if internal and (files or use_existing):
        raise click.UsageError("--internal creates no files: omit --use-existing and the FILE of --disk")
    change(Snapshot(moment, tuple(names), files, use_existing, plain, inside=internal))
