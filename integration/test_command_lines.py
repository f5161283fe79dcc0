"""Forks, templates and clones of machines with the command lines that people have.

No guest runs: a pattern in its memory comes from QEMU's loader, and from a file that has other content by the
time another QEMU of the machine starts, so that only the VM state can bring the pattern there.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import qmpsnap
from integration.known_images import MIB
from integration.machines import CHEAP, blockdev, listing, traced
from qmpsnap.errors import Changed, Unsupported
from qmpsnap.model.start import USES_PATH

pytestmark = pytest.mark.timeout(120)
PATTERN, OTHER = b"\xa5" * (2 * MIB), b"\x3c" * (2 * MIB)
AT = 31 * MIB


def memory(kind, name="pc.ram", **properties):
    """The arguments of memory that is one object."""
    rest = "".join(f",{key}={value}" for key, value in properties.items())
    return (
        "-object",
        f"memory-backend-{kind},id={name},size=64M{rest}",
        "-machine",
        f"memory-backend={name}",
    )


@asynccontextmanager
async def started(qemu, folder, *arguments):
    """A machine that runs, with the pattern in its memory and on its disk."""
    source, disk = folder / "pattern", folder / "vda.qcow2"
    source.write_bytes(PATTERN)
    qemu.create(disk, 8 * MIB)
    argv = [qemu.system, *CHEAP, *blockdev("vda", disk), *arguments]
    argv += ["-device", f"loader,file={source},addr={AT},force-raw=on"]
    argv = [word for word in map(str, argv) if word != "-S"]
    async with qmpsnap.launch(argv, qmp=folder / "qmp", log=folder / "qemu.log") as vm:
        source.write_bytes(OTHER)
        assert "wrote" in await io(vm, "write -P 0xa1 6M 64k")
        yield vm


async def io(vm, command):
    """Run a command of qemu-io on the disk; return what it has printed into QEMU's log."""
    log = Path(vm.qmp).with_name("qemu.log")
    seen = len(log.read_bytes())
    line = f'qemu-io -d /machine/peripheral/vda/virtio-backend "{command}"'
    assert await vm.execute("human-monitor-command", {"command-line": line}) == ""
    return log.read_bytes()[seen:].decode()


async def reads(vm):
    printed = await io(vm, "read -P 0xa1 6M 64k")
    return "read 65536/65536 bytes" in printed and "verification failed" not in printed


async def check(vm, folder):
    """Demand the pattern in the memory and on the disk; write to the disk, which no other machine may see."""
    dump = folder / "dump"
    await vm.execute("pmemsave", {"val": AT, "size": len(PATTERN), "filename": str(dump)})
    memory = dump.read_bytes()
    dump.unlink()
    assert memory == PATTERN
    assert (await vm.status()).running
    assert await reads(vm)
    assert "wrote" in await io(vm, "write -P 0xb2 6M 64k")


ONE_OBJECT = {
    "another id, shared": memory("memfd", "mem", share="on"),
    "private, allocated before": memory("memfd", share="off", prealloc="on"),
    "called by its object's path": memory("ram", **{USES_PATH: "on"}),
    "pc": ("-M", "pc", "-m", "64M,maxmem=256M,slots=2", "-smp", "2", "-device", "virtio-balloon-pci"),
    "microvm": ("-M", "microvm,pcie=on"),
}
OLD = {
    "pc": ("-M", "pc-i440fx-3.1", "-mem-path", "/dev/shm"),
    "q35, memfd": ("-M", "pc-q35-3.1", *memory("memfd", share="on")),
}
PLUGGED = ("-object", "memory-backend-ram,id=d,size=64M", "-device", "pc-dimm,memdev=d")
IVSHMEM = ("-object", "memory-backend-memfd,id=i,size=1M,share=on", "-device", "ivshmem-plain,memdev=i")
REFUSED = {
    "a plugged DIMM": (("-m", "64M,maxmem=256M,slots=2", *PLUGGED), "67108864 bytes of which are plugged in"),
    "shared with other processes": (IVSHMEM, "in device 'ivshmem'"),
    "snapshot mode": (
        ("-drive", "if=virtio,id=v,format=raw,file=/dev/null,snapshot=on"),
        "v is in snapshot mode",
    ),
}


