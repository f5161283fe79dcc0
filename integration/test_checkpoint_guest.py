"""External checkpoints on a real guest: memory, a raw and a qcow2 disk go back to one count."""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

import qmpsnap
from integration.counter import Counter
from qmpsnap.plan.intent import Revert
from qmpsnap.testing.guest import open_guest
from qmpsnap.testing.machine import GuestDisk, find_guest_image, guest_argv

FORMATS = {"vda": "qcow2", "vdb": "raw"}


@asynccontextmanager
async def booted(qemu, place, active, *, name="first", formats=None, extra=()):
    """A guest on these files: our VM, and a monitor for what is not ours to do."""
    formats = formats or {}
    argv = guest_argv(
        qemu.system,
        [
            GuestDisk(name=disk, file=Path(file), format=formats.get(disk, "qcow2"))
            for disk, file in active.items()
        ],
        image=find_guest_image(),
        port=place / f"{name}.port",
    )
    monitor = place / f"{name}.monitor"
    async with qmpsnap.launch(
        [*argv, *extra, "-qmp", f"unix:{monitor},server=on,wait=off"],
    ) as vm:
        client = QMPClient("test")
        await client.connect(str(monitor))
        try:
            yield vm, client
        finally:
            with contextlib.suppress(EOFError, OSError):
                await client.disconnect()


@asynccontextmanager
async def counting(place, name="first"):
    async with open_guest(place / f"{name}.port") as guest:
        yield Counter(guest, {disk: await guest.device(disk) for disk in FORMATS})


def made(qemu, place):
    return {disk: qemu.create(place / f"{disk}.{form}", form=form) for disk, form in FORMATS.items()}


def pictures(chains):
    return [qmpsnap.draw(files) for files in chains.values()]


async def status(client):
    return (await client.execute("query-status"))["status"]


def at(number):
    return {"RAM": str(number), **dict.fromkeys(FORMATS, str(number))}


async def test_guest_goes_back_in_place_ten_times_with_memory_and_disks_at_one_count(qemu, tmp_path, times):
    files = made(qemu, tmp_path)
    async with booted(qemu, tmp_path, files, formats=FORMATS) as (vm, client), counting(tmp_path) as counter:
        await counter.set(7)
        assert pictures((await vm.graph()).chains()) == ["[vda*]", "[vdb*]"]
        taken = await vm.checkpoint("c1", mode="in-place")
        assert pictures(taken.chains) == ["[vda] <- [vda.c1*]", "[vdb] <- [vdb.c1*]"]
        assert 0 < taken.standstill_s < taken.elapsed_s
        for number in times(10):
            await counter.set(100 + number)
            assert await counter.get() == at(100 + number)
            back = await vm.revert("c1")
            assert [qmpsnap.draw(chain[1:]) for chain in back.chains.values()] == ["[vda*]", "[vdb*]"]
            assert await counter.get() == at(7)
        await counter.set(9)
        await client.execute("stop")
        await vm.checkpoint("c2", mode="in-place")
        for name, number in (("c1", 7), ("c2", 9), ("c1", 7), ("c2", 9)):
            await vm.revert(name)
            assert await status(client) == "paused"
            await client.execute("cont")
            assert await counter.get() == at(number)
            await counter.set(55)
            await client.execute("stop")
        await client.execute("cont")
        await counter.set(8)
        await vm.revert("c1", discard=True)
        await counter.start()
        await counter.more(5)
        assert await counter.stop() == ""


async def test_guest_that_was_rebooted_since_goes_back_in_place_and_counts_on(qemu, tmp_path, times):
    files = made(qemu, tmp_path)
    async with (
        booted(qemu, tmp_path, files, formats=FORMATS) as (vm, client),
        open_guest(tmp_path / "first.port") as guest,
    ):
        counter = Counter(guest, {disk: await guest.device(disk) for disk in FORMATS})
        await counter.set(7)
        await counter.start()
        await counter.more(5)
        await vm.checkpoint("c1", mode="in-place")
        boot = await guest.wait_ready()
        for _ in times(3):
            await counter.more(3)
            await guest.reset()
            assert await guest.wait_ready() != boot
            plan = await vm.plan(Revert("c1"))
            assert [step.way for step in plan.steps if step.way in {"stop-for-load", "stop"}] == [
                "stop-for-load" if (await client.execute("query-kvm"))["enabled"] is False else "stop"
            ]
            back = await vm.run(plan)
            assert 0 < back.standstill_s < back.elapsed_s
            assert (await status(client), await guest.wait_ready()) == ("running", boot)
            await counter.more(5)
        assert await counter.stop() == ""
        assert len(set((await counter.get()).values())) == 1


