"""A moment that was left aside and reads from a layer that QEMU has open read-write: no second opening."""

from __future__ import annotations

import pytest

from integration.known_images import KIB, MIB
from integration.machines import blockdev
from integration.states import refuses, take
from qmpsnap.errors import Unsupported
from qmpsnap.plan.intent import Revert

FIRST, SECOND, THIRD = ((0xC0 + number, 6 * MIB, 64 * KIB) for number in (1, 2, 3))


async def leave_aside(running, vm, kind):
    """Commit and keep the overlay, so that the base stays read-write; then leave moment two aside."""
    running.write("vda", *FIRST)
    await vm.commit("vda", keep_overlay=True)
    await take(vm, "one", kind)
    running.write("vda", *SECOND)
    await take(vm, "two", kind)
    running.write("vda", *THIRD)
    await vm.revert("one")


@pytest.fixture(autouse=True)
def _record_of_the_kept_overlay(leftovers, tmp_path):
    yield
    leftovers.allow(*tmp_path.glob("*.qmpsnap/intent-qmpsnap-commit-keep-*"))


async def test_moment_on_a_layer_that_is_open_read_write_is_refused_until_qemu_is_started_again(
    images, machine, kind
):
    made = images("base <- s1")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await leave_aside(running, vm, kind)
            error = await refuses(running, vm, Revert("two"), Unsupported, "base.qcow2 open read-write")
            assert error.hint.startswith("end this QEMU and start it again")
            assert ("--prepare" in error.hint) == (kind == "disks")
            assert running.reads("vda", *FIRST)
            active = (await vm.graph()).disks["vda"].active.file
    with machine(*blockdev("vda", active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.revert("two")
            assert running.reads("vda", *SECOND)


async def test_moment_on_a_raw_base_that_is_open_read_write_is_gone_back_to(images, machine, kind):
    made = images("base <- s1", base_format="raw")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await leave_aside(running, vm, kind)
            assert not (await vm.graph()).disks["vda"].base.read_only
            await vm.revert("two")
            assert running.reads("vda", *SECOND)
