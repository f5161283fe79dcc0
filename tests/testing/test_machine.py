from __future__ import annotations

import resource
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.testing.machine import GuestDisk, GuestImage, find_guest_image, guest_argv

IMAGE = GuestImage(Path("/g/vmlinuz"), Path("/g/initrd"))
STATIC_ELF = b"\x7fELF\x02".ljust(32, b"\0") + struct.pack("<Q", 64).ljust(32, b"\0")


def argv_of(*disks: GuestDisk, **options) -> list[str]:
    return guest_argv("qemu", disks, **{"image": IMAGE, "port": Path("/run/port"), **options})


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


def test_guest_argv_leads_the_port_to_a_socket_and_the_console_to_a_file():
    argv = argv_of(GuestDisk(name="vda", file=Path("/d/a,b")), port=Path("/run/p,q"), console=Path("/c,d"))
    assert values(argv, "-chardev") == [
        "file,id=console,path=/c,,d",
        "socket,id=port0,path=/run/p,,q,server=on,wait=off",
    ]
    assert "virtserialport,chardev=port0,id=port0,name=qmpsnap.guest" in values(argv, "-device")
    assert values(argv, "-kernel") == ["/g/vmlinuz"]
    assert values(argv_of(), "-chardev")[0] == "null,id=console"


def test_find_guest_image_builds_one_initramfs_for_the_same_parts(guest_parts):
    image = find_guest_image()
    assert image.kernel == guest_parts / "vmlinuz"
    assert image.initrd.read_bytes().startswith(b"070701")
    assert find_guest_image() == image
    (guest_parts / "modules/virtio.ko").write_bytes(b"module")
    assert find_guest_image().initrd != image.initrd


def test_find_guest_image_says_why_a_part_cannot_be_read(guest_parts):
    (guest_parts / "modules/virtio.ko").mkdir()
    with pytest.raises(InvalidTarget) as refused:
        find_guest_image()
    assert refused.value.message == f"cannot read '{guest_parts}/modules/virtio.ko': it is a directory"


def test_find_guest_image_says_what_to_run_when_the_kernel_is_missing(guest_parts):
    (guest_parts / "vmlinuz").unlink()
    with pytest.raises(Unsupported, match="no guest kernel") as missing:
        find_guest_image()
    assert "qmpsnap.testing.guest fetch" in missing.value.hint


def test_find_guest_image_says_what_to_run_when_the_agent_is_missing(guest_parts):
    with pytest.raises(Unsupported, match="no guest agent") as missing:
        find_guest_image(agent=True)
    assert "qmpsnap.testing.guest fetch" in missing.value.hint
    (guest_parts.with_name("guest-agent")).mkdir()
    (guest_parts.with_name("guest-agent") / ".complete").touch()
    assert find_guest_image(agent=True).initrd.exists()


def test_find_guest_image_leaves_nothing_when_the_disk_is_full(guest_parts):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InvalidTarget, match="too large") as refused:
            find_guest_image()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "QMPSNAP_CACHE" in refused.value.hint
    assert sorted(path.name for path in guest_parts.iterdir()) == ["busybox", "modules", "vmlinuz"]
