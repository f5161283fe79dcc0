"""Reverts in place that cannot be: devices, machines, stores, names, layers; nothing is sent or left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.known_images import KIB, MIB
from integration.machines import blockdev, drive, throttled
from integration.states import refuses, status, take
from qmpsnap.errors import (
    AmbiguousName,
    Busy,
    InvalidTarget,
    MachineDiffers,
    NotFound,
    NotInChain,
    Unsupported,
    WouldLose,
)
from qmpsnap.plan.intent import Checkpoint, Revert

WRITE = (0xA1, 6 * MIB, 64 * KIB)
BUSES = {
    "scsi-hd": ("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=vda-node,id=vda"),
    "ide-hd": ("-device", "ide-hd,drive=vda-node,id=vda"),
    "nvme": ("-device", "nvme,drive=vda-node,serial=1,id=vda"),
    "usb-storage": ("-device", "qemu-xhci", "-device", "usb-storage,drive=vda-node,id=vda"),
}


def on_bus(bus, file):
    """The arguments of a disk vda on that kind of device."""
    node = {"driver": "qcow2", "node-name": "vda-node", "file": {"driver": "file", "filename": file}}
    return ("-blockdev", json.dumps(node), *BUSES[bus])


@pytest.mark.parametrize("bus", ["scsi-hd", "ide-hd"])
async def test_revert_on_other_devices(qemu, images, machine, kind, bus):
    made = images("base")
    with machine(*on_bus(bus, made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            (name,) = (await vm.graph()).disks
            disk = (await vm.graph()).disks[name].qdev
            disk = disk if disk.startswith("/") else f"/machine/peripheral/{disk}"
            await take(vm, "c1", kind)
            running.write(disk, *WRITE)
            for _ in range(2):
                back = await vm.revert("c1")
                running.read(disk, 0, *WRITE[1:])
                assert len(back.chains[name]) == 2
    qemu.check_chain(*back.chains[name])


@pytest.mark.parametrize("bus", ["nvme", "usb-storage"])
async def test_revert_refuses_a_device_that_was_not_tried(images, machine, kind, bus):
    with machine(*on_bus(bus, images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            if (bus, kind) == ("nvme", "in-place") and running.qemu.short != "11.1":
                await refuses(running, vm, Checkpoint("c1", "in-place"), Unsupported, "non-migratable")
                return
            await take(vm, "c1", kind)
            error = await refuses(
                running, vm, Revert("c1"), Unsupported, "not known to accept another root node"
            )
            assert ("--prepare" in error.hint) is (kind == "disks")
            assert error.message.startswith(f"vda is {bus} (/machine/peripheral/vda)")


async def test_revert_refuses_under_a_filter_that_is_no_throttle(images, machine, kind):
    made = images("base")
    node = {"driver": "copy-on-read", "node-name": "cor",
            "file": {"driver": "qcow2", "node-name": "vda-node",
                     "file": {"driver": "file", "filename": made.active}}}  # fmt: skip
    disk = ("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=cor,id=vda")
    with machine(*disk) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            await refuses(running, vm, Revert("c1"), Unsupported, "copy-on-read")
        running.killed = True  # its filter is the user's, and stays


async def test_revert_refuses_a_disk_that_came_later_unless_it_may_stay(images, machine, kind):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", one.active)) as running:
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
    with machine(*drive("vda", taken.active["vda"]), *blockdev("vdb", two.active)) as running:
        async with running.connect() as vm:
            error = await refuses(running, vm, Revert("c1"), NotInChain, "vdb is writable but not part")
            assert "--leave vdb" in error.hint
            if kind == "in-place":
                error = await refuses(running, vm, Revert("c1", ("vdb",)), MachineDiffers, "another")
                assert any("vdb" in one for one in error.differences)
                return
            back = await vm.revert("c1", leave=["vdb"])
            assert set(back.chains) == {"vda"}
            assert "not reverted: vdb" in back.notes


async def test_revert_refuses_when_a_disk_is_gone(images, machine, kind):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", one.active), *blockdev("vdb", two.active)) as running:
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
    with machine(*blockdev("vda", taken.active["vda"])) as running:
        async with running.connect() as vm:
            await refuses(running, vm, Revert("c1"), NotFound, "no disk 'vdb'")


async def test_revert_of_memory_refuses_another_machine(images, machine):
    with machine(*throttled("vda", images("base").active)) as running:
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode="in-place")
    disk = throttled("vda", taken.active["vda"])
    others = {"memory": ("-m", "96"), "CPU": ("-smp", "2"), "machine": ("-M", "pc"),
              "device": ("-device", "virtio-rng-pci,id=rng")}  # fmt: skip
    for what, extra in others.items():
        with machine(*disk, extra=extra) as running:
            async with running.connect() as vm:
                error = await refuses(running, vm, Revert("c1"), MachineDiffers, "another machine")
                assert any(what in one for one in error.differences)
    with machine(*disk) as running:
        async with running.connect() as vm:
            await vm.revert("c1")


async def test_revert_refuses_while_a_job_runs(qemu, images, machine, kind, tmp_path):
    copy = qemu.create(tmp_path / "copy.qcow2")
    with machine(*blockdev("vda", images("base").active)) as running:
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            (root, *_) = running.roots()["vda"]
            running.qmp("drive-mirror", {"job-id": "theirs", "device": root, "target": copy,
                                         "format": "qcow2", "sync": "full", "mode": "existing"})  # fmt: skip
            running.qmp.wait_event("BLOCK_JOB_READY")
            await refuses(running, vm, Revert("c1"), Busy, "'theirs'")
        running.qmp("block-job-cancel", device="theirs")
        running.qmp.wait_event("BLOCK_JOB_COMPLETED")


async def test_revert_refuses_a_name_that_is_missing_or_stands_for_two(images, machine, kind):
    with machine(*blockdev("vda", images("base").active)) as running:
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            error = await refuses(running, vm, Revert("c2"), NotFound, "no snapshot 'c2'")
            assert error.hint == "there are: 'c1'"
            (root, *_) = running.roots()["vda"]
            running.qmp("blockdev-snapshot-internal-sync", device=root, name="c1")
            error = await refuses(running, vm, Revert("c1"), AmbiguousName, "2 snapshots")
            assert len(error.candidates) == 2
            running.qmp("blockdev-snapshot-internal-sync", device=root, name="inside")
            await refuses(running, vm, Revert("inside"), Unsupported, "only disks")


async def test_revert_refuses_to_discard_a_layer_that_holds_moments(images, machine, kind):
    with machine(*blockdev("vda", images("base").active)) as running:
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            await vm.snapshot("in1", inside=True)
            error = await refuses(
                running, vm, Revert("c1", discard=True), WouldLose, "internal snapshot 'in1' of"
            )
            assert error.what[0].startswith("internal snapshot 'in1' of ")
            await vm.delete("in1")
            await vm.revert("c1", discard=True)


async def test_revert_of_memory_for_a_new_qemu_is_refused_in_place(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for mode in ("stop", "background"):
                await vm.checkpoint(mode, mode=mode)
                error = await refuses(running, vm, Revert(mode), Unsupported, f"--mode {mode}: only a new")
                assert f"revert {mode} --prepare" in error.hint


async def test_revert_goes_to_a_moment_that_a_commit_has_moved_and_to_none_that_it_cost(
    images, machine, kind
):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            await take(vm, "c2", kind)
            running.write("vda", *WRITE)
            await vm.commit("vda", top="base.c1.qcow2", base="base.qcow2")
            await refuses(running, vm, Revert("c1"), NotFound, "no snapshot 'c1'")
            await vm.revert("c2")  # what it held went down into the base, and lies there now
            running.read("vda", 0, *WRITE[1:])
            assert status(running) == "running"


@pytest.mark.parametrize("how", ["lost", "empty", "no image", "of somebody else"])
async def test_revert_refuses_a_store_that_is_not_there_or_not_ours(qemu, images, machine, how, tmp_path):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
            (moment,) = (await vm.moments()).moments
            store = Path(moment.vm_state_file)
            kept = store.read_bytes()
            store.unlink()
            if how == "empty":
                store.touch()
            elif how == "no image":
                store.write_bytes(b"no image" * 1000)
            elif how == "of somebody else":
                qemu.create(store)
            error = await refuses(running, vm, Revert("c1"), InvalidTarget, str(store))
            assert error.file == str(store)
            store.write_bytes(kept)
            await vm.revert("c1")
