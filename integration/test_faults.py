"""What goes wrong on the way: each fault with its error, its exit code, and what may stay."""

from __future__ import annotations

import asyncio
import json
import subprocess

import anyio
import pytest

from integration.known_images import KIB, MIB, SIZE, content, overwritten
from integration.machines import blockdev, listing, traced
from qmpsnap.errors import (
    Busy,
    Changed,
    CommandFailed,
    GraphMismatch,
    InvalidTarget,
    JobFailed,
    JobPaused,
)
from qmpsnap.plan.intent import Commit, Snapshot

CHAIN = "base <- s1 <- s2 <- s3"


# -- targets ---------------------------------------------------------------------------------------


async def test_snapshot_onto_a_full_file_system_is_refused(images, machine, small):
    made, full = images("base"), small("64k")
    (full / "filler").write_bytes(bytes(64 * KIB))
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(InvalidTarget, match="no space") as caught:
                await vm.snapshot("sn", files={"vda": full / "o.qcow2"})
            assert (sent, caught.value.changed, caught.value.exit_code) == ([], Changed.NO, 3)
    assert listing(full) == ["filler"]


async def test_mirror_onto_a_full_file_system_is_refused(images, machine, small):
    made, full = images("base"), small("64k")
    (full / "filler").write_bytes(bytes(64 * KIB))
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(InvalidTarget, match="no space") as caught:
                await vm.mirror("vda", full / "t.qcow2", ending="pivot")
            assert (sent, caught.value.changed, caught.value.exit_code) == ([], Changed.NO, 3)
    assert listing(full) == ["filler"]


async def test_snapshot_of_three_disks_leaves_nothing_when_the_third_cannot_be_made(
    images, machine, tmp_path, small
):
    """The room is there when it is planned, and gone when the third overlay is made."""
    made = [images("base", folder=name) for name in ("a", "b", "c")]
    full = small("1m")
    with machine(
        *sum((blockdev(f"vd{n}", one.active) for n, one in zip("abc", made, strict=True)), ())
    ) as running:
        before = listing(tmp_path), running.roots()
        async with running.connect() as vm:
            plan = await vm.plan(Snapshot("sn", (), {"vdc": f"{full}/o.qcow2"}))
            (full / "filler").write_bytes(bytes(MIB - 8 * KIB))
            with traced(vm) as sent, pytest.raises(InvalidTarget, match="no space left") as caught:
                await vm.run(plan)
            assert (sent, caught.value.changed, caught.value.left) == ([], Changed.NO, ())
            (full / "filler").unlink()
        assert (listing(tmp_path), running.roots()) == before


async def test_snapshot_of_three_disks_leaves_nothing_when_qemu_refuses_the_third(
    qemu, images, machine, tmp_path
):
    """A file that somebody else holds is found by QEMU alone."""
    made = [images("base", folder=name) for name in ("a", "b", "c")]
    mine = qemu.create(tmp_path / "mine.qcow2", backing=made[2].active)
    disks = sum((blockdev(f"vd{n}", one.active) for n, one in zip("abc", made, strict=True)), ())
    overlays = {
        f"vd{n}": qemu.create(tmp_path / f"{n}.qcow2", backing=one.active)
        for n, one in zip("ab", made[:2], strict=True)
    }
    with machine(*disks) as running, machine("-blockdev", json.dumps({
        "driver": "file", "node-name": "held", "filename": mine, "locking": "on",
    }), "-device", "virtio-blk-pci,drive=held,share-rw=off") :  # fmt: skip
        before = listing(tmp_path), running.roots()
        async with running.connect() as vm:
            with pytest.raises(CommandFailed, match="lock") as caught:
                await vm.snapshot("sn", files={**overlays, "vdc": mine}, use_existing=True)
            assert (caught.value.changed, caught.value.exit_code, caught.value.left) == (Changed.NO, 4, ())
            assert await vm.jobs.interrupted() == ()
        assert (listing(tmp_path), running.roots()) == before


async def test_snapshot_removes_its_own_files_when_qemu_refuses_the_transaction(images, machine, tmp_path):
    made = [images("base", folder=name) for name in ("a", "b", "c")]
    with machine(
        *sum((blockdev(f"vd{n}", one.active) for n, one in zip("abc", made, strict=True)), ())
    ) as running:
        before = listing(tmp_path), running.roots()
        async with running.connect() as vm:
            plan = await vm.plan(Snapshot("sn"))
            # Somebody takes the third node's name meanwhile.
            name = plan.stages[1].steps[0].effect.overlays[2].node
            running.qmp("blockdev-add", {"driver": "null-co", "node-name": name})
            with pytest.raises(CommandFailed) as caught:
                await vm.run(plan)
            assert (caught.value.changed, caught.value.exit_code, caught.value.left) == (Changed.NO, 4, ())
            running.qmp("blockdev-del", {"node-name": name})
            assert (listing(tmp_path), running.roots()) == before
            assert (await vm.snapshot("sn")).chains["vdc"][1] == made[2].active


