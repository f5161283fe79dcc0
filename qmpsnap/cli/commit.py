"""`qmpsnap commit`: overlay data goes down into a layer below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, LAYER, job_options
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Commit

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Folded, OnError

__all__ = ["commit"]


@verb(
    "commit",
    example="qmpsnap -s /run/vm1/qmp.sock commit vda --top before-upgrade --base base.qcow2",
    short_help="Fold layers down into one below (blockcommit).",
)
@click.argument("disk", type=DISK)
@click.option(
    "--top", type=LAYER, metavar="LAYER", help="Newest layer to fold, included. [default: the active layer]"
)
@click.option(
    "--base", type=LAYER, metavar="LAYER", help="Layer that receives the data. [default: the deepest one]"
)
@click.option(
    "--keep-overlay",
    is_flag=True,
    help="With the active layer: copy, and leave the chain as it is. [default: pivot to the base]",
)
@click.option(
    "--look-in",
    multiple=True,
    type=FILE,
    metavar="DIR",
    help="Another directory whose images may stand on what changes. [default: the chain's own]",
)
@click.option(
    "--invalidate",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="An image that stands on what changes and is given up. [default: refuse]",
)
@click.option(
    "--folded",
    type=click.Choice(["rename", "remove", "keep"]),
    default="rename",
    show_default=True,
    help="What becomes of the folded files; rename: to FILE.invalid.",
)
@click.option(
    "--discard-internal",
    is_flag=True,
    help="Lose the folded layers' internal snapshots and persistent bitmaps. [default: refuse]",
)
@job_options
def commit(
    disk: str,
    *,
    top: str | None,
    base: str | None,
    keep_overlay: bool,
    look_in: tuple[str, ...],
    invalidate: tuple[str, ...],
    folded: Folded,
    discard_internal: bool,
    on_error: OnError,
    speed: int,
    progress: bool,
    plain: bool,
    dry_run: bool,
) -> None:
    """Fold the layers from --top down to just above --base into it (alias blockcommit).

    The folded files hold no moment any more.
    A LAYER is a path, its last part, a node name or a snapshot's name.
    """
    intent = Commit(
        disk=disk,
        top=top,
        base=base,
        keep_overlay=keep_overlay,
        look_in=look_in,
        invalidate=invalidate,
        folded=folded,
        discard_internal=discard_internal,
        on_error=on_error,
        speed=speed,
        plain=plain,
    )
    change(intent, dry_run=dry_run, progress=progress)