@pytest.mark.parametrize("mode", ["stop", "background"])
async def test_guest_that_counts_all_the_while_goes_on_from_there_in_new_qemus(qemu, tmp_path, times, mode):
    """And of a background checkpoint in the same QEMU, once it has a store."""
    files = made(qemu, tmp_path)
    numbers = []

    @asynccontextmanager
    async def launcher(start):
        name = f"n{len(numbers)}"
        async with booted(qemu, tmp_path, start.disks, name=name, extra=start.arguments) as (vm, client):
            numbers.append(client)
            yield vm

    async with booted(qemu, tmp_path, files, formats=FORMATS) as (vm, client):
        vm.launcher = None  # else it would have a store at once
        async with counting(tmp_path) as counter:
            await counter.set(1)
            await counter.start()
            await counter.more(5)
            low = await counter.now()
            taken = await vm.checkpoint("c1", mode=mode)
            high = await counter.now()
            assert pictures(taken.chains) == ["[vda] <- [vda.c1*]", "[vdb] <- [vdb.c1*]"]
            assert 0 < taken.standstill_s < taken.elapsed_s
            await counter.more(5)
            assert await counter.stop() == ""
            await counter.set(1000)
            await client.execute("stop")
            await vm.checkpoint("c2", mode=mode)
            assert await status(client) == "postmigrate"
        for number in times(3):
            async with vm.reverted("c1", launcher) as new, counting(tmp_path, f"n{number}") as counter:
                assert await status(numbers[number]) == "running"
                assert [qmpsnap.draw(chain[1:]) for chain in (await new.graph()).chains().values()] == [
                    "[vda*]",
                    "[vdb*]",
                ]
                assert low <= await counter.more(10)
                assert await counter.stop() == ""
                found = set((await counter.get()).values())
                assert len(found) == 1
        async with vm.reverted("c2", launcher):
            other = numbers[-1]
            assert await status(other) == "paused"
            await other.execute("cont")
            async with counting(tmp_path, f"n{len(numbers) - 1}") as counter:
                assert await counter.get() == at(1000)
        await client.execute("cont")
        async with counting(tmp_path) as counter:
            assert await counter.get() == at(1000)
            if mode == "background":
                await vm.make_store("c1", launcher=launcher)
                await _revert_in_place(vm, counter, low)
        assert low <= high
    for chain in taken.chains.values():
        qemu.check(chain[0])


async def _revert_in_place(vm, counter, low):
    """Again and again; the guest counted to 1000 since."""
    for revert in range(3):
        if revert == 1:
            await vm.snapshot("on-top")
        await vm.revert("c1")
        assert low <= await counter.now() < 1000
        await counter.more(5)
    assert await counter.stop() == ""
    assert len(set((await counter.get()).values())) == 1


async def test_guest_is_saved_and_restored_three_times(qemu, tmp_path):
    files = made(qemu, tmp_path)
    for number in range(4):
        extra = ("-S", "-incoming", "defer") if number else ()
        name = f"s{number}"
        async with booted(qemu, tmp_path, files, name=name, formats=FORMATS, extra=extra) as (vm, client):
            if number:
                await vm.restore(tmp_path / f"saved{number - 1}")
                assert await status(client) == "running"
            async with counting(tmp_path, name) as counter:
                if not number:
                    await counter.set(1)
                    await counter.start()
                await counter.more(5)
                if number == 3:
                    assert await counter.stop() == ""
                    assert len(set((await counter.get()).values())) == 1
                else:
                    await vm.save(tmp_path / f"saved{number}")
                    assert await status(client) == "postmigrate"
