"""Two thin clones of one base on one machine (T0): moments, checkpoints and the way back, every byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev, drive
from integration.states import ENDINGS, note, status

FIRST = {"vda": (0xA1, 6 * MIB, 64 * KIB), "vdb": (0xB1, 6 * MIB, 64 * KIB)}
LATER = {"vda": (0xA2, 6 * MIB, 32 * KIB), "vdb": (0xB2, 7 * MIB, 32 * KIB)}
LAST = {"vda": (0xA3, 5 * MIB, 32 * KIB), "vdb": (0xB3, 5 * MIB, 32 * KIB)}


def write(running, writes):
    for disk, one in writes.items():
        running.write(disk, *one)


def is_back(running):
    """Demand that the guest runs, and reads what it wrote first; then let it write once more."""
    assert status(running) == "running"
    for disk, (pattern, *where) in FIRST.items():
        running.read(disk, pattern, *where)
    write(running, LAST)


@pytest.fixture
def clones(qemu, images, tmp_path):
    """The base, and the clones by disk."""
    (base,) = images("base").chain
    return base, {
        disk: qemu.create(tmp_path / f"{name}1.qcow2", backing=base)
        for disk, name in (("vda", "a"), ("vdb", "b"))
    }


@pytest.mark.parametrize("kind", ["disks", "in-place", "stop"])
async def test_clones_of_one_base_go_back_each_to_its_own(qemu, clones, machine, tmp_path, kind):
    base, made = clones
    was = Path(base).read_bytes()
    with machine(*blockdev("vda", made["vda"]), *drive("vdb", made["vdb"])) as running:
        running.qmp("cont")
        write(running, FIRST)
        async with running.connect() as vm:
            taken = await (vm.snapshot("c1") if kind == "disks" else vm.checkpoint("c1", mode=kind))
            assert taken.active == {disk: f"{tmp_path}/base.{disk}.c1.qcow2" for disk in made}
            assert taken.chains == {disk: (taken.active[disk], made[disk], base) for disk in made}
            write(running, LATER)
            if kind == "stop":
                (moment,) = (await vm.moments()).moments
                assert Path(moment.vm_state_file).name == f"base.c1.{ENDINGS[kind]}"
                assert note(moment.vm_state_file).stream_bytes > 100 * KIB
                back = (await vm.revert("c1", into="new")).prepared
            else:
                back = (await vm.revert("c1")).active
                is_back(running)
    if kind == "stop":
        incoming = ("-incoming", "defer")
        new = machine(*blockdev("vda", back["vda"]), *drive("vdb", back["vdb"]), extra=incoming)
        with new as running:
            async with running.connect() as vm:
                await vm.revert("c1", into="incoming")
                is_back(running)
    token = back["vda"].rpartition("-")[2]
    assert back == {disk: f"{tmp_path}/base.{disk}.c1-{token}" for disk in made}
    for disk, file in made.items():
        then = overwritten(content(1), FIRST[disk])
        assert qemu.read(file) == then
        assert qemu.read(taken.active[disk]) == overwritten(then, LATER[disk])
        assert qemu.read(back[disk]) == overwritten(then, LAST[disk])
        qemu.check_chain(back[disk], file, base)
    assert Path(base).read_bytes() == was
