"""`qmpsnap prune`: delete old snapshots, or fold chains that are too long."""

from __future__ import annotations

from typing import Any

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, dry_run, keep_files, look_further, progress, wait
from qmpsnap.cli.picture import of_plan
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Prune


@verb(
    "prune",
    example="qmpsnap -s /run/vm1/qmp.sock prune --keep-last 7 -n",
    short_help="Delete old snapshots, or as many as make chains short.",
)
@click.option(
    "--keep-last", type=click.IntRange(1), metavar="N", help="Keep the newest N external snapshots."
)
@click.option(
    "--max-depth",
    type=click.IntRange(1),
    metavar="N",
    help="Delete the cheapest snapshots until no chain has more than N layers.",
)
@click.option(
    "--disk",
    "disks",
    multiple=True,
    type=DISK,
    metavar="DISK",
    help="Consider only this disk's snapshots and chain. May be repeated. [default: all disks]",
)
@keep_files
@look_further
@progress
@wait
@dry_run
@of_plan
def prune(**fields: Any) -> None:  # noqa: ANN401 - the intent checks its fields
    """Delete external snapshots and checkpoints by a rule, and copy as few bytes as possible.

    Give either --keep-last or --max-depth. Layers that something else needs stay, as with `delete`. Look at
    the plan first with -n.
    """
    if (fields["keep_last"] is None) == (fields["max_depth"] is None):
        raise click.UsageError("give --keep-last N or --max-depth N, and not both")
    change(Prune(**fields))
