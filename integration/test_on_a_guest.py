"""What only a guest that runs and writes can show: its full disk, its reset, its power-off."""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from qemu.qmp import QMPClient

import qmpsnap
from integration.machines import SOON
from qmpsnap.errors import JobFailed, LinkLost
from qmpsnap.testing.guest import open_guest
from qmpsnap.testing.machine import GuestDisk, find_guest_image, guest_argv

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


@asynccontextmanager
async def guest_on(qemu, place: Path, file: Path):
    """A guest with one qcow2 disk, our VM, and a monitor for what is not ours to do."""
    qemu.img("create", "-q", "-f", "qcow2", file, "16M")
    argv = guest_argv(
        qemu.system,
        [GuestDisk(name="vda", file=file)],
        image=find_guest_image(),
        port=place / "port",
    )
    monitor = place / "monitor"
    async with (
        qmpsnap.launch([*argv, "-qmp", f"unix:{monitor},server=on,wait=off"]) as vm,
        open_guest(place / "port") as guest,
    ):
        client = QMPClient("test")
        await client.connect(str(monitor))
        try:
            yield vm, guest, client
        finally:
            with contextlib.suppress(EOFError, OSError):  # QEMU may have gone before
                await client.disconnect()


async def until_status(client: QMPClient, status: str) -> None:
    with anyio.fail_after(60):
        while (await client.execute("query-status"))["status"] != status:
            await anyio.sleep(0.05)


async def test_a_guest_whose_disk_is_full_is_rescued_by_a_snapshot_elsewhere(qemu, tmp_path, small):
    full, elsewhere = small("3m", "full"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    overlay = elsewhere / "rescue.qcow2"
    async with guest_on(qemu, tmp_path, full / "vda.qcow2") as (vm, guest, client):
        device = await guest.device("vda")
        writer = await guest.start_writer(device, seed=3, burst=1)
        await until_status(client, "io-error")
        done = await vm.snapshot("rescue", files={"vda": overlay})
        assert done.chains == {"vda": (str(overlay), str(full / "vda.qcow2"))}
        assert (await client.execute("query-status"))[
            "status"
        ] == "io-error"  # ours to snapshot, not to start
        await client.execute("cont")
        before = await writer.count()
        with anyio.fail_after(60):
            while await writer.count() < before + 50:
                await anyio.sleep(0.05)
        assert (await client.execute("query-status"))["status"] == "running"
        count = await writer.stop()
        await guest.poweroff()
    qemu.img("check", "-q", overlay)
    qemu.img("convert", "-O", "raw", overlay, tmp_path / "raw")
    with (tmp_path / "raw").open("rb") as image:
        assert writer.writes.count_in(image, low=count, high=count) == count


async def test_a_guest_that_powers_off_ends_a_mirror_without_a_success(qemu, tmp_path):
    async with guest_on(qemu, tmp_path, tmp_path / "vda.qcow2") as (vm, guest, client):
        device = await guest.device("vda")
        writer = await guest.start_writer(device, burst=4)
        while await writer.count() < 40:
            await anyio.sleep(0.05)
        await writer.stop()
        failed = []

        async def mirror():
            with pytest.raises((LinkLost, JobFailed)) as caught:
                await vm.mirror("vda", tmp_path / "copy.qcow2", ending="pivot", speed=64 * 1024)
            failed.append(caught.value)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(mirror)
                while not (await client.execute("query-jobs")):
                    await anyio.sleep(0.02)
                await guest.poweroff()
    (error,) = failed
    assert error.left or isinstance(error, JobFailed)  # the target stays named where nobody can look any more
    for left in tmp_path.glob("*.qmpsnap/*"):
        left.unlink()


async def test_a_guest_that_resets_goes_on_and_so_does_its_mirror(qemu, tmp_path):
    async with guest_on(qemu, tmp_path, tmp_path / "vda.qcow2") as (vm, guest, client):
        device = await guest.device("vda")
        writer = await guest.start_writer(device, burst=4)
        while await writer.count() < 40:
            await anyio.sleep(0.05)
        count = await writer.stop()
        done = []

        async def mirror():
            done.append(await vm.mirror("vda", tmp_path / "copy.qcow2", ending="pivot", speed=MIB))

        async with anyio.create_task_group() as group:
            group.start_soon(mirror)
            while not (await client.execute("query-jobs")):
                await anyio.sleep(0.02)
            await guest.reset()
        assert done[0].active == {"vda": str(tmp_path / "copy.qcow2")}
        await guest.poweroff()
    qemu.img("convert", "-O", "raw", tmp_path / "copy.qcow2", tmp_path / "raw")
    with (tmp_path / "raw").open("rb") as image:
        assert writer.writes.count_in(image, low=count, high=count) == count


async def test_a_guest_that_writes_all_the_while_has_every_moment_inside_its_image(qemu, tmp_path):
    image = tmp_path / "vda.qcow2"
    moments = {}
    async with guest_on(qemu, tmp_path, image) as (vm, guest, _):
        device = await guest.device("vda")
        writer = await guest.start_writer(device, seed=5, burst=4)
        for name in ("i1", "i2", "i3", "i4"):
            before = await writer.count()
            taken = await vm.snapshot(name, inside=True)
            moments[name] = (before, await writer.count() + 4)  # a burst may be under way
            assert 0 < taken.standstill_s < SOON
            with anyio.fail_after(60):
                while await writer.count() < moments[name][1] + 30:
                    await anyio.sleep(0.05)
        for name in ("i2", "i4"):
            await vm.delete(name)
            del moments[name]
        assert [one.name for one in (await vm.moments()).moments] == list(moments)
        after = await writer.count()
        with anyio.fail_after(60):
            while await writer.count() < after + 30:
                await anyio.sleep(0.05)
        count = await writer.stop()
        await guest.poweroff()
    qemu.check(image)
    assert qemu.inside(image) == list(moments)
    found = []
    for name, (low, high) in moments.items():
        (tmp_path / "raw").write_bytes(qemu.read_inside(image, name))
        with (tmp_path / "raw").open("rb") as raw:
            found.append(writer.writes.count_in(raw, low=low, high=high))
    assert found == sorted(found)
    (tmp_path / "raw").write_bytes(qemu.read(image))
    with (tmp_path / "raw").open("rb") as raw:
        assert writer.writes.count_in(raw, low=count, high=count) == count
