"""`qmpsnap commit`: overlay data goes down into a layer below."""

from __future__ import annotations

from typing import Any

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, LAYER, job_options
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Commit


@verb(
    "commit",
    example="qmpsnap -s /run/vm1/qmp.sock commit vda --top before-upgrade --base base.qcow2",
    short_help="Merge overlays down into a backing file (blockcommit).",
)
@click.argument("disk", type=DISK)
@click.option(
    "--top", type=LAYER, metavar="LAYER", help="Newest layer to commit, included. [default: the active layer]"
)
@click.option(
    "--base", type=LAYER, metavar="LAYER", help="Layer that receives the data. [default: the base image]"
)
@click.option(
    "--keep-overlay",
    is_flag=True,
    help="For the active layer: copy the data, but do not pivot. [default: pivot to the base]",
)
@click.option(
    "--look-in",
    multiple=True,
    type=FILE,
    metavar="DIR",
    help="Another directory to search for images backed by a layer that changes. [default: the chain's own "
    "directories]",
)
@click.option(
    "--invalidate",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="An image backed by a layer that changes: let it become invalid. [default: refuse]",
)
@click.option(
    "--folded",
    type=click.Choice(["rename", "remove", "keep"]),
    default="rename",
    show_default=True,
    help="What to do with the committed files; rename: to FILE.invalid.",
)
@click.option(
    "--discard-internal",
    is_flag=True,
    help="Discard the committed layers' internal snapshots and persistent bitmaps. [default: refuse]",
)
@job_options
def commit(**fields: Any) -> None:  # noqa: ANN401 - the intent checks its fields
    """Merge the layers from --top down to just above --base into --base (alias blockcommit).

    The committed files are no longer valid snapshots.
    A LAYER is a path, its last component, a node name or a snapshot's name.
    """
    change(Commit(**fields))
