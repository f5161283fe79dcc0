"""`qmpsnap delete`: delete one snapshot and keep all others."""

from __future__ import annotations

from typing import Any

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import MOMENT, dry_run, keep_files, look_further, progress, via, wait
from qmpsnap.cli.picture import of_plan
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Delete


@verb(
    "delete",
    example="qmpsnap -s /run/vm1/qmp.sock delete before-upgrade",
    short_help="Delete one snapshot or checkpoint, and keep all others.",
)
@click.argument("name", type=MOMENT)
@via
@keep_files
@look_further
@progress
@wait
@dry_run
@of_plan
def delete(**fields: Any) -> None:  # noqa: ANN401 - the intent checks its fields
    """Delete the snapshot or checkpoint NAME, while the guest runs or with the machine off.

    For an external snapshot, on each disk, the overlay that began at it is committed into the layer beneath,
    or that layer is streamed into the overlay, whichever is possible and copies less; -n shows which. If
    anything else is based on that layer, only the name is deleted.

    On a disk that the machine does not have (not given with -i, unplugged), an external snapshot stays.

    An internal snapshot is deleted from each disk that has it.
    """
    change(Delete(**fields))
