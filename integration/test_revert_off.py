"""Revert and delete with the machine off (C2, G1, T4, T8): images that go back together, and new overlays."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

import qmpsnap
from integration.cli import ROOT
from integration.known_images import KIB, MIB, overwritten
from integration.machines import blockdev, listing, messages, traced, wait_for
from integration.off import daemons, offline
from qmpsnap.errors import Changed, CommandFailed, LinkLost, NotInChain, Unsupported
from qmpsnap.plan.intent import Revert

SINCE = (0xA2, 6 * MIB, 32 * KIB)


def write(qemu, file, pattern, offset, length):
    qemu.io(file, f"write -q -P {pattern} {offset} {length}")


@pytest.fixture
def two(images):
    """A disk on a chain, and one on a base alone."""
    return images("base <- s1", folder="a"), images("base", folder="b")


def opened(qemu, two, **options):
    return offline(qemu, {"vda": two[0].active, "vdb": two[1].active}, **options)


def reads(qemu, two):
    """What the disks read; their images are whole."""
    for made in two:
        qemu.check(made.active)
    return [qemu.read(made.active) for made in two]


async def test_images_go_back_to_a_snapshot_that_was_taken_while_they_were_off(qemu, two, machine, tmp_path):
    async with opened(qemu, two) as vm:
        await vm.snapshot("i1", inside=True)
        assert [(one.name, one.disks) for one in (await vm.moments()).moments] == [("i1", ("vda", "vdb"))]
    for made in two:
        write(qemu, made.active, *SINCE)
    before = listing(tmp_path)
    async with opened(qemu, two) as vm:
        plan = await vm.plan(Revert("i1"))
        with traced(vm) as sent:
            done = await vm.run(plan)
        assert sent == messages(plan)
        assert (done.chains, done.left) == ({"vda": two[0].chain, "vdb": two[1].chain}, ())
        assert {node.file for node in (await vm.graph()).nodes.values()} == {*two[0].files, *two[1].files}
        await vm.snapshot("i2", inside=True)  # both are as usable as before
    assert reads(qemu, two) == [made.content[-1] for made in two]
    assert [qemu.inside(made.active) for made in two] == [["i1", "i2"]] * 2
    assert listing(tmp_path) == before
    assert qemu.read(two[0].files[0]) == two[0].content[0]
    with machine(*blockdev("vda", two[0].active), *blockdev("vdb", two[1].active)) as running:
        running.write("vda", *SINCE)


async def test_one_disk_goes_back_and_the_other_is_left(qemu, two):
    async with opened(qemu, two) as vm:
        await vm.snapshot("i1", disks=["vda"], inside=True)
    for made in two:
        write(qemu, made.active, *SINCE)
    async with opened(qemu, two) as vm:
        with pytest.raises(NotInChain, match="not inside the active layer of vdb") as caught:
            await vm.revert("i1")
        assert "--leave vdb" in caught.value.hint
        await vm.revert("i1", leave=["vdb"])
    assert reads(qemu, two) == [two[0].content[-1], overwritten(two[1].content[-1], SINCE)]


async def test_images_go_back_to_a_checkpoint_whose_memory_a_start_loads(qemu, images, machine):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="internal")
        running.write("vda", *SINCE)
    async with offline(qemu, {"vda": made.active}) as vm:
        done = await vm.revert("c1")
    assert any("-loadvm c1" in note for note in done.notes)
    assert qemu.read(made.active) == made.content[-1]
    with machine(*blockdev("vda", made.active), "-loadvm", "c1") as running:
        running.read("vda", 0, SINCE[1], SINCE[2])


async def test_a_disk_that_was_resized_since_has_its_size_again(qemu, images):
    made = images("base")
    async with offline(qemu, {"vda": made.active}) as vm:
        await vm.snapshot("i1", inside=True)
    qemu.img("resize", "-f", "qcow2", made.active, "16M")
    write(qemu, made.active, *SINCE)
    async with offline(qemu, {"vda": made.active}) as vm:
        await vm.revert("i1")
    assert qemu.read(made.active) == made.content[-1]
    qemu.check(made.active)


async def test_a_dirty_bitmap_is_in_the_way_and_named(qemu, images):
    made = images("base")
    async with offline(qemu, {"vda": made.active}) as vm:
        await vm.snapshot("i1", inside=True)
    qemu.img("bitmap", "--add", "-f", "qcow2", made.active, "b1")
    async with offline(qemu, {"vda": made.active}) as vm:
        with pytest.raises(Unsupported, match="dirty bitmap 'b1'"):
            await vm.revert("i1")


class OtherImg:
    """A qemu-img that does something else at its second call, and the storage daemon beside it."""

    def __init__(self, qemu, folder, second):
        self.folder = folder / "bin"
        self.folder.mkdir()
        real = shlex.quote(str(qemu.directory / "qemu-img"))
        self._put("qemu-img", f'if [ -e {folder}/once ]; then rm {folder}/once; {second}; fi\n'
                  f': > {folder}/once\nexec {real} "$@"\n')  # fmt: skip
        self._put("qemu-storage-daemon", f'exec {qemu.directory}/qemu-storage-daemon "$@"\n')

    def _put(self, name, script):
        (self.folder / name).write_text("#!/bin/sh\n" + script)
        (self.folder / name).chmod(0o755)


async def test_images_go_back_together_or_not_at_all(qemu, two, tmp_path):
    other = OtherImg(qemu, tmp_path, "echo no room >&2; exit 1")
    async with opened(qemu, two) as vm:
        await vm.snapshot("i1", inside=True)
    for made in two:
        write(qemu, made.active, *SINCE)
    now = reads(qemu, two)
    images = {"vda": two[0].active, "vdb": two[1].active}
    async with qmpsnap.offline(images, daemon=other.folder / "qemu-storage-daemon") as vm:
        with pytest.raises(CommandFailed, match=r"did not revert .*: no room") as caught:
            await vm.revert("i1")
        assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
        assert {disk.files for disk in (await vm.graph()).disks.values()} == {one.chain for one in two}
    assert reads(qemu, two) == now
    assert [qemu.inside(made.active) for made in two] == [["i1"]] * 2


KILL_DAEMON = """for child in $(cat /proc/$PPID/task/*/children); do
    if grep -q storage-daemon /proc/$child/cmdline; then kill -9 $child; fi
done
exit 1"""


async def test_a_revert_whose_daemon_was_killed_between_two_images_says_that_it_does_not_know(
    qemu, two, tmp_path
):
    other = OtherImg(qemu, tmp_path, KILL_DAEMON)
    async with opened(qemu, two) as vm:
        await vm.snapshot("i1", inside=True)
    for made in two:
        write(qemu, made.active, *SINCE)
    images = {"vda": two[0].active, "vdb": two[1].active}
    with pytest.raises(LinkLost) as caught:
        async with qmpsnap.offline(images, daemon=other.folder / "qemu-storage-daemon") as vm:
            await vm.revert("i1")
    assert caught.value.changed is Changed.UNKNOWN
    async with opened(qemu, two) as vm:
        await vm.revert("i1")
    assert reads(qemu, two) == [made.content[-1] for made in two]
    assert [qemu.inside(made.active) for made in two] == [["i1"]] * 2


CLIENT = """
import asyncio, sys, qmpsnap

async def main():
    async with qmpsnap.offline(vda=sys.argv[1], vdb=sys.argv[2]) as vm:
        await vm.revert("i1")

asyncio.run(main())
"""


@pytest.mark.parametrize("back", [False, True], ids=["on", "back"])
async def test_a_revert_whose_client_was_killed_between_two_images_is_finished_or_taken_back(
    qemu, two, tmp_path, back
):
    other = OtherImg(qemu, tmp_path, "kill -9 $PPID; sleep 5; exit 1")
    async with opened(qemu, two) as vm:
        await vm.snapshot("i1", inside=True)
    for made in two:
        write(qemu, made.active, *SINCE)
    now = reads(qemu, two)
    killed = subprocess.run(
        [sys.executable, "-c", CLIENT, two[0].active, two[1].active],
        env={**os.environ, "PATH": f"{other.folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -9
    wait_for(lambda: not daemons(tmp_path))
    assert [qemu.read(made.active) for made in two] == [two[0].content[-1], now[1]]
    (kept,) = {*qemu.inside(two[0].active)} - {"i1"}
    async with opened(qemu, two) as vm:
        assert [one.name for one in (await vm.moments()).moments] == ["i1", kept]
        await vm.revert(kept if back else "i1")
    assert reads(qemu, two) == (now if back else [made.content[-1] for made in two])
    assert [qemu.inside(made.active) for made in two] == [["i1"]] * 2


async def test_an_external_snapshot_is_gone_back_to_by_overlays_to_start_from(qemu, images, machine):
    made = images("base <- s1")
    async with offline(qemu, {"vda": made.active}) as vm:
        taken = await vm.snapshot("e1")
    (overlay,) = taken.active.values()
    write(qemu, overlay, *SINCE)
    async with offline(qemu, {"vda": overlay}) as vm:
        done = await vm.revert("e1")
        assert (await vm.graph()).chains() == {"vda": (overlay, *made.chain)}
    new = done.prepared["vda"]
    qemu.check_chain(new, *made.chain)
    with machine(*blockdev("vda", new)) as running:
        running.read("vda", 0, SINCE[1], SINCE[2])
        running.write("vda", 0xA3, SINCE[1], SINCE[2])
    assert qemu.read(made.active) == made.content[-1]
    assert qemu.read(overlay) == overwritten(made.content[-1], SINCE)
    async with offline(qemu, {"vda": new}) as vm:
        assert [one.name for one in (await vm.moments()).moments] == ["e1"]


async def test_internal_snapshots_are_deleted_with_their_memory(qemu, two, machine):
    one, other = two
    with machine(*blockdev("vda", one.active), *blockdev("vdb", other.active)) as running:
        async with running.connect() as vm:
            for name in ("c1", "c2"):
                await vm.checkpoint(name, mode="internal")
    async with opened(qemu, two) as vm:
        await vm.delete("c1")
        assert [moment.name for moment in (await vm.moments()).moments] == ["c2"]
    assert reads(qemu, two) == [made.content[-1] for made in two]
    assert [qemu.inside(made.active) for made in two] == [["c2"]] * 2
    with machine(*blockdev("vda", one.active), *blockdev("vdb", other.active), "-loadvm", "c2"):
        pass


async def test_an_external_snapshot_is_deleted_and_the_disk_reads_the_same(qemu, images, machine):
    made = images("base")
    async with offline(qemu, {"vda": made.active}) as vm:
        (first,) = (await vm.snapshot("e1")).active.values()
    write(qemu, first, *SINCE)
    async with offline(qemu, {"vda": first}) as vm:
        (second,) = (await vm.snapshot("e2")).active.values()
        done = await vm.delete("e2")
        assert [moment.name for moment in (await vm.moments()).moments] == ["e1"]
    (active,) = (chain[0] for chain in done.chains.values())
    assert active in {first, second}
    assert qemu.read(active) == overwritten(made.content[-1], SINCE)
    assert qemu.read(made.active) == made.content[-1]
    with machine(*blockdev("vda", active)) as running:
        running.read("vda", *SINCE)
