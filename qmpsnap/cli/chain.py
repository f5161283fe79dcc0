"""`qmpsnap chain`: what each disk reads, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK
from qmpsnap.cli.output import Row, chain_lines, emit, json_line, relative, table, to_stderr, wrap
from qmpsnap.cli.picture import drawn, emit_picture, is_picture
from qmpsnap.cli.runner import current_app, run
from qmpsnap.cli.signals import Signals
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.graph import LONG_CHAIN, Disk, Layer, draw
from qmpsnap.model.hints import command
from qmpsnap.model.pause import Pause
from qmpsnap.model.picture.picture import Picture
from qmpsnap.model.printable import printable
from qmpsnap.model.units import size
from qmpsnap.vm import VM

_HEADER = ("FORMAT", "SIZE", "ALLOCATED", "NODE", "FILE")
_RIGHT = ("SIZE", "ALLOCATED")


@verb(
    "chain",
    example="qmpsnap -s /run/vm1/qmp.sock chain vda",
    short_help="Show each disk's layers, files and snapshots.",
)
@click.argument("disk", type=DISK, required=False)
@drawn
def chain(disk: str | None, form: str) -> None:
    """Show the layers of each disk, or of DISK, the active one first.

    DISK is a qdev id, a QOM path, a drive id, a node name or a file.

    A picture (--format) also shows jobs, and where filters are. Of a long chain it shows both ends.
    """
    if is_picture(current_app(), form):
        _show_picture(disk, form)
        return

    async def work(vm: VM, _: Signals) -> tuple[list[Disk], dict[str, str], tuple[str, ...], Pause | None]:
        graph = await vm.graph()
        disks = list(graph.disks.values()) if disk is None else [find_disk(graph, disk)]
        records = await vm.jobs.interrupted(graph, live=True)
        invalid = {file: record.id for record in records for file in record.invalid}
        pause = None if current_app().images else await vm.why_paused(graph)
        return disks, invalid, vm.warnings, pause

    disks, invalid, warnings, pause = run(work, looks=True)
    to_stderr(*(f"warning: {printable(warning)}" for warning in warnings))
    for entry in disks:
        if len(entry.layers) > LONG_CHAIN:
            to_stderr(
                f"warning: {printable(entry.name)} has {len(entry.layers)} layers, which slows down "
                "every start and every query; commit some of them: "
                f"{printable(command('commit', entry.name, '--top', 'LAYER', '--base', 'LAYER'))}"
            )
    if current_app().json:
        emit(json_line(disks=[disk.to_json(invalid=invalid) for disk in disks], warnings=list(warnings)))
    else:
        first = wrap(f"not running ({pause.state}): {pause.cause}") if pause is not None else []
        emit(*first, *(line for disk in disks for line in _text(disk, invalid)) if disks else ["no disks"])


def _show_picture(disk: str | None, form: str) -> None:
    async def work(vm: VM, _: Signals) -> tuple[Picture, tuple[str, ...]]:
        return await vm.picture([] if disk is None else [disk]), vm.warnings

    picture, warnings = run(work, looks=True)
    to_stderr(*(f"warning: {printable(warning)}" for warning in warnings))
    emit_picture(picture, form)


def _text(disk: Disk, invalid: Mapping[str, str]) -> list[str]:
    lines = chain_lines(disk.name, draw(disk.files))
    if disk.layers:
        lines += table(_HEADER, (_row(disk, layer, invalid) for layer in disk.layers), right=_RIGHT)
    lines += [
        f"  filter: {printable(filter_node.node)} ({filter_node.driver})" for filter_node in disk.filters
    ]
    return lines


def _row(disk: Disk, layer: Layer, invalid: Mapping[str, str]) -> Row:
    remarks = []
    if layer.snapshots:
        remarks.append(f"snapshots: {', '.join(snapshot.name for snapshot in layer.snapshots)}")
    if layer.file in invalid:
        remarks.append(f"INVALID: {invalid[layer.file]} wrote into it")
    if layer is disk.active and disk.read_only:
        remarks.append("read-only")
    cells = (
        layer.format,
        size(layer.virtual_size),
        size(layer.allocated),
        layer.node,
        relative(layer.file),
    )
    return Row(cells, tuple(remarks))
