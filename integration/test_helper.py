"""A second QEMU that loads a checkpoint of any kind that has a file of its own; nothing of it is left."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import CHEAP, blockdev, listing
from integration.states import status
from qmpsnap.errors import ConnectFailed, MachineDiffers, NotFound, Unsupported
from qmpsnap.helper import loaded, source_of

WRITE, LATER = (0xA1, 6 * MIB, 64 * KIB), (0xA2, 6 * MIB, 32 * KIB)


def launcher(qemu, *extra, seen=None):
    def start(given):
        if seen is not None:
            seen.append(given)
        disks = blockdev("vda", given.disks["vda"]), blockdev("vdb", given.disks["vdb"])
        return qmpsnap.launch([qemu.system, *CHEAP, *disks[0], *disks[1], *extra, *given.arguments])

    return start


@pytest.fixture
def two(images):
    return images("base <- s1", folder="a"), images("base", folder="b", base_format="raw")


async def test_helper_loads_a_checkpoint_of_each_mode_and_leaves_nothing(qemu, two, machine, tmp_path):
    vda, vdb = two
    place = tmp_path / "scratch"
    place.mkdir()
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            for mode in ("stop", "background", "in-place"):
                await vm.checkpoint(mode, mode=mode)
            running.write("vda", *LATER)
            before = listing(running.folder)
            chains = (await vm.graph()).chains()
            for mode in ("stop", "background", "in-place"):
                seen = []
                async with loaded(
                    await source_of(vm, mode), launcher(qemu, seen=seen), directory=str(place)
                ) as helper:
                    (start,) = seen
                    assert start.incoming is (mode != "in-place")
                    assert not (await helper.status()).running
                    graph = await helper.graph()
                    assert {name: disk.active.file for name, disk in graph.disks.items()} == start.disks
                    assert {Path(file).parent for file in start.disks.values()} == {Path(start.directory)}
                    assert list(place.iterdir()) == [Path(start.directory)]
                assert list(place.iterdir()) == []
            assert (listing(running.folder), status(running)) == (before, "running")
            assert (await vm.graph()).chains() == chains
    assert qemu.read(vda.active) == overwritten(content(2), WRITE)


async def test_helper_refuses_and_cleans_up(qemu, two, machine, tmp_path):
    vda, vdb = two
    place = tmp_path / "scratch"
    place.mkdir()
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="background")
            await vm.checkpoint("store", mode="in-place")
            await vm.snapshot("disks")
            await vm.checkpoint("inside", mode="internal", leave=["vdb"])
            before = listing(running.folder)

            cases = [
                ("none", launcher(qemu), NotFound, "no snapshot 'none'"),
                ("disks", launcher(qemu), Unsupported, "has no memory"),
                ("inside", launcher(qemu), Unsupported, "inside the images"),
                ("c1", launcher(qemu, "-m", "96"), MachineDiffers, "bytes of memory"),
                ("store", launcher(qemu, "-m", "96"), MachineDiffers, "bytes of memory"),
                ("c1", launcher(qemu, "-device", "virtio-rng-pci,id=rng"), MachineDiffers, "rng"),
                ("c1", launcher(qemu, "-nonsense"), ConnectFailed, "invalid option"),
            ]
            for name, start, error, text in cases:
                with pytest.raises(error, match=text):
                    async with loaded(await source_of(vm, name), start, directory=str(place)):
                        raise AssertionError
                assert list(place.iterdir()) == []
            with anyio.CancelScope() as scope:
                async with loaded(await source_of(vm, "c1"), launcher(qemu), directory=str(place)):
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert list(place.iterdir()) == []
            assert (listing(running.folder), status(running)) == (before, "running")
