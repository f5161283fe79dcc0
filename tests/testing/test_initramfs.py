from __future__ import annotations

import stat
import struct

from qmpsnap.testing.initramfs import MODULES, build_initramfs, is_static_elf


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive by the letter of the kernel's description: name -> (mode, data)."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += 110 + name_size + -(110 + name_size) % 4
        if name == "TRAILER!!!":
            assert at == len(archive)
            return found
        found[name] = mode, archive[at : at + size]
        at += size + -size % 4


def elf(*kinds: int) -> bytes:
    """An ELF header with one program header of each kind, 1 LOAD, 3 INTERP."""
    header = b"\x7fELF\x02".ljust(32, b"\0") + struct.pack("<Q", 64)
    header = header.ljust(54, b"\0") + struct.pack("<HH", 56, len(kinds))
    return header.ljust(64, b"\0") + b"".join(struct.pack("<I", kind).ljust(56, b"\0") for kind in kinds)


def test_build_initramfs_holds_busybox_as_the_shell():
    found = unpack(build_initramfs(busybox=b"\x7fELF!", modules={}))
    assert found["bin/busybox"] == (stat.S_IFREG | 0o755, b"\x7fELF!")
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")


def test_build_initramfs_has_a_directory_before_what_is_in_it():
    names = list(unpack(build_initramfs(busybox=b"", modules={"virtio": b"m"}, programs={"writer": "w"})))
    parents = {name.rpartition("/")[0] for name in names} - {""}
    assert all(names.index(parent) < names.index(name) for parent in parents for name in names if "/" in name)


def test_build_initramfs_keeps_the_modules_that_the_guest_loads_and_no_other():
    found = unpack(build_initramfs(busybox=b"", modules={"virtio_blk": b"odd", "snd": b"x"}))
    assert {name: data for name, (_, data) in found.items() if name.endswith(".ko")} == {
        "lib/virtio_blk.ko": b"odd"
    }


def test_build_initramfs_makes_programs_that_can_be_run():
    found = unpack(build_initramfs(busybox=b"", modules={}, programs={"writer": "#!/bin/sh\n"}))
    assert found["bin/writer"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert found["init"][0] & 0o111


def test_init_prints_a_line_before_it_does_anything():
    script = unpack(build_initramfs(busybox=b"", modules={}))["init"][1].decode()
    assert script.splitlines()[:2] == ["#!/bin/sh", "echo init runs"]


def test_init_loads_every_module_of_the_list():
    script = unpack(build_initramfs(busybox=b"", modules={}))["init"][1].decode()
    assert [name for name in MODULES if name not in script.split()] == []


def test_is_static_elf_is_true_for_a_program_without_an_interpreter():
    assert is_static_elf(elf(1, 1, 4))


def test_is_static_elf_is_false_when_a_loader_is_needed():
    assert not is_static_elf(elf(1, 3))


def test_is_static_elf_is_false_for_a_script():
    assert not is_static_elf(b"#!/bin/sh\n")


def test_build_initramfs_holds_the_agent_when_it_is_given():
    agent: dict[str, bytes | str] = {"qemu-ga": b"agent", "libc.so.6": "libc-2.36.so"}
    found = unpack(build_initramfs(busybox=b"", modules={}, agent=agent))
    assert found["agent/qemu-ga"] == (stat.S_IFREG | 0o755, b"agent")
    assert found["agent/libc.so.6"] == (stat.S_IFLNK | 0o777, b"libc-2.36.so")
    assert not any("agent/" in name for name in unpack(build_initramfs(busybox=b"", modules={})))
