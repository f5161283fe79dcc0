"""Deletions on trees of moments: whatever is deleted, every other moment reads what it read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Node
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake import FakeTarget
from tests.plan.chain.byte_model import BLOCKS, Bytes
from tests.run.operations import vm_of
from tests.run.states import COMMON

if TYPE_CHECKING:
    from qmpsnap.vm import VM

Reads = dict[str, list[int]]
WRITES = st.dictionaries(st.integers(0, BLOCKS - 1), st.integers(1, 9), max_size=2)
SIZES = st.lists(st.integers(0, 5), min_size=4, max_size=4)
DO = st.sampled_from(["snapshot", "snapshot", "snapshot", "revert", "delete", "delete", "last", "depth"])
Step = tuple[str, int, dict[int, int], list[int]]
STEPS = st.lists(st.tuples(DO, st.integers(0, 30), WRITES, SIZES), min_size=12, max_size=24)


@dataclass
class Tree:
    """A machine, and what each of its moments has to read."""

    vm: VM
    fake: FakeTarget
    images: Bytes
    reads: Reads
    moments: dict[str, Reads] = field(default_factory=dict)

    async def do(self, what: str, number: int, writes: dict[int, int], sizes: list[int]) -> None:
        """Let the guest write, then take, revert to or delete a moment; and check all of them."""
        for name, disk in self.fake.state.disks.items():
            for block, value in writes.items():
                self.images.data[disk.active.file][block] = self.reads[name][block] = value
        self._look(sizes)
        names = list(self.moments)
        name = names[number % len(names)] if names else ""
        match what:
            case "revert" if name:
                await self.vm.revert(name)
                self.reads = _copied(self.moments[name])
            case "delete" if name:
                await self.vm.delete(name)
                del self.moments[name]
            case "last" if name:
                await self.vm.prune(keep_last=number % 3 + 1)
                self.moments = {name: self.moments[name] for name in names[-(number % 3 + 1) :]}
            case "depth" if name:
                await self.vm.prune(max_depth=number % 4 + 1)
                left = {moment.name for moment in (await self.vm.moments()).moments}
                self.moments = {name: reads for name, reads in self.moments.items() if name in left}
            case _:
                name = f"n{len(self.fake.performed)}"
                await self.vm.snapshot(name)
                self.moments[name] = _copied(self.reads)
        await self.check()

    def _look(self, sizes: list[int]) -> None:
        """Let each layer take so much on the host, which decides the way; QEMU names all nodes."""
        disks, nodes = {}, dict(self.fake.state.nodes)
        for name, disk in self.fake.state.disks.items():
            layers = []
            for index, layer in enumerate(disk.layers):
                node = layer.node or f"#{layer.file.rpartition('/')[2]}"
                nodes.setdefault(node, Node(node, layer.format, layer.file, read_only=layer.read_only))
                layers.append(replace(layer, node=node, allocated=sizes[index % len(sizes)] * MIB))
            disks[name] = replace(disk, layers=tuple(layers))
        self.fake.state = replace(self.fake.state, disks=Frozen(disks), nodes=Frozen(nodes))

    async def check(self) -> None:
        """Demand that each moment is listed with a layer that reads what it read, and the guest too."""
        found = (await self.vm.moments()).moments
        assert {moment.name for moment in found} == {*self.moments}
        for moment in found:
            assert {part.disk for part in moment.held} == {*self.reads}
            for part in moment.held:
                assert self.images.read(part.file) == self.moments[moment.name][part.disk]
        for name, disk in self.fake.state.disks.items():
            assert self.images.read(disk.active.file) == self.reads[name]


def _copied(reads: Reads) -> Reads:
    return {disk: list(blocks) for disk, blocks in reads.items()}


async def _grow(steps: list[Step], drawings: dict[str, str]) -> Tree:
    disks = (chain(drawing, name=name) for name, drawing in drawings.items())
    fake = FakeTarget(graph(*disks), commands=COMMON)
    images = Bytes(fake)
    fake.before = images.follow
    tree = Tree(vm_of(fake), fake, images, {disk: [0] * BLOCKS for disk in drawings})
    for step in steps:
        await tree.do(*step)
    return tree


@settings(max_examples=15, deadline=None, derandomize=True)
@given(STEPS)
def test_every_other_moment_reads_what_it_read(
    steps: list[Step],
) -> None:
    asyncio.run(_grow(steps, {"vda": "base <- s1*"}))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(STEPS)
def test_so_it_is_with_two_disks(steps: list[Step]) -> None:
    asyncio.run(_grow(steps, {"vda": "base*", "vdb": "data.raw <- d1*"}))
