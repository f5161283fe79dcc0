"""An operation that is cut short: QEMU goes, the caller leaves or stops, another job is in the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import anyio
import pytest

from integration.known_images import KIB, content
from integration.machines import SOON, QmpError, blockdev, listing, traced
from qmpsnap.errors import (
    Busy,
    Changed,
    Detached,
    ForeignJob,
    GraphMismatch,
    Interrupted,
    JobFailed,
    LinkLost,
    NotFound,
)
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream
from qmpsnap.run.outcome import Hooks

SLOW = 16 * KIB  # bytes/s: such a job does not end during a test
JOBS = {
    "stream": lambda folder: Stream("vda", base="base", speed=SLOW),
    "commit": lambda folder: Commit("vda", top="s2", base="base", speed=SLOW),
    "active commit": lambda folder: Commit("vda", speed=SLOW),
    "mirror": lambda folder: Mirror("vda", f"{folder}/copy.qcow2", ending="pivot", speed=SLOW),
}
CHAIN = "base <- s1 <- s2 <- s3"


@pytest.fixture(params=JOBS.values(), ids=JOBS)
def job_intent(request, tmp_path):
    return request.param(str(tmp_path))


async def until_running(running, limit=60.0):
    """Wait until a job of ours runs; return its id."""
    with anyio.fail_after(limit):
        while True:
            for job in running.qmp("query-block-jobs"):
                if job["device"].startswith("qmpsnap-") and job["offset"]:
                    return job["device"]
            await anyio.sleep(0.01)


# -- QEMU goes, or stands still --------------------------------------------------------------------


async def test_everything_that_waits_ends_soon_when_qemu_is_killed(images, machine, job_intent):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            ended = {}

            async def waits(name, operation):
                with pytest.raises(LinkLost) as caught:
                    await operation
                assert caught.value.exit_code == 5
                ended[name] = time.monotonic()

            async def progress(job_id):
                async for _ in vm.jobs.progress(job_id, interval=0.01):
                    pass

            async def reads():
                while True:
                    await vm.graph()

            async with anyio.create_task_group() as group:
                group.start_soon(waits, "operation", vm.run(await vm.plan(job_intent)))
                job_id = await until_running(running)
                group.start_soon(waits, "wait", vm.jobs.wait(job_id))
                group.start_soon(waits, "progress", progress(job_id))
                group.start_soon(waits, "graph", reads())
                await anyio.sleep(0.2)
                running.kill()
                killed = time.monotonic()
                assert await vm.wait_lost()
            assert set(ended) == {"operation", "wait", "progress", "graph"}
            assert max(ended.values()) - killed < SOON
            with pytest.raises(LinkLost):
                await vm.graph()
    for file in Path(made.active).parent.rglob("intent-*"):
        file.unlink()


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def test_a_stopped_qemu_is_waited_for_with_a_warning(images, machine, tmp_path, caplog):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            plan = await vm.plan(Snapshot("sn"))
            os.kill(running.pid, signal.SIGSTOP)
            task = asyncio.create_task(vm.run(plan))
            with anyio.fail_after(60):
                while not warnings(caplog):
                    await anyio.sleep(0.05)
            assert not task.done()
            os.kill(running.pid, signal.SIGCONT)
            with anyio.fail_after(60):
                done = await task
            assert done.chains == {"vda": (f"{tmp_path}/base.sn.qcow2", made.active)}
    (warning,) = warnings(caplog)
    assert ".delayed" in warning


@pytest.mark.parametrize("how", ["quit", "system_reset", "SIGTERM"])
async def test_the_truth_is_told_when_the_machine_ends_or_resets_in_mid_job(
    qemu, images, machine, job_intent, how
):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            task = asyncio.create_task(vm.run(await vm.plan(job_intent)))
            job_id = await until_running(running)
            match how:
                case "quit":
                    running.quit()
                case "SIGTERM":
                    running.process.terminate()
                    running.killed = True
                case "system_reset":
                    running.qmp("system_reset")
            if how == "system_reset":
                await vm.jobs.set_speed(job_id, 0)
                with anyio.fail_after(60):
                    done = await task
                assert done.chains == (await vm.graph()).chains()
            else:
                with anyio.fail_after(SOON), pytest.raises((LinkLost, JobFailed)) as caught:
                    await task
                assert caught.value.changed is not Changed.NO or "mirror" in job_id or "stream" in job_id
    for file in Path(made.active).parent.rglob("intent-*"):
        file.unlink()


async def test_a_ready_job_at_power_off_is_no_success(images, machine, tmp_path):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            ready = asyncio.Event()
            with vm.events(lambda event: ready.set() if event.name == "BLOCK_JOB_READY" else None):
                running.qmp("drive-mirror", {
                    "job-id": "qmpsnap-mirror-pivot-00000000", "device": "vda-node", "sync": "full",
                    "target": f"{tmp_path}/t.qcow2", "format": "qcow2", "auto-dismiss": False,
                })  # fmt: skip
                await ready.wait()
            with vm._target.watch("qmpsnap-mirror-pivot-00000000") as watch:
                waiting = asyncio.create_task(watch.until_concluded())
                await anyio.sleep(0.05)
                running.quit()
                with anyio.fail_after(SOON), pytest.raises((LinkLost, JobFailed)):
                    await waiting


async def test_unplugging_the_disk_in_mid_job_is_told(qemu, images, machine, job_intent):
    made = images(CHAIN)
    node = blockdev("vda", made.active)[:2]
    scsi = ("-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-hd,bus=scsi.0,drive=vda-node,id=vda")
    with machine(*node, *scsi) as running:
        async with running.connect() as vm:
            task = asyncio.create_task(vm.run(await vm.plan(job_intent)))
            job_id = await until_running(running)
            running.qmp("device_del", id="vda")
            running.qmp.wait_event("DEVICE_DELETED", device="vda")
            if any((job["id"], job["status"]) == (job_id, "running") for job in running.qmp("query-jobs")):
                with contextlib.suppress(QmpError):  # it needs no speed any more, being at `pending`
                    running.qmp("block-job-set-speed", device=job_id, speed=0)
            # The job goes on without the disk; what it was to make of that cannot be seen any more.
            with anyio.fail_after(60), pytest.raises(GraphMismatch, match="vda is gone") as caught:
                await task
            assert (caught.value.changed, caught.value.exit_code) == (Changed.YES, 6)
    for file in Path(made.active).parent.rglob("intent-*"):
        file.unlink()


# -- other jobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["snapshot", "stream", "commit", "mirror"])
async def test_a_chain_that_anothers_job_holds_is_refused(images, machine, tmp_path, verb):
    made = images(CHAIN)
    intents = {
        "snapshot": Snapshot("sn"), "stream": Stream("vda"), "commit": Commit("vda"),
        "mirror": Mirror("vda", f"{tmp_path}/t", ending="pivot"),
    }  # fmt: skip
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("block-commit", {
            "job-id": "theirs", "device": "vda-node", "top-node": running.roots()["vda"][1], "speed": 1,
        })  # fmt: skip
        before = listing(tmp_path)
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(Busy) as caught:
                await vm.run(await vm.plan(intents[verb]))
            assert (caught.value.job_id, sent, caught.value.exit_code) == ("theirs", [], 3)
            with pytest.raises(ForeignJob):
                await vm.jobs.cancel("theirs")
            assert [(job.id, job.mine) for job in await vm.jobs.list()] == [("theirs", False)]
            await vm.jobs.cancel("theirs", foreign=True)
            running.qmp.wait_event("JOB_STATUS_CHANGE", id="theirs", status="null")
            assert listing(tmp_path) == before


async def test_job_verbs_refuse_a_job_that_is_not_there(images, machine):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            for verb in (vm.jobs.pause, vm.jobs.resume, vm.jobs.cancel, vm.jobs.wait):
                with pytest.raises(NotFound):
                    await verb("qmpsnap-mirror-pivot-00000000")


# -- the caller leaves, or stops -------------------------------------------------------------------


async def test_a_job_that_was_left_is_ended_by_the_next_client(images, machine, job_intent):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            plan = await vm.plan(job_intent)
            detach = anyio.Event()
            hooks = Hooks(progress=lambda _: detach.set(), interval=0.01, detach=detach)
            with pytest.raises(Detached) as caught:
                await vm.run(plan, hooks)
        async with running.connect() as vm:
            (job,) = await vm.jobs.list()
            assert (job.id, job.mine) == (caught.value.job_id, True)
            await vm.jobs.pause(job.id)
            with anyio.fail_after(60):
                while not (await vm.jobs.list())[0].paused:  # QEMU's reply does not wait for that
                    await anyio.sleep(0.01)
            await vm.jobs.resume(job.id)
            await vm.jobs.set_speed(job.id, 0)
            done = await vm.jobs.wait(job.id)
            assert done.chains == plan.chains_after == (await vm.graph()).chains()
            assert await vm.jobs.interrupted() == ()


@pytest.mark.parametrize("how", ["event", "cancel", "other client", "call-back"])
async def test_a_job_that_is_stopped_is_undone(qemu, images, machine, tmp_path, job_intent, how):
    made = images(CHAIN)
    before = listing(tmp_path)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            plan = await vm.plan(job_intent)
            stop = anyio.Event()

            def complain(_):
                raise ZeroDivisionError("the caller's own")

            hooks = Hooks(cancel=stop, progress=complain if how == "call-back" else None)
            task = asyncio.create_task(vm.run(plan, hooks))
            if how == "call-back":
                with pytest.raises(ZeroDivisionError) as caught:
                    await task
                assert "rolled back" in "".join(caught.value.__notes__)
            else:
                job_id = await until_running(running)
                match how:
                    case "event":
                        stop.set()
                        error = Interrupted
                    case "cancel":
                        task.cancel()
                        error = asyncio.CancelledError
                    case "other client":
                        running.qmp("job-cancel", id=job_id)
                        error = JobFailed
                with anyio.fail_after(60), pytest.raises(error):
                    await task
            assert (await vm.graph()).chains() == {"vda": made.chain}
            records = await vm.jobs.interrupted()
            assert [sorted(one.invalid) for one in records] == (
                [sorted(plan.invalid_if_stopped)] if plan.op == "commit" else []
            )
            for record in records:
                Path(record.directory, record.file_name).unlink()
            assert listing(tmp_path) == before
            done = await vm.snapshot("next")
            assert done.chains["vda"][1:] == made.chain
    assert qemu.read(made.active) == content(4)


async def test_a_cancelled_job_of_an_earlier_client_is_cleared_away(images, machine, tmp_path, job_intent):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            detach = anyio.Event()
            hooks = Hooks(progress=lambda _: detach.set(), interval=0.01, detach=detach)
            plan = await vm.plan(job_intent)
            with pytest.raises(Detached) as caught:
                await vm.run(plan, hooks)
        async with running.connect() as vm:
            done = await vm.jobs.cancel(caught.value.job_id)
            assert done.chains == {"vda": made.chain}
            assert sorted(done.invalid) == sorted(plan.invalid_if_stopped)
            assert await vm.jobs.list() == ()
            for record in await vm.jobs.interrupted():
                Path(record.directory, record.file_name).unlink()
    assert not (tmp_path / "copy.qcow2").exists()
