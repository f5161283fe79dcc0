"""`qmpsnap save`: save the VM state to a file and leave the guest paused."""

from __future__ import annotations

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import FILE, dry_run, plain, progress, wait
from qmpsnap.cli.runner import change, command
from qmpsnap.model.printable import printable
from qmpsnap.plan.intent import Save
from qmpsnap.run.outcome import Done


@verb(
    "save",
    example="qmpsnap -s /run/vm1/qmp.sock save vm1.state",
    short_help="Save memory and devices to a file; the guest stays paused.",
)
@click.argument("file", type=FILE)
@wait
@progress
@plain
@dry_run
def save(file: str, *, plain: bool) -> None:
    """Save the guest's memory and devices to FILE; the guest stays paused.

    Then quit this QEMU. FILE can be used as long as nobody writes to the disks: `restore` loads it into a new
    QEMU that was started on them. To save the state and keep the guest running, use `checkpoint`.
    """

    def then(done: Done) -> list[str]:
        return [
            "quit this QEMU; the file can be used as long as nobody writes to these disks",
            *(
                f"start {printable(disk)} from {printable(files[0])}"
                for disk, files in done.chains.items()
                if files
            ),
            f"next: {command('restore', file, to_new=True)}",
        ]

    change(Save(file, plain), then)
