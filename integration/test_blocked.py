"""Machines whose VM state QEMU does not keep, and disks that do not go back in place: said in time."""

from __future__ import annotations

import json

import pytest

from integration.known_images import KIB, MIB
from integration.machines import blockdev
from integration.states import refuses, status
from qmpsnap.errors import Unsupported
from qmpsnap.plan.intent import Checkpoint, Revert, Save

WRITE = (0xA1, 0, 64 * KIB)
LATER = (0xA2, 0, 64 * KIB)


def node(name, file):
    return "-blockdev", json.dumps(
        {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": file}}
    )


# A device that keeps QEMU from migrating, and part of its reason. QEMU 11.1 migrates nvme.
BLOCKED = {
    "ivshmem": (
        ("-object", "memory-backend-ram,id=shm,share=on,size=1M", "-device", "ivshmem-plain,memdev=shm"),
        "peer mode",
    ),
    "usb-uas": (
        (
            "-device", "qemu-xhci", "-device", "usb-uas,id=uas", "-device", "scsi-hd,drive=x,bus=uas.0,id=vdx"
        ),
        "non-migratable device: .*usb-uas",
    ),
    "nvme": (("-device", "nvme,drive=x,serial=1,id=vdx"), "non-migratable device: .*nvme"),
    "virtio-crypto": (
        ("-object", "cryptodev-backend-builtin,id=c", "-device", "virtio-crypto-pci,cryptodev=c"),
        "non-migratable device: .*virtio-crypto",
    ),
    "amd-iommu": (("-device", "amd-iommu"), "non-migratable device: amd-iommu"),
    "vmdk": ((), "vmdk format used by node"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKED)
async def test_no_state_is_kept_of_a_machine_that_qemu_would_not_migrate(
    qemu, images, machine, tmp_path, kind
):
    extra, reason = BLOCKED[kind]
    if kind == "nvme" and qemu.short == "11.1":
        pytest.skip("QEMU 11.1 migrates nvme")
    disks = [*blockdev("vda", images("base").active)]
    if any("drive=x" in word for word in extra):
        disks += node("x", qemu.create(tmp_path / "x.qcow2"))
    if kind == "vmdk":
        disks += blockdev("vdx", qemu.create(tmp_path / "x.vmdk", form="vmdk"), "vmdk")
    with machine(*disks, *extra) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            verbs = [Checkpoint("c1", mode) for mode in ("stop", "background", "in-place")]
            for intent in (*verbs, Checkpoint("c1", "internal"), Save(str(tmp_path / "m"))):
                error = await refuses(running, vm, intent, Unsupported, reason)
                assert "take a snapshot of the disks only: qmpsnap snapshot" in error.hint
            await vm.snapshot("n1", disks=["vda"])
        assert status(running) == "running"


def elsewhere(qemu, tmp_path):
    """Arguments of disks on devices that take no other root, by their names; what each is called."""
    made = [qemu.create(tmp_path / f"x{number}.qcow2") for number in range(3)]
    floppy = qemu.create(tmp_path / "floppy.qcow2", size=1440 * KIB)
    flash = qemu.create(tmp_path / "flash.qcow2", size=MIB)
    cor = {"driver": "copy-on-read", "node-name": "cor",
           "file": {"driver": "qcow2", "file": {"driver": "file", "filename": made[2]}}}  # fmt: skip
    return (
        "-device", "qemu-xhci", *node("n0", made[0]), "-device", "usb-storage,drive=n0,id=stick",
        "-device", "sdhci-pci", *node("n1", made[1]), "-device", "sd-card,drive=n1,id=card",
        "-device", "isa-fdc", *node("n3", floppy), "-device", "floppy,drive=n3,id=flop",
        "-drive", f"if=pflash,unit=0,format=qcow2,file={flash}",
        "-blockdev", json.dumps(cor), "-device", "virtio-blk-pci,drive=cor,id=read",
    ), {
        "stick": "stick is usb-storage (/machine/peripheral/stick)",
        "card": "card is sd-card (/machine/peripheral/card)",
        "flop": "flop is floppy (/machine/peripheral/flop)",
        "pflash0": "pflash0 is cfi.pflash01 (/machine/system.flash0)",
        "read": "read is under the filter 'cor' (copy-on-read)",
    }  # fmt: skip


async def test_checkpoint_in_place_names_the_disks_that_will_not_go_back(qemu, images, machine, tmp_path):
    arguments, called = elsewhere(qemu, tmp_path)
    with machine(*blockdev("vda", images("base").active), *arguments) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", "in-place"))
            taken = await vm.run(plan)
            for notes in (plan.notes, taken.notes):
                said = {disk: [one for one in notes if one.startswith(text)] for disk, text in called.items()}
                assert {disk: len(found) for disk, found in said.items()} == dict.fromkeys(called, 1)
                for disk, (note,) in said.items():
                    assert f"(revert c1 --leave {disk})" in note
                assert not [one for one in notes if one.startswith("vda")]
            running.write("vda", *LATER)
            for disk, text in called.items():
                others = tuple(other for other in called if other != disk)
                error = await refuses(running, vm, Revert("c1", others), Unsupported, "root|filter")
                assert error.message.startswith(text)
                assert f"--leave {disk}" in error.hint
                assert "--prepare" not in error.hint  # that reads no store
            await vm.revert("c1", leave=tuple(called))
            running.read("vda", *WRITE)
            await vm.snapshot("n1")
            error = await refuses(running, vm, Revert("n1"), Unsupported, "another root node|filter")
            assert "--prepare" in error.hint
        running.killed = True  # the filter is the user's, and stays
