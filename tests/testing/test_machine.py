from __future__ import annotations

import json
import re
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from qmpsnap.errors import Unsupported
from qmpsnap.testing.machine import GuestDisk, GuestImage, accelerator, find_guest_image, guest_argv

IMAGE = GuestImage(Path("/g/vmlinuz"), Path("/g/initrd"))
STATIC_ELF = b"\x7fELF\x02".ljust(32, b"\0") + struct.pack("<Q", 64).ljust(32, b"\0")


def argv_of(*disks: GuestDisk, **options) -> list[str]:
    return guest_argv("qemu", disks, image=IMAGE, port=Path("/run/port"), **options)


def values(argv: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(argv) if name == option]


@pytest.fixture
def guest_parts(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QMPSNAP_CACHE", str(tmp_path))
    monkeypatch.delenv("QMPSNAP_GUEST", raising=False)
    parts: Path = tmp_path / "guest"
    (parts / "modules").mkdir(parents=True)
    (parts / "vmlinuz").touch()
    (parts / "busybox").write_bytes(STATIC_ELF)
    return parts


@pytest.mark.parametrize("forced", ["kvm", "tcg"])
def test_accelerator_is_the_forced_one(monkeypatch, forced):
    monkeypatch.setenv("QMPSNAP_ACCEL", forced)
    assert accelerator() == forced


def test_accelerator_refuses_another_word(monkeypatch):
    monkeypatch.setenv("QMPSNAP_ACCEL", "xen")
    with pytest.raises(Unsupported, match="'xen'"):
        accelerator()


def test_guest_argv_doubles_the_commas_of_paths():
    argv = argv_of(GuestDisk(name="vda", file=Path("/d/a,b"), legacy=True))
    assert values(argv, "-drive") == ["if=none,id=drive-vda,file=/d/a,,b,format=qcow2"]


def test_guest_argv_names_the_nodes_of_a_blockdev_disk():
    argv = argv_of(GuestDisk(name="vda", file=Path("/d/a,b"), format="raw"))
    assert [json.loads(value) for value in values(argv, "-blockdev")] == [
        {
            "driver": "raw",
            "node-name": "vda-format",
            "file": {"driver": "file", "filename": "/d/a,b", "node-name": "vda-file"},
        }
    ]
    assert "virtio-blk-pci,id=vda,serial=vda,drive=vda-format" in values(argv, "-device")


def test_guest_argv_brings_the_controllers_that_the_disks_need():
    disks = [GuestDisk(name=f"d{number}", file=Path("/d"), bus="ide") for number in range(3)]
    devices = values(argv_of(*disks, GuestDisk(name="s", file=Path("/s"), bus="scsi")), "-device")
    assert devices[2:4] == ["virtio-scsi-pci,id=scsi", "piix3-ide,id=pata"]
    assert [re.findall(r"bus=([^,]*)(?:,unit=(.))?", device)[0] for device in devices[4:]] == [
        ("pata.0", "0"),
        ("pata.0", "1"),
        ("pata.1", "0"),
        ("scsi.0", ""),
    ]


def test_find_guest_image_builds_one_initramfs_for_the_same_parts(guest_parts):
    image = find_guest_image()
    assert image.kernel == guest_parts / "vmlinuz"
    assert image.initrd.read_bytes().startswith(b"070701")
    assert find_guest_image() == image
    (guest_parts / "modules/virtio.ko").write_bytes(b"module")
    assert find_guest_image().initrd != image.initrd


def test_find_guest_image_says_what_to_run_when_the_kernel_is_missing(guest_parts):
    (guest_parts / "vmlinuz").unlink()
    with pytest.raises(Unsupported, match="no guest kernel") as missing:
        find_guest_image()
    assert "qmpsnap.testing.guest fetch" in missing.value.hint
