"""The same test on a machine that runs, and on its images while it is off."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path

import qmpsnap
from integration.machines import blockdev


def offline(qemu, images=None, /, **options):
    """Open images with that QEMU's storage daemon: `async with offline(qemu, {"vda": file}) as vm`."""
    return qmpsnap.offline(images, daemon=qemu.directory / "qemu-storage-daemon", **options)


@asynccontextmanager
async def driven(way, qemu, machine, disks, *writes, formats=None):
    """A VM on disks' images, whose guest then writes.

    Args:
        way: "live": a machine runs on them. "off": a storage daemon has them open, and the guest is that of a
            machine that is started afterwards from what the chains say.
        qemu: Of the matrix.
        machine: The fixture.
        disks: The active image of each.
        writes: Each as disk, pattern, offset and length.
        formats: Those that are not qcow2.
    """
    formats = formats or {}

    def arguments(active):
        return [word for disk in active for word in blockdev(disk, active[disk], formats.get(disk, "qcow2"))]

    if way == "live":
        with machine(*arguments(disks)) as running:
            async with running.connect() as vm:
                yield vm
                for write in writes:
                    running.write(*write)
        return
    async with offline(qemu, disks, formats=formats) as vm:
        yield vm
        active = {disk: chain[0] for disk, chain in (await vm.graph()).chains().items()}
        assert {node.file for node in (await vm.graph()).nodes.values()} == {
            file for chain in (await vm.graph()).chains().values() for file in chain
        }, "nodes are left"
        assert await vm.jobs.list() == ()
    with machine(*arguments(active)) as running:
        for write in writes:
            running.write(*write)


def daemons(folder):
    """Process ids of the storage daemons that have a file of the folder open."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            files = [str(link.readlink()) for link in (entry / "fd").iterdir()]
        except OSError:
            continue
        if b"--monitor\0chardev=" in command and any(file.startswith(f"{folder}/") for file in files):
            found.append(int(entry.name))
    return found
