"""`qmpsnap revert`: revert to a snapshot, in the same QEMU or in a new one."""

from __future__ import annotations

from functools import partial

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, MOMENT, dry_run, via, wait
from qmpsnap.cli.picture import of_plan
from qmpsnap.cli.runner import change, command
from qmpsnap.model.printable import printable
from qmpsnap.plan.intent import Revert, Via
from qmpsnap.run.outcome import Done


@verb(
    "revert",
    example="qmpsnap -s /run/vm1/qmp.sock revert booted",
    short_help="Revert to a snapshot or checkpoint, in place or in a new QEMU.",
)
@click.argument("name", type=MOMENT)
@click.option(
    "--leave",
    multiple=True,
    type=DISK,
    metavar="DISK",
    help="A disk not to revert. May be repeated. [default: all are reverted]",
)
@click.option(
    "--discard",
    is_flag=True,
    help="Remove the overlays that the guest has written to so far. [default: keep them]",
)
@via
@click.option(
    "--prepare",
    is_flag=True,
    help="Create overlays for a new QEMU, and print the files to start it from; this QEMU is not touched.",
)
@click.option(
    "--into-incoming",
    is_flag=True,
    help="Load the memory into that new QEMU, which was started with -S -incoming defer.",
)
@wait
@dry_run
@of_plan
def revert(
    name: str,
    *,
    leave: tuple[str, ...],
    discard: bool,
    via: Via | None,
    prepare: bool,
    into_incoming: bool,
) -> None:
    """Revert to the snapshot or checkpoint NAME.

    In the same QEMU: to checkpoints that are internal, were taken with --mode in-place, or were converted
    (checkpoint --convert), and to snapshots of disks, after which the guest is reset (QEMU ends then if it
    was started with -no-reboot).
    A running guest continues to run, a paused one stays paused.

    In a new QEMU: to checkpoints of the modes stop, background and in-place. First --prepare, then start the
    new QEMU from the files that it prints, then --into-incoming on the new one.

    With the machine off: to a snapshot of disks by overlays, from which it is started then; to an internal
    one by reverting the images, all or none of them. No memory is loaded.

    What was written since stays in the overlay that it was written to, unless --discard; with an
    internal checkpoint it is lost.
    """
    if prepare and into_incoming:
        raise click.UsageError("--prepare and --into-incoming are two steps, on two QEMUs: give only one")
    if (prepare or into_incoming) and (leave or discard or via is not None):
        raise click.UsageError("--leave, --discard and --via are for a revert in the same QEMU")
    if prepare:
        change(Revert(name, into="new"), partial(_prepared, name))
    elif into_incoming:
        change(Revert(name, into="incoming"))
    else:
        change(Revert(name, leave, discard, via), partial(_prepared, name))


def _prepared(name: str, done: Done) -> list[str]:
    """The files to start the new QEMU from, and the command to run then."""
    lines = [f"start {printable(disk)} from {printable(file)}" for disk, file in done.prepared.items()]
    if not done.memory:
        return lines
    return [
        *lines,
        f"the VM state is in {printable(done.memory)}: start the same machine with -S -incoming defer",
        f"next: {command('revert', name, '--into-incoming', to_new=True)}",
    ]
