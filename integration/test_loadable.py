"""What a load inside images fails on when one disk has gone back already: refused, and the way out leads out.

The table of what QEMU does with each by itself is in docs/explanation/qemu.md.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial

import pytest

from integration.known_images import KIB, MIB
from integration.machines import blockdev, traced
from qmpsnap.errors import Busy, Changed, InvalidTarget, NotInChain, Refused, Unsupported

THEN, NOW = (0xA1, 0, 64 * KIB), (0xA2, 0, 64 * KIB)
VIAS = ("hmp", "jobs")


async def refused(running, error, text):
    """Demand that either way is refused, with nothing sent and nothing moved; return the last hint."""
    hint = ""
    async with running.connect() as vm:
        for via in VIAS:
            with traced(vm) as sent, pytest.raises(Refused, match=text) as caught:
                await vm.revert("c1", via=via)
            assert (type(caught.value), caught.value.changed, sent) == (error, Changed.NO, [])
            hint = caught.value.hint
    assert running.qmp("query-status")["status"] == "running"
    for disk in ("vda", "vdb"):
        running.read(disk, *NOW)
    return hint


async def goes_back(running):
    async with running.connect() as vm:
        for via in VIAS:
            for disk in ("vda", "vdb"):
                running.write(disk, *NOW)
            await vm.revert("c1", via=via)
            for disk in ("vda", "vdb"):
                running.read(disk, *THEN)
    assert running.qmp("query-status")["status"] == "running"


async def keep(running, *, via=None):
    """Take the checkpoint of a guest that runs, and let it write on."""
    if running.qmp("query-status")["status"] != "running":
        running.qmp("cont")
    for disk in ("vda", "vdb"):
        running.write(disk, *THEN)
    async with running.connect() as vm:
        done = await vm.checkpoint("c1", mode="internal", via=via)
    for disk in ("vda", "vdb"):
        running.write(disk, *NOW)
    return done


@pytest.fixture
def two(qemu, tmp_path, machine):
    """Start a machine with two disks; `two(again=True)` on the images that are there."""

    def start(*more, again=False, options="", read_only=False, place=tmp_path):
        one, other = tmp_path / "a.qcow2", place / "b.qcow2"
        if not again:
            qemu.create(one)
            qemu.create(other, options=options)
        second = list(blockdev("vdb", other))
        if read_only:
            second[1] = second[1].replace("{", '{"read-only": true, ', 1)
        return machine(*blockdev("vda", one), *second, *more)

    return start


async def test_revert_refuses_a_disk_with_a_dirty_bitmap_until_it_is_removed(two):
    with two() as running:
        done = await keep(running)
        assert done.notes == ()
        bitmap = {"node": "vdb-node", "name": "b0"}
        for kind in ({}, {"persistent": True}, {"disabled": True}):
            running.qmp("block-dirty-bitmap-add", {**bitmap, **kind})
            hint = await refused(running, Unsupported, "vdb .* has the dirty bitmap 'b0'")
            assert """qmpsnap qmp block-dirty-bitmap-remove '{"node": "vdb-node", "name": "b0"}'""" in hint
            running.qmp("block-dirty-bitmap-remove", bitmap)
        await goes_back(running)
        running.qmp("block-dirty-bitmap-add", bitmap)
        async with running.connect() as vm:
            taken = await vm.checkpoint("c2", mode="internal")
            assert "QEMU reverts to 'c2' only after it is removed" in taken.notes[0]


async def test_revert_refuses_a_disk_with_a_bitmap_that_was_in_use_when_qemu_was_killed(two, qemu, tmp_path):
    with two() as running:
        await keep(running)
    qemu.img("bitmap", "--add", tmp_path / "b.qcow2", "b0")
    with two(again=True) as running:
        running.qmp("cont")
        running.write("vdb", *NOW)
        running.kill()
    with two(again=True) as running:
        running.qmp("cont")
        await refused(running, Unsupported, "bitmap 'b0', which was in use when QEMU ended")
        running.qmp("block-dirty-bitmap-remove", {"node": "vdb-node", "name": "b0"})
        await goes_back(running)


async def test_revert_refuses_a_disk_of_another_size_that_is_exported(two, tmp_path):
    with two() as running:
        await keep(running)
        running.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp_path / "nbd")}})
        export = {"type": "nbd", "id": "e", "node-name": "vdb-node"}
        running.qmp("block-export-add", export)
        await goes_back(running)  # one of the same size is no hindrance
        for disk in ("vda", "vdb"):
            running.write(disk, *NOW)
        running.qmp("block-export-del", id="e")
        running.qmp.wait_event("BLOCK_EXPORT_DELETED")
        running.qmp("block_resize", {"node-name": "vdb-node", "size": 16 * MIB})
        running.qmp("block-export-add", export)
        hint = await refused(running, Busy, f"has {16 * MIB} bytes now, it had {8 * MIB} at 'c1'")
        assert "block-export-del" in hint
        running.qmp("block-export-del", id="e")
        running.qmp.wait_event("BLOCK_EXPORT_DELETED")
        await goes_back(running)


@contextmanager
def filled(file):
    """Take all the room of its file system."""
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError:
        yield
    finally:
        os.close(descriptor)
        os.unlink(file)  # noqa: PTH108


async def test_revert_refuses_a_disk_of_another_size_when_there_is_no_room(two, small):
    place = small("4m")
    with two(place=place, options="cluster_size=512") as running:
        await keep(running)
        with filled(place / "fill"):
            await goes_back(running)  # one of the same size takes none
        for disk in ("vda", "vdb"):
            running.write(disk, *NOW)
        running.qmp("block_resize", {"node-name": "vdb-node", "size": 40 * MIB})
        with filled(place / "fill"):
            hint = await refused(running, InvalidTarget, f"has {40 * MIB} bytes, it had {8 * MIB} at 'c1'")
        assert hint == "free some space there"
        await goes_back(running)


async def test_revert_refuses_to_leave_a_read_only_disk_behind_without_a_word(two):
    with two() as running:
        await keep(running)
    with two(again=True, read_only=True) as running:
        running.qmp("cont")
        assert "--leave vdb" in await refused(running, NotInChain, "vdb has 'c1' but is attached read-only")
        async with running.connect() as vm:
            await vm.revert("c1", leave=["vdb"])
        running.read("vda", *THEN)
        running.read("vdb", *NOW)


async def test_revert_refuses_while_somebody_reads_the_disks_past(two, qemu, tmp_path):
    target = qemu.create(tmp_path / "t.qcow2")
    with two() as running:
        await keep(running)
        running.qmp("blockdev-add", {"driver": "qcow2", "node-name": "t",
                                     "file": {"driver": "file", "filename": target}})  # fmt: skip
        running.qmp("blockdev-add", {"driver": "copy-before-write", "node-name": "cbw",
                                     "file": "vdb-node", "target": "t"})  # fmt: skip
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises((Busy, Unsupported), match=r"cbw|without a name"):
                await vm.revert("c1", via="jobs")
            assert sent == []
        running.qmp("blockdev-del", {"node-name": "cbw"})
        running.qmp("blockdev-del", {"node-name": "t"})
        await goes_back(running)


async def test_nothing_is_kept_inside_an_image_with_an_external_data_file(two, tmp_path):
    with two(options=f"data_file={tmp_path / 'b.data'}") as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for take in (partial(vm.checkpoint, mode="internal"), partial(vm.snapshot, inside=True)):
                with (
                    traced(vm) as sent,
                    pytest.raises(Unsupported, match=r"external file .*b\.data") as caught,
                ):
                    await take("c1")
                assert sent == []
            assert "--mode in-place" in caught.value.hint or "external snapshot" in caught.value.hint
            await vm.snapshot("c1", disks=["vda"], inside=True)
