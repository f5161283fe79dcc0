"""A background checkpoint with a store (the short standstill, and the revert in place) on a real guest."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from integration.test_checkpoint_guest import FORMATS, at, booted, counting, made, status

IN_PLACE = "{!r} reverts in place: its memory is in a store"


@pytest.mark.timeout(240)
async def test_guest_reverts_in_place_to_a_checkpoint_that_was_taken_in_the_background(qemu, tmp_path):
    """Memory, a raw and a qcow2 disk are of one instant: the guest itself compares them as it counts on."""
    files, starts = made(qemu, tmp_path), []

    @asynccontextmanager
    async def launcher(start):
        starts.append(start)
        async with booted(qemu, tmp_path, start.disks, name=f"h{len(starts)}", extra=start.arguments) as (
            vm,
            _,
        ):
            yield vm

    async with booted(qemu, tmp_path, files, formats=FORMATS) as (vm, client), counting(tmp_path) as counter:
        vm.launcher = launcher
        await counter.set(1)
        await counter.start()
        await counter.more(3)
        low = await counter.now()
        taken = await vm.checkpoint("c1", mode="background")
        assert taken.notes[-1] == IN_PLACE.format("c1")
        assert 0 < taken.standstill_s < 0.25 * taken.elapsed_s
        (moment,) = (await vm.moments()).moments
        assert (moment.mode, moment.vm_state_file) == ("in-place", str(tmp_path / "vda.c1.vmstate.qcow2"))
        assert [one for one in tmp_path.iterdir() if ".memory" in one.name or "partial" in one.name] == []
        high = await counter.now()
        for revert in range(3):
            if revert == 1:
                await vm.snapshot("on-top")
            await vm.revert("c1")
            assert low <= await counter.now() <= high
            await counter.more(3)
        assert await counter.stop() == ""
        assert len(set((await counter.get()).values())) == 1
        await counter.set(1000)
        await client.execute("stop")
        await vm.checkpoint("c2", mode="background")
        await vm.revert("c2")
        assert await status(client) == "paused"
        await client.execute("cont")
        assert await counter.get() == at(1000)
        assert len(starts) == 1  # that of the paused guest needs no helper
