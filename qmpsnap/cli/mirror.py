"""`qmpsnap mirror`: a copy elsewhere that follows the guest's writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, job_options
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Mirror

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Format, OnError, Sync

__all__ = ["mirror"]


@verb(
    "mirror",
    example="qmpsnap -s /run/vm1/qmp.sock mirror vda /fast/vda.qcow2 --pivot",
    short_help="Copy a disk while the guest writes (blockcopy).",
)
@click.argument("disk", type=DISK)
@click.argument("target", type=FILE)
@click.option("--pivot", is_flag=True, help="At the end the disk moves to the copy.")
@click.option("--finish", is_flag=True, help="At the end the copy is left, as of that moment.")
@click.option(
    "--sync",
    type=click.Choice(["full", "top", "none"]),
    default="full",
    show_default=True,
    help="Copy all that the disk reads, the active layer alone, or new writes only.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["qcow2", "raw"]),
    help="Format of the copy. [default: the source's]",
)
@click.option(
    "--use-existing",
    is_flag=True,
    help="TARGET is there already: check size, backing file and format. [default: make it]",
)
@click.option(
    "--discard-internal",
    is_flag=True,
    help="Leave internal snapshots and persistent bitmaps behind. [default: refuse]",
)
@job_options
def mirror(
    disk: str,
    target: str,
    *,
    pivot: bool,
    finish: bool,
    sync: Sync,
    image_format: Format | None,
    use_existing: bool,
    discard_internal: bool,
    on_error: OnError,
    speed: int,
    progress: bool,
    plain: bool,
    dry_run: bool,
) -> None:
    """Copy DISK to the file TARGET while the guest writes (alias blockcopy).

    Say how it ends: --pivot or --finish.
    """
    if pivot == finish:
        raise click.UsageError("say how the mirror ends: either --pivot or --finish")
    intent = Mirror(
        disk=disk,
        target=target,
        ending="pivot" if pivot else "finish",
        sync=sync,
        format=image_format,
        use_existing=use_existing,
        discard_internal=discard_internal,
        on_error=on_error,
        speed=speed,
        plain=plain,
    )
    change(intent, dry_run=dry_run, progress=progress)
