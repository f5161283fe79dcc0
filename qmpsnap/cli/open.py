"""`qmpsnap open`: serve disks as they were at a snapshot, while the guest keeps running."""

from __future__ import annotations

from contextlib import AsyncExitStack

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, MOMENT
from qmpsnap.cli.output import emit, json_line, to_stderr
from qmpsnap.cli.runner import current_app, run, run_alone
from qmpsnap.cli.signals import Signals
from qmpsnap.model.printable import printable
from qmpsnap.model.units import size
from qmpsnap.model.view import DiskView
from qmpsnap.plan.written import written_note
from qmpsnap.run.view import View, open_view
from qmpsnap.vm import VM


@verb(
    "open",
    example="qmpsnap -s /run/vm1/qmp.sock open before-upgrade --disk vda",
    short_help="Read disks as they were at a snapshot; a running guest keeps running.",
)
@click.argument("name", type=MOMENT)
@click.option(
    "--disk",
    "disks",
    multiple=True,
    type=DISK,
    metavar="DISK",
    help="A disk to read. May be repeated. [default: every disk of the snapshot]",
)
@click.option(
    "--fuse",
    type=FILE,
    metavar="DIR",
    help="Directory in which each disk is also available as a file, DISK.raw. [default: only NBD]",
)
def open_(name: str, disks: tuple[str, ...], fuse: str | None) -> None:
    """Serve the disks as they were at the snapshot NAME, read-only, until Ctrl-C.

    Each disk is served over NBD on a unix socket that other users cannot reach. qemu-img, nbdcopy and
    guestfish accept the address that is printed. Meanwhile a commit into a layer that is read is refused.
    """
    as_json = current_app().json

    async def find(vm: VM, _: Signals) -> tuple[DiskView, ...]:
        return await vm.views(name, disks=disks)

    disk_views = run(find)  # disconnects here: the monitor serves one client, and views stay open for long
    written = (layer for view in disk_views for layer in view.written_since)
    to_stderr(*(f"warning: {printable(written_note(layer))}" for layer in written))

    async def serve(signals: Signals) -> None:
        async with AsyncExitStack() as stack:
            _show(
                [await stack.enter_async_context(open_view(view, fuse=fuse)) for view in disk_views],
                as_json=as_json,
            )
            with signals.ends() as end:
                await end.wait()

    run_alone(serve)


def _show(views: list[View], *, as_json: bool) -> None:
    if as_json:
        emit(json_line(views=[view.to_json() for view in views]))
        return
    lines = []
    for view in views:
        lines.append(f"{view.disk} at {view.moment}: {view.uri} ({size(view.virtual_size)})")
        lines += [f"  file: {view.file}"] if view.file else []
    emit(*lines, "open until Ctrl-C")
