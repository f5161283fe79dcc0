"""A moment of two disks of which a commit has rewritten one's layer: nobody is led back to that."""

from __future__ import annotations

import pytest

from integration.known_images import KIB, MIB, overwritten
from integration.machines import blockdev
from integration.states import refuses, take
from qmpsnap.errors import NotInChain
from qmpsnap.plan.intent import Revert

FIRST, SECOND, THIRD = ((0xC0 + number, 6 * MIB, 64 * KIB) for number in (1, 2, 3))


@pytest.fixture
def two(images, machine):
    """A running machine with two disks, and a way to write to both."""
    vda, vdb = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active)) as running:
        running.qmp("cont")

        def write(*what):
            for disk in ("vda", "vdb"):
                running.write(disk, *what)

        yield running, write


async def test_moment_whose_layer_took_the_next_ones_data_is_refused_and_the_other_disk_goes_back(two, kind):
    running, write = two
    write(*FIRST)
    async with running.connect() as vm:
        await take(vm, "c1", kind)
        write(*SECOND)
        await vm.snapshot("s2")
        write(*THIRD)
        await vm.commit("vda", top="c1")
        (one, *_) = (await vm.moments()).named("c1")
        assert {part.disk: part.invalid for part in one.held} == {"vda": True, "vdb": False}
        error = await refuses(running, vm, Revert("c1"), NotInChain, "no longer holds a snapshot")
        assert "'c1' of vda is lost" in error.hint
        if kind == "disks":
            await refuses(running, vm, Revert("c1", into="new"), NotInChain, "no longer holds a snapshot")
        await vm.revert("c1", leave=("vda",))
        assert running.reads("vdb", *FIRST)
        assert running.reads("vda", *THIRD)


async def test_moment_whose_overlay_was_folded_stays_lost_when_others_follow(two, kind):
    running, write = two
    write(*FIRST)
    async with running.connect() as vm:
        await take(vm, "c1", kind)
        write(*SECOND)
        await vm.commit("vda")
        write(*THIRD)
        await vm.snapshot("s2")
        await refuses(running, vm, Revert("c1"), NotInChain, "no longer holds a snapshot")
        await vm.revert("s2")
        assert running.reads("vda", *THIRD)
        assert running.reads("vdb", *THIRD)


async def test_moment_below_which_is_committed_is_gone_back_to(qemu, images, machine, kind):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        running.write("vda", *FIRST)
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            running.write("vda", *SECOND)
            await vm.commit("vda", top="s1", base="base")
            await vm.revert("c1")
        assert running.reads("vda", *FIRST)
    assert qemu.read(made.active) == overwritten(made.content[-1], FIRST)
