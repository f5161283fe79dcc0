"""`qmpsnap delete`: a moment goes, all others stay."""

from __future__ import annotations

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import MOMENT, dry_run
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Delete

__all__ = ["delete"]


@verb(
    "delete",
    example="qmpsnap -s /run/vm1/qmp.sock delete before-upgrade",
    short_help="Delete an internal snapshot from each disk that has it.",
)
@click.argument("name", type=MOMENT)
@dry_run
def delete(name: str, *, dry_run: bool) -> None:
    """Delete the internal snapshot NAME from each disk that has it, while the guest runs.

    External ones cannot be deleted yet; a commit folds their overlays.
    """
    change(Delete(name), dry_run=dry_run)
