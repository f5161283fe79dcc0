"""Checkpoints inside the images on a real guest: its memory and its disks go back to one instant."""

from __future__ import annotations

import pytest

import qmpsnap
from integration.counter import Counter
from qmpsnap.plan.intent import Checkpoint, Revert
from qmpsnap.testing.guest import open_guest
from qmpsnap.testing.machine import GuestDisk, find_guest_image, guest_argv

ALL = {"vda": "qcow2", "vdb": "qcow2"}
RAW_BESIDE = {"vdr": "raw", "vda": "qcow2"}


@pytest.mark.parametrize(
    ("disks", "leave", "via"),
    [(ALL, (), "hmp"), (ALL, (), "jobs"), (RAW_BESIDE, ("vdr",), None)],
    ids=["hmp", "jobs", "raw"],
)
async def test_guest_goes_back_ten_times_running_and_paused_with_memory_and_disks_at_one_count(
    qemu, tmp_path, times, disks, leave, via
):
    files = {name: tmp_path / f"{name}.{form}" for name, form in disks.items()}
    for name, form in disks.items():
        qemu.create(files[name], form=form)
    argv = guest_argv(
        qemu.system,
        [GuestDisk(name=name, file=file, format=disks[name]) for name, file in files.items()],
        image=find_guest_image(),
        port=tmp_path / "port",
    )
    async with (
        qmpsnap.launch(argv) as vm,
        open_guest(tmp_path / "port") as guest,
    ):
        counter = Counter(guest, {name: await guest.device(name) for name in files})
        await counter.set(7)
        taken = await vm.run(await vm.plan(Checkpoint("c1", "internal", leave=leave, via=via)))
        assert 0 < taken.standstill_s < taken.elapsed_s
        for number in times(10):
            count = str(100 + number)
            await counter.set(count)
            assert set((await counter.get()).values()) == {count}
            paused = number % 2 == 1
            if paused:
                await vm._target.session.change("stop", {})
            back = await vm.run(await vm.plan(Revert("c1", leave, via=via)))
            assert (back.standstill_s > 0) is not paused
            if paused:
                assert (await vm._target.session.query("query-status"))["running"] is False
                await vm._target.session.change("cont", {})
            assert await counter.get() == {
                "RAM": "7", **{name: count if name in leave else "7" for name in files},
            }  # fmt: skip
        await vm.delete("c1")
        await guest.poweroff()
    for name, form in disks.items():
        if form == "qcow2":
            qemu.check(files[name])
