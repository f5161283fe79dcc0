"""`qmpsnap restore`: a new QEMU gets the VM state that `save` wrote."""

from __future__ import annotations

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import FILE, dry_run
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Restore

__all__ = ["restore"]


@verb(
    "restore",
    example="qmpsnap -s /run/vm1/new.sock restore vm1.state",
    short_help="Give a new QEMU the memory and devices that save wrote.",
)
@click.argument("file", type=FILE)
@dry_run
def restore(file: str, *, dry_run: bool) -> None:
    """Give a new QEMU the memory and devices that `save` wrote to FILE.

    It was started on the same disks, as the same machine, with -S -incoming defer. A guest that ran when it
    was saved runs on, a paused one stays paused. Refused when a layer has changed since, or the machine is
    another.
    """
    change(Restore(file), dry_run=dry_run)
