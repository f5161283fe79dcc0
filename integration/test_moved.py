"""A directory that was moved with its images; what lies at its old place since then is another machine's."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from integration.known_images import KIB
from integration.machines import blockdev

BLOCK = 64 * KIB
NAMES = ("base", "base.a", "base.b", "base.c")


def empty(qemu, old, now):
    """Nothing is there."""


def copied(qemu, old, now):
    """The directory was restored from a copy, and its machine has run since."""
    shutil.copytree(now, old)
    rebase(qemu, old, NAMES)
    for name in NAMES[:-1]:
        qemu.io(old / f"{name}.qcow2", f"write -q -P 0x99 0 {BLOCK}")


def strange(qemu, old, now):
    """There is a machine whose images another program has made, under the same names, but for the last."""
    old.mkdir()
    backing = None
    for name in NAMES[:-1]:
        backing = qemu.create(old / f"{name}.qcow2", 4 * BLOCK, backing=backing)
        qemu.io(backing, f"write -q -P 0x99 0 {BLOCK}")


def rebase(qemu, place, names):
    """Write into each header where its backing file is now, as `doctor` says after a move."""
    for backing, name in pairwise(names):
        file, below = place / f"{name}.qcow2", place / f"{backing}.qcow2"
        qemu.img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, file)


def content(place):
    return {path: path.read_bytes() for path in sorted(Path(place).rglob("*")) if path.is_file()}


async def go_through(running, vm, disk, now):
    """Revert to each of the three moments, and delete them; the chain is in the new place."""
    for pattern, name in ((2, "b"), (3, "c"), (1, "a")):
        await vm.revert(name)
        running.read(disk, pattern, 0, BLOCK)
    for name in ("c", "b", "a"):
        await vm.delete(name)
        running.read(disk, 1, 0, BLOCK)
    layers = (await vm.graph()).disks[disk].files
    assert {Path(layer).parent for layer in layers} == {now}


@pytest.mark.one_qemu
@pytest.mark.parametrize("aside", [False, True], ids=["in the chain", "aside"])
@pytest.mark.parametrize("at_the_old_place", [empty, copied, strange], ids=lambda one: one.__name__)
async def test_moments_are_found_where_they_were_moved_to_and_what_is_at_the_old_place_stays(
    qemu, machine, tmp_path, at_the_old_place, aside
):
    old, now = tmp_path / "old", tmp_path / "now"
    old.mkdir()
    base = qemu.create(old / "base.qcow2", 4 * BLOCK)
    with machine(*blockdev("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for pattern, name in enumerate("abc", 1):
                running.write("vda", pattern, 0, BLOCK)
                await (vm.checkpoint(name, mode="in-place") if name == "b" else vm.snapshot(name))
            active = (await vm.revert("a")).active["vda"] if aside else f"{old}/base.c.qcow2"
            running.write("vda", 4, 0, BLOCK)
    old.rename(now)
    rebase(qemu, now, NAMES)
    active = Path(active).name.removesuffix(".qcow2")
    if aside:
        rebase(qemu, now, ("base", active))
    at_the_old_place(qemu, old, now)
    before = content(old)
    with machine(*blockdev("vda", now / f"{active}.qcow2")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            assert [moment.name for moment in (await vm.moments()).moments] == ["a", "b", "c"]
            running.read("vda", 4, 0, BLOCK)
            await go_through(running, vm, "vda", now)
            assert not list(now.glob("*.vmstate.qcow2"))
    assert content(old) == before


@pytest.mark.one_qemu
@pytest.mark.parametrize("at_the_old_place", [empty, strange], ids=lambda one: one.__name__)
async def test_moments_are_found_where_the_directory_of_another_disk_was_moved_to(
    qemu, machine, tmp_path, at_the_old_place
):
    """The records lie beside the first disk, which has stayed."""
    stays, old, now = tmp_path / "stays", tmp_path / "old", tmp_path / "now"
    bases = {}
    for name, place in (("vda", stays), ("vdb", old)):
        place.mkdir()
        bases[name] = qemu.create(place / "base.qcow2", 4 * BLOCK)
    with machine(*blockdev("vda", bases["vda"]), *blockdev("vdb", bases["vdb"])) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for pattern, name in enumerate("abc", 1):
                running.write("vdb", pattern, 0, BLOCK)
                await vm.snapshot(name)
            running.write("vdb", 4, 0, BLOCK)
    old.rename(now)
    rebase(qemu, now, NAMES)
    at_the_old_place(qemu, old, now)
    before = content(old)
    tops = {"vda": stays / "base.c.qcow2", "vdb": now / "base.c.qcow2"}
    with machine(*blockdev("vda", tops["vda"]), *blockdev("vdb", tops["vdb"])) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            moments = (await vm.moments()).moments
            assert [moment.name for moment in moments] == ["a", "b", "c"]
            held = {moment.name: [part.file for part in moment.held] for moment in moments}
            assert held["a"] == [f"{stays}/base.qcow2", f"{now}/base.qcow2"]
            assert all(part.in_chain for moment in moments for part in moment.held)
            await go_through(running, vm, "vdb", now)
    assert content(old) == before