async def fork_and_clone(vm, folder):
    """Demand the pattern in a child, and in a clone of a template of a checkpoint."""
    async with vm.fork(1) as children:
        async for child in children:
            await check(child.vm, folder)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        await vm.checkpoint("c1", mode="stop")
        await vm.cont(after_migration=True)
        template = await vm.freeze_template(f"{place}/t1", of="c1")
        async with template.clone() as clone:
            await check(clone, folder)
        await template.remove()
        assert os.listdir(place) == []  # noqa: PTH208
    assert (await vm.status()).running
    assert await reads(vm)


@pytest.mark.parametrize("what", list(ONE_OBJECT))
@pytest.mark.one_qemu
async def test_children_and_clones_have_the_memory_of_this_command_line(qemu, tmp_path, what):
    async with started(qemu, tmp_path, *ONE_OBJECT[what]) as vm:
        await fork_and_clone(vm, tmp_path)


@pytest.mark.parametrize("what", list(OLD))
async def test_children_and_clones_of_an_old_machine_have_its_memory(qemu, tmp_path, what):
    """Up to 3.1 a memory object that is a file is called by its path, but not the one that QEMU makes."""
    known = subprocess.run([qemu.system, "-machine", "help"], capture_output=True, text=True, check=True)
    if "pc-q35-3.1 " not in known.stdout:
        pytest.skip("this QEMU no longer has the machine type")
    async with started(qemu, tmp_path, *OLD[what]) as vm:
        await fork_and_clone(vm, tmp_path)
        await vm.checkpoint("c2", mode="background")
        assert "in-place" in {moment.mode for moment in (await vm.moments()).named("c2")}
        await vm.revert("c2")
        await check(vm, tmp_path)


def mapped(pid, length):
    """Return where a process has a writable mapping of this length, and the process's memory."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        low, high = (int(word, 16) for word in line.split()[0].split("-"))
        if high - low == length and " rw-" in line:
            return low, Path(f"/proc/{pid}/mem")
    raise AssertionError


@pytest.mark.one_qemu
async def test_children_and_clones_have_what_is_in_other_memory_that_is_shared(qemu, tmp_path):
    """The storage of a device; the test writes there what the guest would."""
    length, words = 192 << 10, b"a crash of yesterday"
    erst = ("-object", f"memory-backend-memfd,id=e,size={length},share=on", "-device", "acpi-erst,memdev=e")

    def kept(vm):
        place, memory = mapped(vm.pid, length)
        with memory.open("rb") as opened:
            opened.seek(place + length // 2)
            return opened.read(len(words))

    async with started(qemu, tmp_path, *erst) as vm:
        place, memory = mapped(vm.pid, length)
        with memory.open("r+b") as opened:
            opened.seek(place + length // 2)
            opened.write(words)
        async with vm.fork(1, directory=tmp_path) as children:
            assert [kept(child.vm) async for child in children] == [words]
        template = await vm.freeze_template(tmp_path / "t1")
        async with template.clone() as clone:
            assert kept(clone) == words
        await template.remove()
        assert kept(vm) == words


@pytest.mark.parametrize("what", list(REFUSED))
@pytest.mark.one_qemu
async def test_machine_that_cannot_be_forked_is_refused_before_anything_is_changed(qemu, tmp_path, what):
    arguments, said = REFUSED[what]
    async with started(qemu, tmp_path, *arguments) as vm:
        before = listing(tmp_path)
        with traced(vm) as sent:
            with pytest.raises(Unsupported, match=said) as caught:
                async with vm.fork(1, directory=tmp_path):
                    raise AssertionError
            assert (caught.value.changed, bool(caught.value.hint)) == (Changed.NO, True)
            with pytest.raises(Unsupported, match=said):
                await vm.freeze_template(tmp_path / "t1")
        assert (sent, listing(tmp_path)) == ([], before)
