"""What is called done is on the disk: QEMU is killed right after, and every byte is compared."""

from __future__ import annotations

import asyncio

import pytest

from integration.known_images import MIB, overwritten
from integration.machines import blockdev

WRITE = (0xA1, 6 * MIB, MIB)


async def stream_into(vm, running):
    """The layer that a stream has filled stays writable on 10.0 and 11.1."""
    await vm.stream("vda", into="s1")


async def keep_overlay(vm, running):
    """The base of a commit that keeps the overlay stays writable."""
    await vm.commit("vda", base="s1", keep_overlay=True)


async def cancelled(vm, running):
    """The base of a commit of the active layer that is cancelled stays writable on 7.2."""
    task = asyncio.create_task(vm.commit("vda", base="s1", speed=64 << 10))
    await asyncio.to_thread(running.qmp.wait_event, "JOB_STATUS_CHANGE", status="running")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def nothing(vm, running):
    """The base is read-only, as it is where nothing has gone before."""


@pytest.mark.parametrize("top", ["s3", None])
@pytest.mark.parametrize("before", [stream_into, keep_overlay, cancelled, nothing])
async def test_commit_is_on_the_disk_when_it_is_reported(qemu, images, machine, before, top):
    made = images("base <- s1 <- s2 <- s3")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await before(vm, running)
            running.write("vda", *WRITE)
            await vm.snapshot("sn")
            done = await vm.commit("vda", top=top, base="s1", folded="remove")
            running.kill()
    assert made.files[1] in done.chains["vda"]
    for file in {made.files[1], done.chains["vda"][0]}:
        assert qemu.read(file) == overwritten(made.content[3], WRITE)
        qemu.check(file, leaks=True)
