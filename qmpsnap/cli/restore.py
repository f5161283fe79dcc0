"""`qmpsnap restore`: a new QEMU gets the VM state that `save` wrote."""

from __future__ import annotations

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import FILE, dry_run, wait
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Restore


@verb(
    "restore",
    example="qmpsnap -s /run/vm1/new.sock restore vm1.state",
    short_help="Load into a new QEMU what save wrote: memory and devices.",
)
@click.argument("file", type=FILE)
@wait
@dry_run
def restore(file: str) -> None:
    """Load the memory and devices that `save` wrote to FILE into a new QEMU.

    Start that QEMU on the same disks, with the same machine, and with -S -incoming defer. A guest that was
    running when it was saved continues to run, a paused one stays paused. Refused when a layer has changed
    since, or the machine differs.
    """
    change(Restore(file))
