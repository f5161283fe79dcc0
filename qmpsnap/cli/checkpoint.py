"""`qmpsnap checkpoint`: VM state and disks of one instant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, dry_run, plain, progress, via
from qmpsnap.cli.runner import change
from qmpsnap.plan.intent import Checkpoint, CheckpointInternal

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent, Mode, Via

__all__ = ["checkpoint"]


@verb(
    "checkpoint",
    example="qmpsnap -s /run/vm1/qmp.sock checkpoint booted --mode in-place",
    short_help="Keep memory, devices and disks of one instant.",
)
@click.argument("name")
@click.option(
    "--mode",
    type=click.Choice(["stop", "background", "in-place", "internal"]),
    default="stop",
    show_default=True,
    help="How the memory is kept, and at what price; see above.",
)
@click.option(
    "--memory",
    type=FILE,
    metavar="FILE",
    help="File of the VM state, not with internal. [default: beside the first disk's active layer]",
)
@click.option(
    "--leave",
    multiple=True,
    type=DISK,
    metavar="DISK",
    help="With internal: a writable disk that is not part of it. May be repeated. [default: none]",
)
@via
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for jobs that are under way, without a limit; not for one that does not end by itself. "
    "[default: refuse]",
)
@progress
@plain
@dry_run
def checkpoint(
    name: str,
    *,
    mode: Mode | Literal["internal"],
    memory: str | None,
    leave: tuple[str, ...],
    via: Via | None,
    wait: bool,
    progress: bool,
    plain: bool,
    dry_run: bool,
) -> None:
    """Keep the guest's memory, its devices and its disks as of one instant, under NAME.

    \b
    stop        The guest stands still while its memory is written to a file.
                To go back takes a new QEMU.
    background  The guest runs on while its memory is written; it stands still
                for some tens of milliseconds. To go back takes a new QEMU.
                A guest that is paused is kept as by stop.
    in-place    The guest stands still as with stop. To go back the same QEMU
                will do.
    internal    Memory and disks go into the disks' own images: every writable
                disk has to be qcow2. The guest stands still. To go back the
                same QEMU will do; what was written since is lost then.

    All but internal put an overlay on each writable disk, be it raw or qcow2.
    """  # noqa: D301 - click's own sign for lines that stay as they are
    if mode == "internal":
        if memory is not None:
            raise click.UsageError("--mode internal keeps the memory in an image: leave out --memory")
        intent: Intent = CheckpointInternal(name, leave=leave, via=via, plain=plain)
        change(intent, dry_run=dry_run, progress=progress, wait=wait)
        return
    if leave or via is not None:
        raise click.UsageError(f"--leave and --via are for --mode internal, not for {mode}")
    intent = Checkpoint(name, mode=mode, memory=memory or "", plain=plain)
    change(intent, dry_run=dry_run, progress=progress, wait=wait)
