"""VM state fits the disks of one instant: every file that they lie in counts, also beside their images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.known_images import KIB, MIB
from integration.machines import blockdev
from integration.states import refuses, status
from qmpsnap.errors import MachineDiffers
from qmpsnap.plan.intent import Restore, Revert

INCOMING = ("-incoming", "defer")
WRITE = (0xA1, 0, 64 * KIB)

# How an image in two files is made. Others than qcow2 (vmdk) cannot be migrated.
IMAGES = {
    "data file": "data_file={folder}/b.data",
    "raw data file": "data_file={folder}/b.data,data_file_raw=on",
}


@pytest.fixture(params=IMAGES)
def several(request, qemu, tmp_path):
    """Arguments of vdb, and the file that its data lie in."""
    image = qemu.create(tmp_path / "b.qcow2", options=IMAGES[request.param].format(folder=tmp_path))
    return blockdev("vdb", image), tmp_path / "b.data"


def touch(file):
    """Write into a file without making it longer, as another machine does; return how to undo that."""
    before = file.stat()
    with Path(file).open("r+b") as data:
        was = data.read(512)
        data.seek(0)
        data.write(b"other" + was[5:])

    def undo():
        with Path(file).open("r+b") as data:
            data.write(was)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return undo


async def test_restore_refuses_a_disk_whose_data_were_written_since(qemu, several, machine, tmp_path):
    arguments, data = several
    one = qemu.create(tmp_path / "a.qcow2")
    memory = tmp_path / "saved"
    with machine(*blockdev("vda", one), *arguments) as running:
        running.qmp("cont")
        running.write("vdb", *WRITE)
        async with running.connect() as vm:
            await vm.save(memory)
    undo = touch(data)
    with machine(*blockdev("vda", one), *arguments, *INCOMING) as running:
        async with running.connect() as vm:
            error = await refuses(running, vm, Restore(str(memory)), MachineDiffers, "no longer those of")
            assert error.differences == (f"layer {data} of vdb has been written to since",)
            undo()
            await vm.restore(memory)
            assert status(running) == "running"
            running.read("vdb", *WRITE)


async def test_revert_incoming_refuses_a_layer_whose_data_were_written_since(
    qemu, several, machine, tmp_path
):
    arguments, data = several
    one = qemu.create(tmp_path / "a.qcow2")
    with machine(*blockdev("vda", one), *arguments) as running:
        running.qmp("cont")
        running.write("vdb", *WRITE)
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="background")
            made = await vm.revert("c1", into="new")
    undo = touch(data)
    new = (*blockdev("vda", made.prepared["vda"]), *blockdev("vdb", made.prepared["vdb"]))
    with machine(*new, *INCOMING) as running:
        async with running.connect() as vm:
            text = "have changed since 'c1'"
            error = await refuses(running, vm, Revert("c1", into="incoming"), MachineDiffers, text)
            assert error.differences == (f"{data} of vdb has been written to since",)
            undo()
            await vm.revert("c1", into="incoming")
            assert status(running) == "running"
            running.read("vdb", *WRITE)


@pytest.mark.parametrize("which", ["base", "s1"])
async def test_revert_incoming_refuses_a_layer_that_a_machine_was_started_from(qemu, images, machine, which):
    made = images("base <- s1")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1")
            new = (await vm.revert("c1", into="new")).prepared["vda"]
    file = made.files[0] if which == "base" else made.active
    qemu.io(file, f"write -q -P 7 {6 * MIB} 512")
    with machine(*blockdev("vda", new), *INCOMING) as running:
        async with running.connect() as vm:
            error = await refuses(
                running, vm, Revert("c1", into="incoming"), MachineDiffers, "have changed since 'c1'"
            )
            assert error.differences == (f"{file} of vda has been written to since",)


async def test_revert_incoming_loads_over_a_layer_that_was_streamed_into(qemu, images, machine):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1")
            await vm.stream("vda", into="s2", base="base")
            new = (await vm.revert("c1", into="new")).prepared["vda"]
    with machine(*blockdev("vda", new), *INCOMING) as running:
        async with running.connect() as vm:
            await vm.revert("c1", into="incoming")
        assert status(running) == "running"
