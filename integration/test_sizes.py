"""Layers of different sizes: each merge is refused, or the guest reads the same bytes of the same disk."""

from __future__ import annotations

import asyncio
import os

import pytest

from integration.known_images import KIB, MIB
from integration.machines import blockdev, drive, listing, traced
from qmpsnap.errors import GraphMismatch, Unsupported
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream

# Sizes of the layers, base first; which merges are refused, and which are to keep every byte. Layers are
# numbered from the base: "2>0" is a commit of the layers 2 and 1 into 0, "3<0" a stream into 3 down to 0,
# "3<" one that leaves no base, and the last words are mirrors.
SIZES = {
    "each longer than the one below": ((MIB, 2 * MIB, 3 * MIB, 4 * MIB), "", "2>0 3>0 3<0 2<0"),
    "one between is shorter than the base": (
        (2 * MIB, MIB, 2 * MIB, 2 * MIB), "1>0 2>0 3<0 2<0", "2>1 3>0 3>1 3<1 3< 2< full top none"
    ),
    "the upper one between is": ((2 * MIB, 2 * MIB, MIB, 2 * MIB), "2>0 2>1 3<0 3<1", "1>0 3>0 3>1 3< 2<0"),
    "the active layer is": ((2 * MIB, 2 * MIB, 2 * MIB, MIB), "3>0 3>1 3>2", "2>0 3<0 3<"),
    "all above the base are": ((2 * MIB, MIB, MIB, MIB), "1>0 2>0 3>0", "3>1 2>1 3<1 3<"),
    "one between is the longest": ((MIB, 2 * MIB, MIB, MIB), "2>1 3>1", "1>0 2>0 3>0 3<0 3<"),
    "sizes no cluster divides, and a raw base no sector": (
        (MIB + 612, 64 * KIB + 512, 2 * MIB + 1024, 3 * MIB + 1536),
        "1>0 2>0 3<0 2<0",
        "2>1 3>0 3>1 3< full top none",
    ),
}  # fmt: skip


def intent(merge, folder):
    if ">" in merge:
        top, base = merge.split(">")
        return Commit("vda", top=f"{top}.qcow2", base=base)
    if "<" in merge:
        into, base = merge.split("<")
        return Stream("vda", base=base or None, into=f"{into}.qcow2")
    return Mirror("vda", f"{folder}/copy.qcow2", ending="pivot", sync=merge)


def make(qemu, folder, sizes):
    """The images, base first: the base is full of ones, each other layer has a sector of its own."""
    folder.mkdir()
    form = "raw" if sizes[0] % 512 else "qcow2"
    files = [qemu.create(folder / f"0.{form}", sizes[0], form=form)]
    qemu.io(files[0], f"write -q -P 1 0 {sizes[0] // 512 * 512}", form=form)
    if form == "raw":
        os.truncate(files[0], sizes[0])
    for index, size in enumerate(sizes[1:], 1):
        below = form if index == 1 else "qcow2"
        files.append(qemu.create(folder / f"{index}.qcow2", size, backing=files[-1], backing_format=below))
        qemu.io(files[-1], f"write -q -P {index + 1} {index * 512} 512")
    return files


@pytest.mark.parametrize("case", SIZES)
async def test_merge_of_layers_of_other_sizes_keeps_every_byte(qemu, machine, tmp_path, case):
    sizes, refused, done = SIZES[case]
    files = make(qemu, tmp_path / "refused", sizes)
    wanted = await asyncio.to_thread(qemu.read, files[-1])
    with machine(*blockdev("vda", files[-1])) as running:
        async with running.connect() as vm:
            before = listing(tmp_path), running.roots()
            for merge in refused.split():
                with traced(vm) as sent, pytest.raises(Unsupported, match=r"has \d+ bytes, ") as caught:
                    await vm.run(await vm.plan(intent(merge, tmp_path)))
                assert caught.value.feature == "merging layers of different sizes"
                assert (sent, listing(tmp_path), running.roots()) == ([], *before)
    wrong = []
    for number, merge in enumerate(done.split()):
        files = make(qemu, tmp_path / f"{number}", sizes)
        with machine(*blockdev("vda", files[-1])) as running:
            async with running.connect() as vm:
                chains = (await vm.run(await vm.plan(intent(merge, tmp_path / f"{number}")))).chains
        form = chains["vda"][0].rpartition(".")[2]
        found = await asyncio.to_thread(qemu.read, chains["vda"][0], form)
        if found != wanted:
            wrong.append((merge, len(found), len(wanted)))
    assert wrong == []


async def test_disk_that_was_resized_keeps_its_size(qemu, machine, tmp_path):
    files = make(qemu, tmp_path / "images", (MIB, MIB))
    with machine(*blockdev("vda", files[-1])) as running:
        async with running.connect() as vm:
            early = await vm.plan(Snapshot("early"))
            running.qmp("block_resize", {"node-name": "vda-node", "size": 2 * MIB})
            with pytest.raises(GraphMismatch, match="have changed since the plan was made"):
                await vm.run(early)
            running.write("vda", 9, MIB, 512)
            await vm.snapshot("one")
            await vm.commit("vda", top="1.qcow2")
            await vm.commit("vda")
            running.read("vda", 9, MIB, 512)
            assert (await vm.graph()).disks["vda"].active.virtual_size == 2 * MIB


async def test_disks_that_grew_are_done_one_after_the_other(qemu, machine, tmp_path):
    size = MIB
    disks = {name: qemu.create(tmp_path / f"{name}.qcow2", size) for name in ("vda", "vdb")}
    for file in disks.values():
        qemu.io(file, f"write -P 6 0 {size}")  # so that it receives
    with machine(*(word for name, file in disks.items() for word in drive(name, file))) as running:
        async with running.connect() as vm:
            await vm.snapshot("m")
            for disk in disks:
                running.qmp("block_resize", {"node-name": running.roots()[disk][0], "size": 2 * size})
                running.write(disk, 7, size, 64 * KIB)
            branch = qemu.create(tmp_path / "branch.qcow2", size, backing=disks["vdb"])
            done = await vm.delete("m")
            assert done.chains["vda"] == (disks["vda"],)
            stays = f"'m' is no longer listed, but {disks['vdb']} stays: {branch} is based on it"
            assert done.notes[-1] == stays
            assert done.chains["vdb"][1:] == (disks["vdb"],)
            assert (await vm.moments()).moments == ()
        for disk in disks:
            running.read(disk, 7, size, 64 * KIB)
