"""What a revert may give up, and which moments stay known whatever happens in between (D3)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev
from integration.states import refuses, status
from qmpsnap.errors import Changed, Incomplete, InvalidTarget, StillNeeded, WouldLose
from qmpsnap.plan.intent import Revert

WRITE = (0xB1, 6 * MIB, 64 * KIB)


def listed(found):
    return [one.name for one in found.moments]


async def test_discard_keeps_a_layer_on_which_somebody_stands(qemu, images, machine, tmp_path):
    with machine(*blockdev("vda", images("base").active)) as running:
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode="in-place")
            clone = tmp_path / "clone.qcow2"
            qemu.create(clone, backing=taken.active["vda"])
            error = await refuses(running, vm, Revert("c1", discard=True), StillNeeded, "clone.qcow2")
            assert error.by == (str(clone),)
            clone.unlink()
            await vm.revert("c1", discard=True)
            assert not Path(taken.active["vda"]).exists()


async def test_discard_keeps_an_image_that_began_at_no_moment(qemu, images, machine, tmp_path):
    vda, vdb = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active)) as running:
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode="in-place")
    other = tmp_path / "other.qcow2"
    qemu.create(other)
    with machine(*blockdev("vda", taken.active["vda"]), *blockdev("vdb", str(other))) as running:
        async with running.connect() as vm:
            await refuses(running, vm, Revert("c1", discard=True), WouldLose, "not the overlay of a snapshot")
    assert other.exists()


async def test_moments_stay_across_an_overlay_of_somebody_else(images, machine, tmp_path):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c0", mode="in-place")
            (root, *_) = running.roots()["vda"]
            running.qmp(
                "blockdev-snapshot-sync",
                **{"node-name": root, "snapshot-file": f"{tmp_path}/x.qcow2", "snapshot-node-name": "x"},
            )
            running.write("vda", *WRITE)
            await vm.checkpoint("c1", mode="in-place")
            await vm.checkpoint("c2", mode="in-place")
            await vm.revert("c0")
            assert listed(await vm.moments()) == ["c0", "c1", "c2"]
            running.read("vda", 0, *WRITE[1:])
            await vm.revert("c2", discard=True)
            running.read("vda", *WRITE)


async def test_moments_stay_when_the_one_that_they_came_from_is_deleted(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
            running.write("vda", *WRITE)
            await vm.checkpoint("c2", mode="in-place")
            await vm.revert("c1")
            await vm.delete("c1")
            assert listed(await vm.moments()) == ["c2"]
            await vm.revert("c2")
            running.read("vda", *WRITE)
            await vm.delete("c2")
            assert listed(await vm.moments()) == []


@pytest.mark.parametrize("mode", ["stop", "in-place"])
async def test_delete_keeps_the_memory_that_took_the_file_of_its_own(images, machine, tmp_path, mode):
    file, moved = tmp_path / "mem", tmp_path / "moved"
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("a", mode=mode, memory=file)
            file.rename(moved)
            await vm.checkpoint("b", mode=mode, memory=file)
            await vm.delete("a")
            assert file.exists()
            assert listed(await vm.moments()) == ["b"]
            await vm.delete("b")
            assert not file.exists()
            assert moved.exists()


async def test_checkpoint_writes_to_no_file_that_took_the_name_of_its_own(images, machine, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            perform = vm._target.perform

            async def between(step):
                if step.way == "pass-file":
                    os.unlink(step.detail["file"])  # noqa: PTH108
                    os.link(victim, step.detail["file"])
                return await perform(step)

            vm._target.perform = between
            with pytest.raises(InvalidTarget, match="another file has taken the name"):
                await vm.checkpoint("c1", mode="stop")
            vm._target.perform = perform
            assert listed(await vm.moments()) == []
            for path in tmp_path.glob("*.partial"):
                path.unlink()
    assert victim.read_bytes() == b"precious"


BETWEEN = {
    "before the guest is paused": ("stop", "snapshot", "elsewhere"),
    "while it is paused": ("qom-set", "snapshot", "."),
    "while it is paused, by an image": ("qom-set", "image", "."),
    "once the disk has moved": ("keep-branch", "image", "."),
}


@pytest.mark.parametrize(("command", "kind", "place"), BETWEEN.values(), ids=BETWEEN)
async def test_discard_keeps_a_layer_that_another_client_covers_meanwhile(
    qemu, images, machine, tmp_path, command, kind, place
):
    (tmp_path / "elsewhere").mkdir()
    other = str(tmp_path / place / "other.qcow2")
    base, way = images("base").active, WAYS["drive" if command == "qom-set" else "blockdev"]
    with machine(*way("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            layer = (await vm.snapshot("c1")).active["vda"]
            running.write("vda", *WRITE)
            (root, *_) = running.roots()["vda"]
            perform = vm._target.perform

            async def covered(step):
                if step.command == command and not Path(other).exists():
                    if kind == "image":
                        qemu.create(other, backing=layer)
                    else:
                        names = {"node-name": root, "snapshot-node-name": "x"}
                        running.qmp("blockdev-snapshot-sync", names, **{"snapshot-file": other})
                return await perform(step)

            vm._target.perform = covered
            with pytest.raises((Incomplete, StillNeeded)) as caught:
                await vm.revert("c1", discard=True)
            vm._target.perform = perform
            error, chain = caught.value, (await vm.graph()).chains()["vda"]
            assert status(running) == "running"
            if command == "stop":
                assert (type(error), error.changed, error.by) == (StillNeeded, Changed.NO, ("x",))
                assert (chain, error.left) == ((other, layer, base), ())
                assert await vm.jobs.interrupted() == ()
                back = await vm.revert("c1")
                assert back.chains["vda"][1:] == (base,)
            else:
                assert (type(error), error.changed) == (Incomplete, Changed.YES)
                assert f"{layer} is still needed" in error.message
                assert other in error.message
                assert chain[1:] == (base,)
                (record,) = await vm.jobs.interrupted()
                await vm.jobs.wait(record.id)
                assert await vm.jobs.interrupted() == ()
    assert qemu.read(other) == overwritten(content(1), WRITE)
    assert qemu.read(chain[0]) == (qemu.read(other) if command == "stop" else content(1))
