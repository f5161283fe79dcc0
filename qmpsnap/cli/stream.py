"""`qmpsnap stream`: backing data goes up into the overlay."""

from __future__ import annotations

from typing import Any

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, LAYER, job_options
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Stream


@verb(
    "stream",
    example="qmpsnap -s /run/vm1/qmp.sock stream vda --base base.qcow2",
    short_help="Copy backing data up into an overlay (blockpull).",
)
@click.argument("disk", type=DISK)
@click.option(
    "--base",
    type=LAYER,
    metavar="LAYER",
    help="Layer that stays as the backing file, excluded. [default: none]",
)
@click.option(
    "--into", type=LAYER, metavar="LAYER", help="Layer that receives the data. [default: the active layer]"
)
@job_options
def stream(**fields: Any) -> None:  # noqa: ANN401 - the intent checks its fields
    """Copy backing data up into an overlay, so that layers in between are not needed (alias blockpull).

    The layers in between remain valid files. A LAYER is a path, its last component, a node name or a
    snapshot's name.
    """
    change(Stream(**fields))
