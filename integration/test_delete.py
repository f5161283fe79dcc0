"""A deletion takes one moment away: every other one reads its bytes, and is gone back to.

`Tree` knows what each moment has to read; where its bytes lie is what the product says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from integration import states
from integration.known_images import KIB
from integration.machines import drive

BLOCK, COUNT = 64 * KIB, 12


@dataclass
class Tree:
    """A machine, and what its disks have to read.

    Attributes:
        reads: Pattern of each block of each disk, as the guest reads it.
        read: The same of each moment that is not deleted.
        did: What was done, for the reader of a failure.
    """

    running: object
    vm: object
    qemu: object
    kind: str
    random: random.Random
    reads: dict[str, list[int]]
    read: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    did: list[str] = field(default_factory=list)

    def write(self):
        for disk, reads in self.reads.items():
            for _ in range(self.random.randrange(4)):
                block, pattern = self.random.randrange(COUNT), self.random.randrange(1, 255)
                self.running.write(disk, pattern, block * BLOCK, BLOCK)
                reads[block] = pattern

    async def step(self, number):
        self.write()
        what = self.random.choice(["snapshot", "snapshot", "revert", "delete", "delete"])
        if what == "snapshot" or not self.read:
            name = f"n{number}"
            self.did.append(f"snapshot {name}")
            await states.take(self.vm, name, self.kind)
            self.read[name] = {disk: list(reads) for disk, reads in self.reads.items()}
        else:
            name = self.random.choice(sorted(self.read))
            self.did.append(f"{what} {name}")
            await (self.revert(name) if what == "revert" else self.delete(name))
        await self.check()

    async def revert(self, name):
        await self.vm.revert(name)
        self.reads = {disk: list(reads) for disk, reads in self.read[name].items()}

    async def delete(self, name):
        done = await self.vm.delete(name)
        self.did += done.notes
        del self.read[name]

    async def check(self):
        """Demand that each moment is listed, and that it and the guest read their bytes."""
        found = await self.vm.moments()
        assert {moment.name for moment in found.moments} == set(self.read), self.did
        for moment in found.moments:
            for part in moment.held:
                assert not part.invalid, (moment.name, self.did)
                assert states.patterns(self.qemu, part.file, BLOCK) == self.read[moment.name][part.disk], (
                    moment.name,
                    self.did,
                )
        for disk, reads in self.reads.items():
            for block, pattern in enumerate(reads):
                self.running.read(disk, pattern, block * BLOCK, BLOCK)


@pytest.mark.parametrize("seed", range(3))
async def test_every_other_moment_reads_its_bytes_whatever_is_deleted(qemu, machine, tmp_path, seed):
    kind = "in-place" if seed == 2 else "disks"
    disks = {name: qemu.create(tmp_path / f"{name}.qcow2", BLOCK * COUNT) for name in ("vda", "vdb")}
    words = [word for name, file in disks.items() for word in drive(name, file)]
    with machine(*words) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            reads = {name: [0] * COUNT for name in disks}
            tree = Tree(running, vm, qemu, kind, random.Random(f"{seed} {kind}"), reads)
            for number in range(14):
                await tree.step(number)
            for name in sorted(tree.read):
                await tree.revert(name)
                await tree.check()
            chains = (await vm.graph()).chains()
            for name in sorted(tree.read):
                await tree.delete(name)
                await tree.check()
                chains = (await vm.graph()).chains()
        running.quit()
    words = [word for name, files in chains.items() for word in drive(name, files[0])]
    with machine(*words) as running:
        tree.running = running
        for disk, reads in tree.reads.items():
            for block, pattern in enumerate(reads):
                running.read(disk, pattern, block * BLOCK, BLOCK)
