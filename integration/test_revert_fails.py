"""Reverts in place that fail: before the memory was touched all is as it was, after it the guest stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, listing, throttled
from integration.states import opened, refuses, settings, status, take
from qmpsnap.errors import Changed, CommandFailed, InvalidTarget, JobFailed
from qmpsnap.plan.intent import Revert

WRITE = (0xA1, 6 * MIB, 64 * KIB)
LATER = (0xA2, 6 * MIB, 32 * KIB)


def chains_of(running):
    """Files of each disk's chain, as QEMU tells them."""
    found = {}
    for row in running.qmp("query-block"):
        image, files = row["inserted"]["image"], []
        while image is not None:
            files.append(image["filename"])
            image = image.get("backing-image")
        found[row["qdev"]] = files
    return found


def elsewhere(step):
    """The step's arguments, but for a device or a filter that is not there."""
    if step.command == "qom-set":
        return {**step.arguments, "path": "/nowhere"}
    (options,) = step.arguments["options"]
    return {"options": [{**options, "node-name": "nowhere"}]}


@pytest.mark.parametrize(
    ("way", "kind"), [("drive", "in-place"), ("blockdev", "disks"), ("throttle", "in-place")]
)
async def test_revert_puts_the_first_disk_back_when_the_second_cannot_move(qemu, images, machine, way, kind):
    one, two = images("base <- s1", folder="a"), images("base", folder="b")
    way = WAYS[way]
    with machine(*way("vda", one.active), *blockdev("vdb", two.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
            for disk in ("vda", "vdb"):
                running.write(disk, *WRITE)
            before = listing(running.folder), chains_of(running), settings(running)
            plan = await vm.plan(Revert("c1"))
            perform, moved = vm._target.perform, []

            async def second_elsewhere(step):
                if step.command in {"qom-set", "blockdev-reopen"}:
                    moved.append(step)
                    if len(moved) == 2:
                        step = replace(step, arguments=elsewhere(step))
                return await perform(step)

            vm._target.perform = second_elsewhere
            with pytest.raises(CommandFailed, match="nowhere") as caught:
                await vm.run(plan)
            vm._target.perform = perform
            assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
            assert (listing(running.folder), chains_of(running), settings(running)) == before
            assert (status(running), opened(running)) == ("running", [])
            assert await vm.jobs.interrupted() == ()
            for disk in ("vda", "vdb"):
                running.read(disk, WRITE[0], *WRITE[1:])
                running.write(disk, *LATER)
            assert (await vm.graph()).chains() == taken.chains
            again = await vm.revert("c1")
            assert {disk: files[1:] for disk, files in again.chains.items()} == {
                "vda": one.chain,
                "vdb": two.chain,
            }
    assert qemu.read(taken.active["vda"]) == overwritten(content(2), WRITE, LATER)
    assert qemu.read(taken.active["vdb"]) == overwritten(content(1), WRITE, LATER)
    for chain in (*taken.chains.values(), *again.chains.values()):
        qemu.check_chain(*chain)


async def test_revert_refused_by_a_device_that_keeps_its_root_takes_all_back(images, machine, kind):
    """A root that is not taken is told by nothing but the look at it."""
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
            running.write("vda", *WRITE)
            plan = await vm.plan(Revert("c1"))
            perform = vm._target.perform

            async def deaf(step):
                if step.command == "qom-set" and step.effect.root.file not in taken.active.values():
                    return 0.0
                return await perform(step)

            vm._target.perform = deaf
            with pytest.raises(CommandFailed, match="did not take the node"):
                await vm.run(plan)
            vm._target.perform = perform
            assert (status(running), (await vm.graph()).chains()) == ("running", taken.chains)
            running.read("vda", WRITE[0], *WRITE[1:])


@pytest.mark.parametrize("how", ["cut", "of another checkpoint"])
async def test_revert_by_a_store_without_its_tag_is_refused(qemu, images, machine, how):
    with machine(*throttled("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode="in-place")
            await vm.checkpoint("c2", mode="in-place")
            one, two = (Path(moment.vm_state_file) for moment in (await vm.moments()).moments)
            kept = one.read_bytes()
            if how == "cut":
                one.write_bytes(kept[: len(kept) // 2])
            else:
                one.write_bytes(two.read_bytes())
            running.write("vda", *WRITE)
            await refuses(running, vm, Revert("c1"), InvalidTarget, "has no VM state")
            assert (status(running), opened(running)) == ("running", [])
            running.read("vda", WRITE[0], *WRITE[1:])
            one.write_bytes(kept)
            back = await vm.revert("c1")
            assert back.chains["vda"][1:] == taken.chains["vda"][1:]


def doctor(folder, name, **fingerprint):
    """Let a record tell another machine."""
    for file in Path(folder).rglob("*.json"):
        body = json.loads(file.read_text())
        if body.get("name") == name:
            (where,) = [one for one in body.values() if isinstance(one, dict) and "fingerprint" in one]
            where["fingerprint"].update(fingerprint)
            file.write_text(json.dumps(body))


@pytest.mark.parametrize("way", ["drive", "throttle"])
async def test_revert_whose_load_fails_half_way_says_so_and_a_later_one_heals(
    qemu, images, machine, way, tmp_path
):
    made, way = images("base"), WAYS[way]
    with machine(*way("vda", made.active)) as running:
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode="in-place")
    doctor(tmp_path, "c1", memory=96 * MIB)
    with machine(*way("vda", taken.active["vda"]), extra=("-m", "96")) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            good = await vm.checkpoint("c2", mode="in-place")
            running.write("vda", *LATER)
            told = []
            with pytest.raises(JobFailed) as caught:
                await vm.revert("c1", hooks=qmpsnap.Hooks(on_pivot=told.append))
            error = caught.value
            assert (error.changed, error.exit_code) == (Changed.YES, 4)
            assert "system_reset" in error.hint
            assert status(running) != "running"
            assert opened(running) == []
            (new,) = [files[0] for files in (await vm.graph()).chains().values()]
            assert told == [{"vda": new}]
            assert new not in good.active.values()
            assert Path(new).exists()
            back = await vm.revert("c2")
            running.read("vda", WRITE[0], *WRITE[1:])
            assert back.chains["vda"][1:] == good.chains["vda"][1:]
            assert status(running) == "running"
            assert opened(running) == []
            assert await vm.jobs.interrupted() == ()
    assert qemu.read(new) == content(1)
    qemu.check_chain(*back.chains["vda"])


async def test_revert_by_a_store_with_a_hole_in_its_middle_leaves_the_guest_standing(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
            (moment,) = (await vm.moments()).moments
            store = Path(moment.vm_state_file)
            kept = store.read_bytes()
            hole = bytearray(kept)
            middle = len(kept) // 2 & ~0xFFFF
            hole[middle : middle + 256 * KIB] = b"\xff" * (256 * KIB)
            store.write_bytes(hole)
            with pytest.raises((JobFailed, CommandFailed)) as caught:
                await vm.revert("c1")
            assert caught.value.changed is Changed.YES
            assert status(running) != "running"
            store.write_bytes(kept)
            await vm.revert("c1")
            assert status(running) == "running"
