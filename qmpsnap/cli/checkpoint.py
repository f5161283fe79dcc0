"""`qmpsnap checkpoint`: VM state and disks of one instant."""

from __future__ import annotations

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, dry_run, plain, progress, via, wait
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Checkpoint, Mode, Via


@verb(
    "checkpoint",
    example="qmpsnap -s /run/vm1/qmp.sock checkpoint booted --mode in-place",
    short_help="Save memory, devices and disks as of one instant.",
)
@click.argument("name")
@click.option(
    "--mode",
    type=click.Choice(["stop", "background", "in-place", "internal"]),
    default="stop",
    show_default=True,
    help="How the memory is saved; see above.",
)
@click.option(
    "--memory",
    type=FILE,
    metavar="FILE",
    help="File for the VM state; not with --mode internal. [default: beside the first disk's active layer]",
)
@click.option(
    "--leave",
    multiple=True,
    type=DISK,
    metavar="DISK",
    help="With --mode internal: a writable disk to leave out. May be repeated. [default: none]",
)
@via
@wait
@progress
@plain
@dry_run
def checkpoint(
    name: str, *, mode: Mode, memory: str | None, leave: tuple[str, ...], via: Via | None, plain: bool
) -> None:
    """Save the guest's memory, devices and disks as of one instant, under NAME.

    \b
    stop        The guest is paused while its memory is written to a file.
                To revert takes a new QEMU.
    background  The guest keeps running while its memory is written; it is
                paused for some tens of milliseconds. To revert takes a new
                QEMU. A guest that is paused is saved as with stop.
    in-place    The guest is paused as with stop. The same QEMU can revert.
    internal    Memory and disks go into the disks' own images: every writable
                disk must be qcow2. The guest is paused. The same QEMU can
                revert; what was written since is then lost.

    All modes but internal put an overlay on each writable disk, raw or qcow2.
    """  # noqa: D301 - click's own sign for lines that stay as they are
    if mode == "internal" and memory is not None:
        raise click.UsageError("--mode internal saves the memory in an image: omit --memory")
    if mode != "internal" and (leave or via is not None):
        raise click.UsageError(f"--leave and --via go with --mode internal, not with {mode}")
    change(Checkpoint(name, mode, memory or "", plain, leave, via))
