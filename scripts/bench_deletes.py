"""Deletions: bytes copied, against those of the cheaper way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bench_rows import Row

import qmpsnap

if TYPE_CHECKING:
    from bench_machines import Bench

__all__ = ["deletes"]

_SIZES = {"down": ("32M", "4M"), "up": ("4M", "32M")}
"""Of the layer that held the snapshot, and of its overlay."""


async def deletes(bench: Bench):
    """What the layer that is left has grown by is what was copied into it."""
    for way, (below, above) in _SIZES.items():
        directory = bench.fresh()
        file = directory / "d.qcow2"
        bench.image("create", "-q", "-f", "qcow2", file, "128M")
        with bench.machine(directory, [file]) as socket:
            async with qmpsnap.connect(socket) as vm:
                for name, start, size in (("one", "0", below), ("two", "64M", above)):
                    await vm.snapshot(name)
                    line = f'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -P 7 {start} {size}"'
                    await vm.execute("human-monitor-command", {"command-line": line})
                before = {layer: _taken(layer) for layer in (await vm.graph()).chains()["disk0"]}
                overlay, held, _ = before
                done = await vm.delete("two")
                left = done.chains["disk0"][0]
                copied, cheaper = _taken(left) - before[left], min(before[overlay], before[held])
        yield Row(
            f"delete, {way}: bytes copied, against the cheaper way",
            f"{copied >> 10} KiB",
            f"{cheaper >> 10} KiB",
            copied / cheaper,
            1.0,
        )
        shutil.rmtree(directory)


def _taken(file: str) -> int:
    """Bytes that a file takes on the host."""
    return Path(file).stat().st_blocks * 512
