"""`qmpsnap revert`: back to a moment, in the same QEMU or with a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, MOMENT, dry_run, via
from qmpsnap.cli.output import shown
from qmpsnap.cli.runner import change, command
from qmpsnap.plan.intent import PrepareRevert, Revert, RevertIncoming

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Via
    from qmpsnap.run.outcome import Done

__all__ = ["revert"]


@verb(
    "revert",
    example="qmpsnap -s /run/vm1/qmp.sock revert booted",
    short_help="Go back to a moment, in the same QEMU or with a new one.",
)
@click.argument("name", type=MOMENT)
@click.option(
    "--leave",
    multiple=True,
    type=DISK,
    metavar="DISK",
    help="A disk that stays as it is. May be repeated. [default: all go back]",
)
@click.option(
    "--discard",
    is_flag=True,
    help="Remove the overlays that the guest wrote to until now. [default: keep them]",
)
@via
@click.option(
    "--prepare",
    is_flag=True,
    help="Make overlays for a new QEMU, and print what to start it from; this one goes on.",
)
@click.option(
    "--into-incoming",
    is_flag=True,
    help="This is that new QEMU, and it waits (-S -incoming defer): give it its memory.",
)
@dry_run
def revert(
    name: str,
    *,
    leave: tuple[str, ...],
    discard: bool,
    via: Via | None,
    prepare: bool,
    into_incoming: bool,
    dry_run: bool,
) -> None:
    """Go back to the moment NAME.

    In the same QEMU: to checkpoints that are internal or were taken with --mode in-place, and to snapshots
    of disks, after which the guest is reset (one that was started with -no-reboot makes QEMU end then). A
    guest that runs goes on running, a paused one stays paused.

    With a new QEMU: to checkpoints taken with --mode stop or background. First --prepare, then start the new
    QEMU from the files that it prints, then --into-incoming on the new one.

    What was written since stays in the overlay that it was written to, unless --discard; of an internal
    checkpoint it is lost.
    """
    if prepare and into_incoming:
        raise click.UsageError("--prepare and --into-incoming are two steps, on two QEMUs: give one")
    if (prepare or into_incoming) and (leave or discard or via is not None):
        raise click.UsageError("--leave, --discard and --via are for going back in the same QEMU")
    if prepare:
        change(PrepareRevert(name), dry_run=dry_run, then=lambda done: _prepared(name, done))
    elif into_incoming:
        change(RevertIncoming(name), dry_run=dry_run)
    else:
        change(Revert(name, leave=leave, discard=discard, via=via), dry_run=dry_run)


def _prepared(name: str, done: Done) -> list[str]:
    """What to start the new QEMU from, and what to type then."""
    lines = [f"start {shown(disk)} from {shown(file)}" for disk, file in done.prepared.items()]
    if not done.memory:
        return lines
    return [
        *lines,
        f"its VM state is in {shown(done.memory)}: start it as the same machine, with -S -incoming defer",
        f"next: {command('revert', name, '--into-incoming', to_new=True)}",
    ]
