"""`qmpsnap mirror`: a copy elsewhere that follows the guest's writes."""

from __future__ import annotations

from typing import Any

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, job_options
from qmpsnap.cli.runner import change
from qmpsnap.model.printable import printable
from qmpsnap.plan.intent import Mirror


@verb(
    "mirror",
    example="qmpsnap -s /run/vm1/qmp.sock mirror vda /fast/vda.qcow2 --pivot",
    short_help="Copy a disk, and follow what the guest writes (blockcopy).",
)
@click.argument("disk", type=DISK)
@click.argument("target", type=FILE)
@click.option("--pivot", is_flag=True, help="At the end, switch the disk to the copy.")
@click.option(
    "--finish", is_flag=True, help="At the end, leave a point-in-time copy; the disk stays where it is."
)
@click.option(
    "--sync",
    type=click.Choice(["full", "top", "none"]),
    default="full",
    show_default=True,
    help="Copy the whole disk, only the active layer, or only new writes.",
)
@click.option(
    "--format",
    type=click.Choice(["qcow2", "raw"]),
    help="Format of the copy. [default: the source's; qcow2 if that is encrypted]",
)
@click.option(
    "--use-existing",
    is_flag=True,
    help="TARGET exists: check its size, backing file and format. [default: create it]",
)
@click.option(
    "--discard-internal",
    is_flag=True,
    help="Do not keep internal snapshots and persistent bitmaps. [default: refuse]",
)
@job_options
def mirror(*, pivot: bool, finish: bool, **fields: Any) -> None:  # noqa: ANN401 - the intent checks its fields
    """Copy DISK to the file TARGET, while the guest runs or with the machine off (alias blockcopy).

    Choose how it ends: --pivot or --finish.
    """
    if pivot == finish:
        raise click.UsageError("choose how the mirror ends: --pivot or --finish")
    intent = Mirror(ending="pivot" if pivot else "finish", **fields)
    change(intent, lambda _: [f"the copy is {printable(intent.target)}"] if finish else [])
