"""`qmpsnap delete`: delete one snapshot and keep all others."""

from __future__ import annotations

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import MOMENT, dry_run, via, wait
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Delete, Via


@verb(
    "delete",
    example="qmpsnap -s /run/vm1/qmp.sock delete before-upgrade",
    short_help="Delete an internal snapshot, or a checkpoint of either kind.",
)
@click.argument("name", type=MOMENT)
@via
@wait
@dry_run
def delete(name: str, *, via: Via | None) -> None:
    """Delete the snapshot or checkpoint NAME, while the guest is running.

    An internal one is deleted from each disk that has it. Of an external checkpoint the VM state file and the
    name are deleted; its layers stay, and a note says how to commit them.

    External snapshots of disks alone cannot be deleted yet; commit their overlays instead.
    """
    change(Delete(name, via))
