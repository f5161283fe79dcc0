"""VM state saved to a file, and restored in a new QEMU on the same layers (D4)."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, listing, messages, traced, wait_for
from integration.states import fill, note, opened, refuses, settings, status
from qmpsnap.errors import (
    Changed,
    InvalidTarget,
    LinkLost,
    MachineDiffers,
    MigrationFailed,
    TargetExists,
    Unsupported,
)
from qmpsnap.plan.intent import Restore, Save

WRITE = (0xA1, 6 * MIB, 64 * KIB)
LATER = (0xA2, 6 * MIB, 32 * KIB)
INCOMING = ("-incoming", "defer")


@pytest.fixture
def two(images):
    return images("base <- s1", folder="a"), images("base", folder="b", base_format="raw")


def disks(two, way=blockdev):
    vda, vdb = two
    return (*way("vda", vda.active), *blockdev("vdb", vdb.active, "raw"))


async def saved(machine, two, file, **options):
    with machine(*disks(two), **options) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            return await vm.save(file)


@pytest.mark.parametrize(("way", "runs"), [("drive", True), ("blockdev", False), ("throttle", True)])
async def test_save_and_restore_three_times(qemu, two, machine, way, runs, tmp_path):
    vda, vdb = two
    for number in range(3):
        file = tmp_path / f"saved{number}"
        with machine(*disks(two, WAYS[way]), extra=INCOMING if number else ()) as running:
            if number:
                async with running.connect() as vm:
                    plan = await vm.plan(Restore(f"{tmp_path}/saved{number - 1}"))
                    with traced(vm) as sent:
                        back = await vm.run(plan)
                    assert sent == messages(plan)
                    assert (back.op, back.chains) == ("restore", {"vda": vda.chain, "vdb": vdb.chain})
                assert status(running) == ("running" if runs else "paused")
            running.qmp("cont")
            running.write("vda", number + 1, *WRITE[1:])
            running.write("vdb", number + 1, *WRITE[1:])
            if not runs:
                running.qmp("stop")
            before = settings(running)
            async with running.connect() as vm:
                plan = await vm.plan(Save(str(file)))
                with traced(vm) as sent:
                    done = await vm.run(plan)
                assert sent == messages(plan)
                assert (done.op, done.chains) == ("save", {"vda": vda.chain, "vdb": vdb.chain})
                assert (status(running), settings(running), opened(running)) == ("postmigrate", before, [])
                assert done.bytes == note(file).stream_bytes > 100 * KIB
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                await refuses(running, vm, Save(f"{tmp_path}/again"), Unsupported, "postmigrate")
                await refuses(running, vm, Save(str(file)), Unsupported, "postmigrate")
        assert qemu.read(vda.active) == overwritten(content(2), (number + 1, *WRITE[1:]))
    assert qemu.read(vdb.active, "raw") == overwritten(content(1), (3, *WRITE[1:]))
    assert qemu.read(vda.files[0]) == content(1)
    qemu.check_chain(*vda.chain)


async def test_save_of_a_guest_that_has_panicked_is_restored_as_that(two, machine, tmp_path):
    panics = ("-device", "pvpanic", "-action", "panic=pause")
    with machine(*disks(two), extra=panics) as running:
        running.qmp("cont")
        running.qmp.hmp("o /b 0x505 1")  # the port of pvpanic
        wait_for(lambda: status(running) == "guest-panicked")
        async with running.connect() as vm:
            await vm.save(tmp_path / "saved")
    with machine(*disks(two), extra=(*panics, *INCOMING)) as running:
        async with running.connect() as vm:
            await vm.restore(tmp_path / "saved")
        assert status(running) == "guest-panicked"


async def test_a_saved_guest_that_goes_on_is_not_restored(two, machine, tmp_path):
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.save(tmp_path / "saved")
            running.qmp("cont")
            running.write("vda", *LATER)
            await vm.save(tmp_path / "again")
            await refuses(running, vm, Save(f"{tmp_path}/again"), Unsupported, "postmigrate")
    with machine(*disks(two), extra=INCOMING) as running:
        async with running.connect() as vm:
            error = await refuses(
                running, vm, Restore(f"{tmp_path}/saved"), MachineDiffers, "written to since"
            )
            assert any("s1.qcow2" in one for one in error.differences)
            await vm.restore(tmp_path / "again")
            assert status(running) == "running"


@pytest.mark.parametrize("how", ["written", "replaced by its copy", "longer", "base written"])
async def test_restore_refuses_a_layer_that_has_changed(qemu, two, machine, how, tmp_path):
    vda, vdb = two
    file = tmp_path / "saved"
    await saved(machine, two, file)
    match how:
        case "written":
            qemu.io(vda.active, "write -q -P 7 0 512")
        case "replaced by its copy":
            shutil.copy2(vdb.active, tmp_path / "copy")
            os.replace(tmp_path / "copy", vdb.active)  # noqa: PTH105
        case "longer":
            with Path(vda.active).open("ab") as layer:
                layer.write(bytes(512))
        case _:
            qemu.io(vda.files[0], "write -q -P 7 0 512")
    with machine(*disks(two), extra=INCOMING) as running:
        async with running.connect() as vm:
            error = await refuses(running, vm, Restore(str(file)), MachineDiffers, "no longer those of")
            assert len(error.differences) == 1


async def test_restore_refuses_another_machine(images, two, machine, tmp_path):
    vda, _ = two
    file = tmp_path / "saved"
    await saved(machine, two, file)
    other = images("base", folder="c")
    cases = {
        "memory": (*disks(two), *INCOMING, "-m", "96"),
        "device": (*disks(two), *INCOMING, "-device", "virtio-rng-pci,id=rng"),
        "disk": (*blockdev("vda", vda.active), *INCOMING),
        "reads": (*blockdev("vda", vda.active), *blockdev("vdb", other.active), *INCOMING),
    }
    for what, arguments in cases.items():
        with machine(*arguments) as running:
            async with running.connect() as vm:
                error = await refuses(running, vm, Restore(str(file)), MachineDiffers, "another|not those")
                assert any(what in one for one in error.differences), error.differences
    with machine(*disks(two)) as running:
        async with running.connect() as vm:
            await refuses(running, vm, Restore(str(file)), Unsupported, "not waiting")
    with machine(*disks(two), extra=INCOMING) as running:
        async with running.connect() as vm:
            await vm.restore(file)


@pytest.mark.parametrize("how", ["missing", "cut", "foreign", "empty", "a directory", "of a checkpoint"])
async def test_restore_refuses_a_file_that_is_not_whole_or_none_of_ours(two, machine, how, tmp_path):
    file = tmp_path / "saved"
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", memory=tmp_path / "of c1")
            await vm.save(file)
    kept = file.read_bytes()
    bad = tmp_path / "bad"
    match how:
        case "missing":
            pass
        case "cut":
            bad.write_bytes(kept[: len(kept) // 2])
        case "foreign":
            bad.write_bytes(b"somebody else's" * 5000)
        case "empty":
            bad.touch()
        case "a directory":
            bad.mkdir()
        case _:
            bad.write_bytes((tmp_path / "of c1").read_bytes())
    with machine(*blockdev("vda", taken.active["vda"]), *blockdev("vdb", taken.active["vdb"]),
                 extra=INCOMING) as running:  # fmt: skip
        async with running.connect() as vm:
            text = "does not exist" if how == "missing" else "not a complete memory|belongs to checkpoint"
            error = await refuses(running, vm, Restore(str(bad)), InvalidTarget, text)
            assert error.file == str(bad)
            await vm.restore(file)
            assert status(running) == "running"


async def test_restore_of_a_stream_that_is_broken_inside_ends_that_qemu_alone(qemu, two, machine, tmp_path):
    vda, _ = two
    file = tmp_path / "saved"
    await saved(machine, two, file)
    kept = file.read_bytes()
    middle = note(file).stream_bytes // 2
    file.write_bytes(kept[:middle] + b"\xff" * 4096 + kept[middle + 4096 :])
    with machine(*disks(two), extra=INCOMING) as running:
        async with running.connect() as vm:
            with pytest.raises(LinkLost):
                await vm.restore(file)
        running.process.wait(60)
        running.kill()
    assert qemu.read(vda.active) == content(2)
    file.write_bytes(kept)
    with machine(*disks(two), extra=INCOMING) as running:
        async with running.connect() as vm:
            await vm.restore(file)
            assert status(running) == "running"


async def test_save_refuses_a_file_that_exists_or_cannot_be(two, machine, tmp_path, small):
    full = small("4m", "full")
    (tmp_path / "there").write_text("theirs")
    cases = {
        tmp_path / "there": TargetExists,
        full / "memory": InvalidTarget,
        tmp_path / "nowhere" / "memory": InvalidTarget,
    }
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for file, kind in cases.items():
                await refuses(running, vm, Save(str(file)), kind, "exist|bytes free")


async def test_save_without_room_leaves_nothing_and_the_guest_runs_on(two, machine, small):
    place = small("100m", "place")
    with machine(*disks(two)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            plan = await vm.plan(Save(f"{place}/memory"))
            filler = fill(place, 64 * KIB)
            before = listing(running.folder), settings(running)
            with pytest.raises(MigrationFailed) as caught:
                await vm.run(plan)
            assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
            assert (listing(running.folder), settings(running)) == before
            assert (status(running), opened(running)) == ("running", [])
            running.write("vda", *WRITE)
            filler.unlink()
            await vm.save(place / "memory")
            assert status(running) == "postmigrate"
