"""External checkpoints that cannot be: a typed refusal that sends nothing and leaves nothing."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

import qmpsnap
from integration.known_images import KIB, MIB
from integration.machines import blockdev, traced, wait_for
from integration.states import ENDINGS, MODES, refuses, status
from qmpsnap.errors import BadName, Busy, InvalidTarget, NotFound, TargetExists, Unsupported
from qmpsnap.plan.intent import Checkpoint, Save


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


async def test_checkpoint_refuses_a_name_that_is_taken(images, machine, mode):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.snapshot("in1", inside=True)
            await vm.checkpoint("in2", mode="internal")
            await vm.snapshot("ex1")
            await vm.checkpoint("c1", mode=mode)
            for name in ("in1", "in2", "ex1", "c1"):
                await refuses(
                    running,
                    vm,
                    Checkpoint(name, mode),
                    TargetExists,
                    f"already is an [a-z]+ snapshot {name!r}",
                )
            with traced(vm) as sent, pytest.raises(BadName, match="valid snapshot name"):
                await vm.checkpoint("a/b", mode=mode)
            assert sent == []


async def test_checkpoint_refuses_a_file_that_exists(images, machine, mode, tmp_path):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for name in (f"base.c1.{ENDINGS[mode]}", "base.c1.qcow2"):
                file = tmp_path / name
                file.write_text("theirs")
                error = await refuses(running, vm, Checkpoint("c1", mode), TargetExists, "exists already")
                assert (error.file, file.read_text()) == (str(file), "theirs")
                file.unlink()
            chosen = tmp_path / "chosen"
            chosen.symlink_to(tmp_path / "nowhere")
            await refuses(running, vm, Checkpoint("c1", mode, str(chosen)), TargetExists, "exists already")
            chosen.unlink()
            await vm.checkpoint("c1", mode=mode)


async def test_checkpoint_refuses_a_place_where_no_file_can_be_made(images, machine, mode, tmp_path, small):
    full, fixed = small("4m", "full"), small("128m", "fixed")
    subprocess.run(["mount", "-o", "remount,ro", fixed], check=True)
    cases = {
        full / "memory": f"{full} has [0-9]+ bytes free",
        fixed / "memory": f"{fixed} cannot be written: read-only file system",
        tmp_path / "nowhere" / "memory": "nowhere does not exist",
    }
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for file, text in cases.items():
                error = await refuses(running, vm, Checkpoint("c1", mode, str(file)), InvalidTarget, text)
                assert error.file == str(file)


async def test_checkpoint_refuses_while_a_job_runs(qemu, images, machine, mode, tmp_path):
    copy = qemu.create(tmp_path / "copy.qcow2")
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("drive-mirror", {"job-id": "theirs", "device": "vda-node", "target": copy,
                                     "format": "qcow2", "sync": "full", "mode": "existing"})  # fmt: skip
        running.qmp.wait_event("BLOCK_JOB_READY")
        async with running.connect() as vm:
            error = await refuses(running, vm, Checkpoint("c1", mode), Busy, "'theirs'")
            assert error.job_id == "theirs"
            await refuses(running, vm, Save(f"{tmp_path}/memory"), Busy, "'theirs'")
        running.qmp("block-job-cancel", device="theirs")
        running.qmp.wait_event("BLOCK_JOB_COMPLETED")


async def test_checkpoint_refuses_while_somebody_migrates(images, machine, mode, tmp_path):
    with (
        socket.socket(socket.AF_UNIX) as never_reads,
        machine(*blockdev("vda", images("base").active), extra=("-m", "256")) as running,
    ):
        never_reads.bind(f"{tmp_path}/theirs")
        never_reads.listen()
        running.qmp("cont")
        running.qmp("migrate", uri=f"unix:{tmp_path}/theirs")
        wait_for(lambda: running.qmp("query-migrate").get("status") == "active")
        async with running.connect() as vm:
            await refuses(running, vm, Checkpoint("c1", mode), Busy, "migration is running")
            await refuses(running, vm, Save(f"{tmp_path}/memory"), Busy, "migration is running")
        running.qmp("migrate_cancel")
        wait_for(lambda: running.qmp("query-migrate")["status"] == "cancelled")


async def test_checkpoint_over_a_monitor_by_tcp_is_in_place_alone(images, machine, tmp_path):
    made = images("base")
    tcp = ("-chardev", "socket,id=tcp,host=127.0.0.1,port=0,server=on,wait=off", "-qmp", "chardev:tcp")
    with machine(*blockdev("vda", made.active), extra=tcp) as running:
        running.qmp("cont")
        (name,) = [one["filename"] for one in running.qmp("query-chardev") if one["label"] == "tcp"]
        address = "tcp:" + name.split("tcp:")[1].split(",")[0]
        async with qmpsnap.connect(address) as vm:
            await refuses(running, vm, Checkpoint("c1", "stop"), Unsupported, "no unix socket")
            await refuses(running, vm, Checkpoint("c1", "in-place"), Unsupported, "not visible")
        async with qmpsnap.connect(address, shared_fs=True) as vm:
            for mode in ("stop", "background"):
                await refuses(running, vm, Checkpoint("c1", mode), Unsupported, "no unix socket")
            await refuses(running, vm, Save(f"{tmp_path}/memory"), Unsupported, "no unix socket")
            taken = await vm.checkpoint("c1", mode="in-place")
            assert len(taken.chains["vda"]) == 2


async def test_checkpoint_refuses_a_machine_that_waits_for_its_state(images, machine, mode, tmp_path):
    with machine(*blockdev("vda", images("base").active), "-incoming", "defer") as running:
        async with running.connect() as vm:
            await refuses(running, vm, Checkpoint("c1", mode), Unsupported, "inmigrate")
            await refuses(running, vm, Save(f"{tmp_path}/memory"), Unsupported, "inmigrate")


async def test_checkpoint_of_a_machine_whose_state_was_written_is_in_place_alone(
    images, machine, mode, tmp_path
):
    with machine(*blockdev("vda", images("base").active)) as running:
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="stop")
            assert status(running) == "postmigrate"
            if mode == "in-place":
                taken = await vm.checkpoint("c2", mode="in-place")
                assert (len(taken.chains["vda"]), status(running)) == (3, "postmigrate")
                return
            error = await refuses(running, vm, Checkpoint("c2", mode), Unsupported, "postmigrate")
            assert "cont" in error.hint
            await refuses(running, vm, Save(f"{tmp_path}/memory"), Unsupported, "postmigrate")
            running.qmp("cont")
            running.write("vda", 0xA1, 6 * MIB, 64 * KIB)
            await vm.checkpoint("c2", mode=mode)


async def test_checkpoint_refuses_a_machine_without_a_writable_disk(qemu, machine, mode, tmp_path):
    with machine("-device", "ide-cd,id=cd0") as running:
        async with running.connect(shared_fs=True) as vm:
            await refuses(running, vm, Checkpoint("c1", mode), NotFound, "disk")
            file = Path(tmp_path / "memory")
            await refuses(running, vm, Save(str(file)), NotFound, "no disk")
