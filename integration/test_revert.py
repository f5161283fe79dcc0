"""Reverts in the same QEMU (G1 live, D3): bytes, roots, nodes, branches, and ten times in a row."""

from __future__ import annotations

from pathlib import Path

import pytest

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, drive, listing, messages, traced, wait_for
from integration.states import opened, settings, status, take
from qmpsnap.plan.intent import Revert

FREES = """qmpsnap qmp blockdev-del '{"node-name": "vda-node"}'"""

WRITE = (0xA1, 6 * MIB, 64 * KIB)
LATER = (0xA2, 6 * MIB, 32 * KIB)
AFTER = (0xA3, 7 * MIB, 32 * KIB)


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request):
    return request.param


@pytest.mark.parametrize(("way", "runs"), [("drive", True), ("blockdev", False), ("throttle", True)], ids=str)
async def test_revert_gives_the_disks_back_and_keeps_what_was_written_since(
    qemu, images, machine, way, kind, runs
):
    way = WAYS[way]
    vda, vdb = images("base <- s1", folder="a"), images("base", folder="b", base_format="raw")
    with machine(*way("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        if not runs:
            running.qmp("stop")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
            running.write("vda", *LATER)
            running.write("vdb", *LATER)
            before = settings(running)
            plan = await vm.plan(Revert("c1"))
            told = []
            with traced(vm) as sent:
                back = await vm.run(plan, qmpsnap.Hooks(on_pivot=told.append))
            assert sent == messages(plan)
            if kind == "disks" and not runs:  # how QEMU calls a guest that was paused, then reset
                wait_for(lambda: status(running) == "prelaunch")
            else:
                assert status(running) == ("running" if runs else "paused")
            assert (settings(running), opened(running)) == (before, [])
            assert (back.op, back.chains) == ("revert", plan.chains_after)
            assert back.chains == (await vm.graph()).chains()
            new = {disk: files[0] for disk, files in back.chains.items()}
            assert told == [new]
            assert dict(back.active) == new
            assert not set(new.values()) & set(taken.active.values())
            assert {disk: files[1:] for disk, files in back.chains.items()} == {
                "vda": vda.chain,
                "vdb": vdb.chain,
            }
            assert (back.standstill_s > 0) is runs
            assert back.invalid == ()
            assert any("reset" in one for one in back.notes) is (kind == "disks")
            for disk, file in taken.active.items():
                assert f"what was written to {disk} until now stays in {file}" in back.notes
            (moment,) = (await vm.moments()).moments
            assert (moment.name, moment.current) == ("c1", True)
            assert await vm.jobs.interrupted() == ()
            running.read("vda", WRITE[0], *WRITE[1:])
            running.write("vda", *AFTER)
    resets = [one for one in running.qmp.events if one["event"] == "RESET"]
    assert bool(resets) is (kind == "disks")
    at = overwritten(content(2), WRITE)
    assert qemu.read(vda.active) == at
    assert qemu.read(taken.active["vda"]) == overwritten(at, LATER)
    assert qemu.read(taken.active["vdb"]) == overwritten(content(1), LATER)
    assert qemu.read(new["vda"]) == overwritten(at, AFTER)
    assert qemu.read(new["vdb"]) == content(1)
    for chain in (*back.chains.values(), *taken.chains.values()):
        qemu.check_chain(*chain)


async def test_revert_with_discard_removes_what_was_written_since(qemu, images, machine, kind):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
            running.write("vda", *LATER)
            back = await vm.revert("c1", discard=True)
            assert not Path(taken.active["vda"]).exists()
            again = await vm.revert("c1", discard=True)
            assert not Path(back.active["vda"]).exists()
    assert qemu.read(again.active["vda"]) == content(1)
    assert len([name for name in listing(running.folder) if name.endswith(".qcow2")]) == (
        2 if kind == "disks" else 3
    )


@pytest.mark.parametrize(
    ("way", "kind"), [("drive", "in-place"), ("blockdev", "disks"), ("throttle", "in-place")]
)
async def test_revert_goes_back_ten_times_and_leaves_no_node(images, machine, way, kind):
    made, way = images("base <- s1"), WAYS[way]
    with machine(*way("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            nodes = set()
            for number in range(10):
                running.write("vda", number + 1, 6 * MIB, 32 * KIB)
                back = await vm.revert("c1")
                assert qmpsnap.draw(back.chains["vda"][1:]) == "[base] <- [s1*]"
                running.read("vda", 0, 6 * MIB, 32 * KIB)
                assert (status(running), back.left) == ("running", ())
                nodes.add(len((await vm.graph()).nodes))
            assert len(nodes) == 1
            (moment,) = (await vm.moments()).moments
            assert len(moment.record.branches) == 10


@pytest.mark.parametrize(
    ("way", "kind"), [("drive", "disks"), ("blockdev", "in-place"), ("throttle", "disks")]
)
async def test_revert_goes_to_a_branch_that_was_left_aside_and_back(qemu, images, machine, way, kind):
    made, way = images("base"), WAYS[way]
    with machine(*way("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            running.write("vda", *WRITE)
            await take(vm, "c2", kind)
            running.write("vda", *LATER)
            pictures = []
            for name in ("c1", "c2", "c1", "c2"):
                back = await vm.revert(name)
                names = [Path(file).name.rpartition("-")[0] for file in back.chains["vda"]]
                pictures.append((name, len(back.chains["vda"]), names[0]))
                running.read("vda", WRITE[0] if name == "c2" else 0, *WRITE[1:])
                assert (status(running), opened(running)) == ("running", [])
                found = await vm.moments()
                assert [one.name for one in found.moments] == ["c1", "c2"]
                assert found.current == {"vda": name}
    assert pictures == [
        ("c1", 2, "base.c1"),
        ("c2", 3, "base.c2"),
        ("c1", 2, "base.c1"),
        ("c2", 3, "base.c2"),
    ]
    assert qemu.read(back.active["vda"]) == overwritten(content(1), WRITE)
    qemu.check_chain(*back.chains["vda"])


THREAD = ("-object", "iothread,id=io")
THREADED = {
    "virtio-blk": lambda node: (*THREAD, "-device", f"virtio-blk-pci,drive={node},id=vda,iothread=io"),
    "virtio-scsi": lambda node: (
        *THREAD, "-device", "virtio-scsi-pci,id=scsi,iothread=io",
        "-device", f"scsi-hd,bus=scsi.0,drive={node},id=vda",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("device", "form", "kind"), [("virtio-scsi", "qcow2", "disks"), ("virtio-scsi", "raw", "in-place"),
                                 ("virtio-blk", "qcow2", "in-place")]
)  # fmt: skip
async def test_revert_of_a_disk_with_a_thread_goes_to_a_branch_that_was_left_aside(
    qemu, images, machine, device, form, kind
):
    made = images("base", base_format=form)
    (_, node, *_) = blockdev("vda", made.active, form)
    path = "/machine/peripheral/vda" + ("/virtio-backend" if device == "virtio-blk" else "")
    with machine("-blockdev", node, *THREADED[device]("vda-node")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            running.write(path, *WRITE)
            await take(vm, "c2", kind)
            running.write(path, *LATER)
            for name in ("c1", "c2", "c1", "c2"):
                back = await vm.revert(name)
                running.read(path, WRITE[0] if name == "c2" else 0, *WRITE[1:])
                assert (status(running), opened(running)) == ("running", [])
            alone = await vm.stream("vda")
            running.read(path, *WRITE)
    assert alone.chains == {"vda": (back.active["vda"],)}
    assert qemu.read(back.active["vda"]) == overwritten(content(1), WRITE)


async def test_revert_tells_of_a_node_of_the_users_that_has_no_use_any_more(images, machine, way):
    with machine(*way("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
            await vm.checkpoint("c2", mode="in-place")
            assert (await vm.revert("c1")).left == ()
            left = (await vm.revert("c2")).left  # which opens its base anew
            assert left == ((FREES,) if way is blockdev else ())
            if left:
                running.qmp("blockdev-del", {"node-name": "vda-node"})
            assert (await vm.revert("c1")).left == ()


async def test_revert_leaves_disks_that_it_is_told_to_leave(qemu, images, machine, kind):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", one.active), *drive("vdb", two.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
            for disk in ("vda", "vdb"):
                running.write(disk, *LATER)
            back = await vm.revert("c1", leave=["vdb"])
            assert set(back.chains) == {"vda"}
            assert (await vm.graph()).chains()["vdb"] == taken.chains["vdb"]
            running.read("vda", 0, *LATER[1:])
            running.read("vdb", LATER[0], *LATER[1:])


async def test_revert_with_discard_keeps_later_moments_within_reach(qemu, images, machine, kind):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            running.write("vda", *WRITE)
            await take(vm, "c2", kind)
            running.write("vda", *LATER)
            await vm.revert("c1", discard=True)
            assert [one.name for one in (await vm.moments()).moments] == ["c1", "c2"]
            back = await vm.revert("c2", discard=True)
            running.read("vda", WRITE[0], *WRITE[1:])
            assert qmpsnap.draw(back.chains["vda"][1:]) == "[base] <- [base.c1*]"
            await vm.revert("c1")
            await vm.revert("c2")
    assert qemu.read(back.active["vda"]) == overwritten(content(1), WRITE)