async def test_run_refuses_a_plan_that_the_graph_has_left(images, machine, tmp_path):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            plan = await vm.plan(Commit("vda"))
            await vm.snapshot("sn")
            with traced(vm) as sent, pytest.raises(GraphMismatch) as caught:
                await vm.run(plan)
            assert (sent, caught.value.changed, caught.value.exit_code) == ([], Changed.NO, 6)


# -- no room for a job's target --------------------------------------------------------------------


async def test_mirror_reports_a_full_target_and_leaves_nothing(qemu, images, machine, tmp_path, small):
    made, full = images(), small("1m")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with pytest.raises(JobFailed) as caught:
                await vm.mirror("vda", full / "t.qcow2", ending="pivot")
            assert (caught.value.error, caught.value.changed) == ("No space left on device", Changed.NO)
            assert (caught.value.exit_code, caught.value.left, caught.value.invalid) == (4, (), ())
            assert (await vm.graph()).chains() == {"vda": made.chain}
    assert listing(full) == []
    assert qemu.read(made.active) == content(3)


async def test_commit_reports_a_full_base_and_names_what_is_invalid(
    qemu, images, machine, tmp_path, small, leftovers
):
    full = small("1536k")
    base = qemu.create(full / "base.qcow2")
    qemu.io(base, "write -q -P 1 0 64k")
    top = qemu.create(tmp_path / "top.qcow2", backing=base)
    qemu.io(top, "write -q -P 2 0 3M")
    with machine(*blockdev("vda", top)) as running:
        async with running.connect() as vm:
            with pytest.raises(JobFailed) as caught:
                await vm.commit("vda")
            assert (caught.value.error, caught.value.changed) == ("No space left on device", Changed.YES)
            assert caught.value.invalid == (base,)
            (record,) = await vm.jobs.interrupted()
            assert record.invalid == (base,)
            leftovers.allow(f"{record.directory}/{record.file_name}")
            assert (await vm.graph()).chains() == {"vda": (top, base)}
            running.read("vda", 2, 0, MIB)
            subprocess.run(["mount", "-o", "remount,size=16m", full], check=True)
            await vm.commit("vda")
            assert await vm.jobs.interrupted() == ()
    assert qemu.read(base) == overwritten(bytes(SIZE), (2, 0, 3 * MIB))


async def test_mirror_that_stops_for_room_says_how_to_go_on(qemu, images, machine, tmp_path, small):
    made, full = images(), small("1m")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with pytest.raises(JobPaused) as caught:
                await vm.mirror("vda", full / "t.qcow2", ending="pivot", on_error="stop")
            paused = caught.value
            assert (paused.reason, paused.exit_code) == ("no space", 7)
            assert paused.job_id in paused.hint
            subprocess.run(["mount", "-o", "remount,size=32m", full], check=True)
            await vm.jobs.resume(paused.job_id)
            done = await vm.jobs.wait(paused.job_id)
            assert done.chains == {"vda": (f"{full}/t.qcow2",)}
    assert qemu.read(full / "t.qcow2") == content(3)


async def test_mirror_that_stops_for_room_can_be_given_up(images, machine, tmp_path, small):
    made, full = images(), small("1m")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with pytest.raises(JobPaused) as caught:
                await vm.mirror("vda", full / "t.qcow2", ending="pivot", on_error="stop")
            with pytest.raises(Busy):
                await vm.snapshot("sn")
            done = await vm.jobs.cancel(caught.value.job_id)
            assert (done.changed, done.chains) == (False, {"vda": made.chain})
            await vm.snapshot("sn")
    assert listing(full) == []


async def test_mirror_that_ignores_errors_goes_on_when_there_is_room(qemu, images, machine, tmp_path, small):
    made, full = images(), small("1m")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            errors, many = [], asyncio.Event()

            def note(event):
                if event.name == "BLOCK_JOB_ERROR":
                    errors.append(event)
                if len(errors) > 100:
                    many.set()

            with vm.events(note):
                task = asyncio.create_task(
                    vm.mirror("vda", full / "t.qcow2", ending="pivot", on_error="ignore")
                )
                failed = asyncio.create_task(many.wait())
                await asyncio.wait({task, failed}, return_when=asyncio.FIRST_COMPLETED)
                assert (failed.done(), task.done()) == (True, False)
                subprocess.run(["mount", "-o", "remount,size=32m", full], check=True)
                with anyio.fail_after(60):
                    done = await task
            assert done.chains == {"vda": (f"{full}/t.qcow2",)}
    assert qemu.read(full / "t.qcow2") == content(3)


# -- the guest's disk is full ----------------------------------------------------------------------


async def test_snapshot_elsewhere_rescues_a_guest_whose_disk_is_full(qemu, machine, tmp_path, small):
    full = small("512k")
    base = qemu.create(full / "base.qcow2")
    with machine(*blockdev("vda", base)) as running:
        running.qmp("cont")
        printed = running.qemu_io("vda", "write -P 1 0 1M")
        assert "No space left" in printed
        async with running.connect() as vm:
            done = await vm.snapshot("rescue", files={"vda": tmp_path / "o.qcow2"})
            running.write("vda", 1, 0, MIB)
            assert done.chains["vda"][1] == base
    assert qemu.read(tmp_path / "o.qcow2") == overwritten(bytes(SIZE), (1, 0, MIB))
