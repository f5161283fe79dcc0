"""One VM does several things at once: a copy of one disk is running while another disk is worked on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import anyio
import pytest

from integration.cli import Cli
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import SOON, blockdev
from qmpsnap.errors import Busy, Changed, LinkLost
from qmpsnap.plan.intent import Snapshot
from qmpsnap.run.outcome import Hooks

SLOW = 8 * KIB  # bytes a second: the copies below end when they are let go, and not before
FIRST = (0xB1, 2 * MIB, 4096)
SECOND = (0xB2, 3 * MIB, 4096)
MEANWHILE = (0xA7, 5 * MIB, 4096)


async def started(vm, call):
    """Begin a call that copies; return it once its job runs, with the job's id."""
    running = asyncio.Event()
    task = asyncio.create_task(call(Hooks(progress=lambda _: running.set(), interval=0.01)))
    waiter = asyncio.create_task(running.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    assert not task.done()
    (job,) = await vm.jobs.list()
    return task, job.id


async def let_go(vm, job_id):
    await vm.jobs.set_speed(job_id, 0)


async def test_snapshots_and_commits_of_one_disk_during_a_mirror_of_another(qemu, images, machine, tmp_path):
    one, other = images(folder="one"), images(folder="other")
    target = tmp_path / "copy.qcow2"
    with machine(*blockdev("vda", one.active), *blockdev("vdb", other.active)) as running:
        async with running.connect() as vm:
            mirror, job_id = await started(
                vm, lambda hooks: vm.mirror("vda", target, ending="pivot", speed=SLOW, hooks=hooks)
            )
            await vm.snapshot("n1", disks=["vdb"])
            running.write("vdb", *FIRST)
            running.write("vda", *MEANWHILE)
            await vm.snapshot("n2", disks=["vdb"])
            running.write("vdb", *SECOND)
            graph = await vm.graph()
            n2 = graph.disks["vdb"].files[0]
            assert graph.chains("vda") == {"vda": one.chain}  # its job's filter is no layer
            assert [part.name for part in (await vm.moments()).moments] == ["n1", "n2"]
            merged = await vm.commit("vdb", top="n1", base=other.active)
            assert merged.chains == {"vdb": (n2, *other.chain)}
            inside = await vm.snapshot("inside", disks=["vdb"], inside=True)
            assert inside.chains == merged.chains
            assert not mirror.done()  # all of that, and the copy goes on
            assert [job.id for job in await vm.jobs.list()] == [job_id]
            with pytest.raises(Busy) as caught:
                await vm.snapshot("n3")  # of both disks
            assert caught.value.job_id == job_id
            with pytest.raises(Busy):
                await vm.checkpoint("c1")
            both = asyncio.create_task(vm.snapshot("n4", wait=True))
            pivoted = await vm.commit("vdb", discard_internal=True)
            assert pivoted.chains == {"vdb": other.chain[-1:]}
            await vm.execute("blockdev-del", {"node-name": "vdb-node"})  # as `pivoted.left` says
            assert not mirror.done()
            assert not both.done()
            await let_go(vm, job_id)
            moved = await mirror
            taken = await both
            assert moved.chains == {"vda": (str(target),)}
            assert {disk: files[1:] for disk, files in taken.chains.items()} == moved.chains | pivoted.chains
            assert await vm.jobs.list() == ()
            assert await vm.jobs.interrupted() == ()
            final = taken.chains
    assert qemu.read(final["vda"][0]) == overwritten(content(3), MEANWHILE)
    assert qemu.read(final["vdb"][0]) == overwritten(content(3), FIRST, SECOND)
    for chain in final.values():
        qemu.check_chain(*chain)
    assert qemu.read(one.active) == overwritten(content(3), MEANWHILE)  # it pivoted at its very end
    with machine(*blockdev("vda", final["vda"][0]), *blockdev("vdb", final["vdb"][0])) as running:
        async with running.connect() as vm:
            assert (await vm.graph()).chains() == final


async def test_two_copies_of_two_disks_and_one_is_cancelled(qemu, images, machine, tmp_path):
    one, other = images(folder="one"), images(folder="other")
    with machine(*blockdev("vda", one.active), *blockdev("vdb", other.active)) as running:
        async with running.connect() as vm:
            mirror, job_id = await started(
                vm,
                lambda hooks: vm.mirror(
                    "vda", tmp_path / "copy.qcow2", ending="finish", speed=SLOW, hooks=hooks
                ),
            )
            begun = asyncio.Event()
            stream = asyncio.create_task(
                vm.stream("vdb", speed=SLOW, hooks=Hooks(progress=lambda _: begun.set(), interval=0.01))
            )
            with anyio.fail_after(60):
                await begun.wait()
            assert len(await vm.jobs.list()) == 2
            mirror.cancel()
            await asyncio.wait({mirror})
            assert mirror.cancelled()
            (left,) = await vm.jobs.list()
            assert left.type == "stream"
            assert (await vm.graph()).chains() == {"vda": one.chain, "vdb": other.chain}
            await let_go(vm, left.id)
            assert (await stream).chains == {"vdb": (other.active,)}
            assert job_id not in {job.id for job in await vm.jobs.list()}
    assert not (tmp_path / "copy.qcow2").exists()
    assert qemu.read(one.active) == qemu.read(other.active) == content(3)
    qemu.check_chain(*one.chain)
    qemu.check_chain(other.active)


async def ids_of_both_jobs(running):
    """Return the ids of two jobs once both have copied something."""
    with anyio.fail_after(60):
        while True:
            jobs = [job["device"] for job in running.qmp("query-block-jobs") if job["offset"]]
            if len(jobs) == 2:
                return jobs
            await anyio.sleep(0.01)


async def test_a_lost_link_is_made_again_once_for_both_operations(qemu, images, machine, tmp_path, caplog):
    """Made again a second time it would fail, for QEMU serves one client: no file could be told of then."""
    disks = {"vda": images(folder="one"), "vdb": images(folder="other")}
    targets = {disk: tmp_path / f"{disk}-copy.qcow2" for disk in disks}
    with machine(*(word for disk, made in disks.items() for word in blockdev(disk, made.active))) as running:
        async with running.connect() as vm:
            tasks = [
                asyncio.create_task(vm.mirror(disk, target, ending="finish", speed=SLOW))
                for disk, target in targets.items()
            ]
            jobs = await ids_of_both_jobs(running)
            with caplog.at_level("INFO", "qmpsnap"), anyio.fail_after(SOON):
                vm._target.session._owned.shutdown(socket.SHUT_RDWR)
                lost = await asyncio.gather(*tasks, return_exceptions=True)
            assert [(type(error), error.changed) for error in lost] == [(LinkLost, Changed.UNKNOWN)] * 2
            assert [error.left for error in lost] == [(), ()]  # both targets are in use
            assert {job for job in jobs for error in lost if job in error.hint} == {*jobs}
            events = [vars(record).get("event") for record in caplog.records]
            assert events.count("session.relinked") == 1
            chains = {disk: made.chain for disk, made in disks.items()}
            assert (await vm.graph()).chains() == chains
        cli = Cli(running)
        for job in jobs:
            running.qmp("block-job-set-speed", {"device": job, "speed": 0})
            ended = cli("--json", "job", "wait", job)
            assert (ended.code, ended.json["changed"]) == (0, True), ended
    for disk, made in disks.items():
        assert qemu.read(targets[disk]) == qemu.read(made.active) == content(3)
        qemu.check_chain(*made.chain)


async def test_giving_up_one_operation_leaves_the_other_to_its_end(qemu, images, machine, tmp_path, caplog):
    """QEMU answers neither; the cancelled one ends at its limit, and the other one waits on."""
    one, other, target = images(folder="one"), images(folder="other"), tmp_path / "copy.qcow2"
    with machine(*blockdev("vda", one.active), *blockdev("vdb", other.active)) as running:
        async with running.connect() as vm:
            vm._executor._after_cancel = 0.5  # seconds; else 30
            mirror, job_id = await started(
                vm, lambda hooks: vm.mirror("vda", target, ending="finish", speed=SLOW, hooks=hooks)
            )
            plan = await vm.plan(Snapshot("n1", ("vdb",)))
            os.kill(running.pid, signal.SIGSTOP)
            snapshot = asyncio.create_task(vm.run(plan))
            mirror.cancel()
            with caplog.at_level("WARNING", "qmpsnap"), anyio.fail_after(SOON):
                await asyncio.wait({mirror})
            assert mirror.cancelled()
            assert not snapshot.done()
            (given_up,) = [vars(record) for record in caplog.records if record.name == "qmpsnap.run"]
            assert (given_up["event"], given_up["op"], given_up["ended_by"]) == (
                "operation.given_up", "mirror", f"qmpsnap job wait {job_id}",
            )  # fmt: skip
            os.kill(running.pid, signal.SIGCONT)
            with anyio.fail_after(60):
                taken = await snapshot
            assert taken.chains["vdb"][1:] == other.chain
        ended = Cli(running)("--json", "job", "cancel", job_id)
        assert (ended.code, ended.json["changed"], ended.json["left"]) == (0, False, []), ended
    assert not target.exists()
    assert qemu.read(one.active) == qemu.read(taken.chains["vdb"][0]) == content(3)
