"""A plan that waits until no job is in its way."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, ForeignJob
from qmpsnap.model.graph import Node
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.record import IntentRecord, Origin
from qmpsnap.plan.commands.state import snapshot_save
from qmpsnap.plan.intent import Checkpoint
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.each import each
from tests.plan.scenes import NOW
from tests.run.operations import all_wait, vm_of

pytestmark = pytest.mark.timeout(60)

SAVE = Checkpoint("c1", "internal")


def with_job(job_id: str = "theirs", status: JobStatus = JobStatus.RUNNING) -> FakeTarget:
    fake = FakeTarget(graph(vda="base <- s1*"))
    nothing = snapshot_save(job_id, "x", (("", "n"),))
    fake.start_job(Job(job_id, "backup", status, ready=status is JobStatus.READY), nothing)
    return fake


async def test_when_idle_plans_once_the_job_has_ended() -> None:
    fake = with_job()
    task = asyncio.create_task(vm_of(fake).when_idle(SAVE))
    await all_wait()
    assert not task.done()
    fake.let_go()
    plan = await task
    assert plan.intent == SAVE
    assert fake.watched == 0


OURS = "qmpsnap-stream-keep-0a1b2c3d"


@each(
    ("job_id", "status", "way"),
    [
        ("theirs", JobStatus.READY, "its client has to complete it"),
        ("theirs", JobStatus.PENDING, "its client has to finalize it"),
        ("theirs", JobStatus.PAUSED, "qmpsnap job resume theirs --foreign resumes it"),
        (OURS, JobStatus.READY, f"qmpsnap job wait {OURS} finishes it"),
        (OURS, JobStatus.PENDING, f"qmpsnap job wait {OURS} finishes it"),
        (OURS, JobStatus.PAUSED, f"qmpsnap job resume {OURS} resumes it"),
        (OURS, JobStatus.STANDBY, f"qmpsnap job resume {OURS} resumes it"),
    ],
)
async def test_when_idle_refuses_a_job_that_does_not_end_by_itself(
    job_id: str, status: JobStatus, way: str
) -> None:
    fake = with_job(job_id, status)
    with pytest.raises(Busy, match=f"{job_id!r} .*{status}.* does not end by itself") as caught:
        await vm_of(fake).when_idle(SAVE)
    assert caught.value.job_id == job_id
    only = "" if job_id == OURS else " --foreign"
    assert caught.value.hint == f"{way}, qmpsnap job cancel {job_id}{only} stops it"
    assert fake.watched == 0


@each("status", [JobStatus.READY, JobStatus.PENDING, JobStatus.PAUSED])
async def test_when_idle_refuses_a_job_that_pauses_while_it_waits(status: JobStatus) -> None:
    fake = with_job()
    task = asyncio.create_task(vm_of(fake).when_idle(SAVE))
    await all_wait()
    assert not task.done()
    fake._set("theirs", status)
    with pytest.raises(Busy, match="does not end by itself"):
        await task


@each("turns", range(50, 60))  # wherever it is in its looks when the client goes on
async def test_when_idle_waits_for_a_job_at_pending_whose_client_is_at_work(turns: int) -> None:
    fake = with_job(OURS, JobStatus.PENDING)
    record = IntentRecord(OURS, "stream", NOW, {"vda": ("/images/s1.qcow2", "/images/base.qcow2")}, live=True)
    fake.files.records.append(replace(record, directory="/images/base.qmpsnap"))
    task = asyncio.create_task(vm_of(fake).when_idle(SAVE))
    for _ in range(turns):
        await asyncio.sleep(0)
    assert not task.done()
    fake.files.records[:] = []  # it is finalized
    fake._set(OURS, JobStatus.NULL)
    assert (await task).intent == SAVE


async def test_when_idle_waits_for_the_jobs_of_one_transaction() -> None:
    fake = with_job("first", JobStatus.WAITING)
    fake.start_job(Job("second", "backup", JobStatus.RUNNING), snapshot_save("second", "x", (("", "n"),)))
    task = asyncio.create_task(vm_of(fake).when_idle(SAVE))
    await all_wait()
    assert not task.done()
    fake._set("second", JobStatus.CONCLUDED)
    fake._set("first", JobStatus.CONCLUDED)
    assert (await task).intent == SAVE


async def test_when_idle_refuses_a_transaction_of_which_one_job_is_paused() -> None:
    fake = with_job("first", JobStatus.WAITING)
    fake.start_job(Job("second", "backup", JobStatus.PAUSED), snapshot_save("second", "x", (("", "n"),)))
    with pytest.raises(Busy, match="'second'"):
        await vm_of(fake).when_idle(SAVE)


async def test_when_idle_refuses_what_is_in_the_way_and_is_no_job() -> None:
    fake = FakeTarget(graph(vda="base*", nodes=(Node("leak", "qcow2", "/images/x.qcow2"),)))
    with pytest.raises(Busy, match="'leak'"):
        await vm_of(fake).when_idle(SAVE)


async def test_when_idle_refuses_a_job_that_has_ended_and_is_in_the_way_all_the_same() -> None:
    fake = with_job(status=JobStatus.CONCLUDED)
    busy = Busy("it has concluded and was not dismissed", node="", job_id="theirs")
    fake.fail("graph", busy)
    fake.fail("graph", busy)
    with pytest.raises(Busy):
        await vm_of(fake).when_idle(SAVE)


async def test_interrupted_leaves_out_other_machines_and_clients_at_work() -> None:
    fake = FakeTarget(graph(vda="base <- s1*"))
    files, place = ("/images/s1.qcow2", "/images/base.qcow2"), "/images/base.qmpsnap"
    ours = IntentRecord("ours", "snapshot", NOW, {"vda": files}, directory=place)
    theirs = replace(ours, id="theirs", chains={"vda": ("/images/x.qcow2", files[1])})
    same = replace(theirs, id="same", origin=Origin(True, process=fake.guest.now.process))
    job = replace(theirs, id="job")
    busy = replace(ours, id="busy", live=True)
    fake.files.records += [ours, theirs, same, job, busy]
    fake.start_job(Job("job", "stream", JobStatus.RUNNING), snapshot_save("job", "x", (("", "n"),)))
    vm = vm_of(fake)
    assert [one.id for one in await vm.jobs.interrupted()] == ["ours", "same", "job"]
    assert [one.id for one in await vm.jobs.interrupted(live=True)] == ["ours", "same", "job", "busy"]


@each("name", ["pause", "resume", "cancel"])
async def test_jobs_leave_another_s_job_alone_unless_foreign(name: str) -> None:
    fake = with_job()
    verb = getattr(vm_of(fake).jobs, name)
    with pytest.raises(ForeignJob):
        await verb("theirs")
    assert fake.sent == []
    await verb("theirs", foreign=True)
    assert fake.sent == [(f"job-{name}", {"id": "theirs"})]


@each(
    ("status", "taken"), [(JobStatus.RUNNING, True), (JobStatus.PENDING, False), (JobStatus.CONCLUDED, False)]
)
async def test_jobs_that_no_longer_copy_are_not_paused(status: JobStatus, *, taken: bool) -> None:
    fake = with_job(OURS, status)
    jobs = vm_of(fake).jobs
    for verb in (jobs.pause, jobs.resume, lambda job_id: jobs.set_speed(job_id, 5)):
        if taken:
            await verb(OURS)
            continue
        with pytest.raises(Busy, match=f"no longer copies anything: it is {status}") as caught:
            await verb(OURS)
        assert caught.value.hint == f"finish it: qmpsnap job wait {OURS}"
    assert len(fake.sent) == 3 * taken
