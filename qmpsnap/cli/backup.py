"""`qmpsnap backup`: back up a machine's disks while it runs; list, verify and restore backups."""

from __future__ import annotations

import click

import qmpsnap
from qmpsnap.backup import BackedUp
from qmpsnap.cli.app import Group, Verb, verb
from qmpsnap.cli.options import DISK, FILE, SPEED, dry_run, progress
from qmpsnap.cli.output import Row, emit, json_line, local, table
from qmpsnap.cli.picture import of_plan
from qmpsnap.cli.progress import reporter
from qmpsnap.cli.runner import current_app, hooks, run, run_alone, show_done, show_plan
from qmpsnap.cli.signals import Signals
from qmpsnap.model.backup import BackupRecord
from qmpsnap.model.printable import printable
from qmpsnap.model.units import size
from qmpsnap.plan.plan import Plan
from qmpsnap.vm import VM

_directory = click.argument("directory", metavar="DIR", type=FILE)
_at = click.option(
    "--at",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of the backup in `backup list`. [default: the newest]",
)


@click.group("backup", cls=Group, subcommand_metavar="VERB DIR", options_metavar="", no_args_is_help=False)
def backup() -> None:
    """Back up the disks of a machine, and restore them."""


def _add(function: Verb) -> Verb:
    backup.add_command(function)
    return function


@_add
@verb(
    "run",
    example="qmpsnap -s /run/vm1/qmp.sock backup run /backups/vm1 --disk vda --disk vdb",
    short_help="Copy disks as of one instant; a running guest keeps running.",
)
@_directory
@click.option(
    "--disk",
    "disks",
    multiple=True,
    type=DISK,
    metavar="DISK",
    help="A disk to copy. May be repeated. [default: every writable disk with a medium]",
)
@click.option(
    "--speed",
    type=SPEED,
    metavar="BYTES",
    default=0,
    help="Limit of the copies in bytes per second, e.g. 100K, 10M, 1G. [default: none]",
)
@progress
@dry_run
@of_plan
def take(directory: str, disks: tuple[str, ...], speed: int) -> None:
    """Copy disks into DIR as of one instant, while the guest keeps running, or with the machine off.

    Takes a snapshot, copies the layers beneath it, compares the copies with them, and merges the overlays
    back. Each copy is a standalone qcow2 image.
    """
    app = current_app()

    async def work(vm: VM, signals: Signals) -> Plan | BackedUp:
        if app.dry_run:
            return await vm.plan_backup(directory, disks=disks)
        bar = reporter(asked=app.progress, as_json=app.json)
        began = {name: disk.active.file for name, disk in (await vm.graph()).disks.items() if disk.layers}
        with signals.operation(None, bar):
            return await vm.backup(directory, disks=disks, speed=speed, hooks=hooks(signals, bar, began))

    result = run(work)
    if isinstance(result, BackedUp):
        show_done(
            result, lambda _: [f"{printable(disk)}: {printable(file)}" for disk, file in result.files.items()]
        )
    else:
        show_plan(result)


@_add
@verb("list", example="qmpsnap backup list /backups/vm1", short_help="List the backups in a directory.")
@_directory
def list_(directory: str) -> None:
    """List the backups in DIR, the oldest first. Times are local; with --json they are UTC.

    A backup with a damaged manifest is left out, and named on stderr.
    """

    async def work(_: Signals) -> tuple[BackupRecord, ...]:
        return await qmpsnap.list_backups(directory)

    records = run_alone(work)
    if current_app().json:
        emit(json_line(backups=[record.to_json() for record in records]))
        return
    rows = [
        Row(
            (str(number), local(record.created), size(record.image_bytes), record.id, ", ".join(record.disks))
        )
        for number, record in enumerate(records, 1)
    ]
    emit(*(table(("N", "TAKEN", "SIZE", "DIRECTORY", "DISKS"), rows, right=("N", "SIZE")) or ["no backups"]))


@_add
@verb(
    "verify", example="qmpsnap backup verify /backups/vm1 --at 3", short_help="Check the images of a backup."
)
@_directory
@_at
def verify(directory: str, at: int | None) -> None:
    """Check the images of a backup: their checksums, and that each is consistent and standalone."""

    async def work(_: Signals) -> BackupRecord:
        return await qmpsnap.verify_backup(directory, at=at)

    record = run_alone(work)
    if current_app().json:
        emit(json_line(verified=record.to_json()))
    else:
        disks = ", ".join(map(printable, record.disks))
        emit(f"{record.id}, taken {local(record.created)}: {disks} verified")


@_add
@verb(
    "restore",
    example="qmpsnap backup restore /backups/vm1 /images/vm1-restored",
    short_help="Copy the images of a backup out of it.",
)
@_directory
@click.argument("to", type=FILE)
@_at
def restore(directory: str, to: str, at: int | None) -> None:
    """Copy the images of a backup to the directory TO, and verify their checksums.

    No file is replaced. Start the machine from the copies.
    """

    async def work(_: Signals) -> dict[str, str]:
        return await qmpsnap.restore_backup(directory, to, at=at)

    files = run_alone(work)
    if current_app().json:
        emit(json_line(restored=files))
    else:
        emit(*(f"restored {printable(disk)}: {printable(file)}" for disk, file in files.items()))
