"""A plan that waits until no job is in its way."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import anyio
import pytest

from qmpsnap.errors import NodeBusy
from qmpsnap.model.graph import Node
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.record import IntentRecord, Settings
from qmpsnap.plan.intent import CheckpointInternal
from qmpsnap.plan.steps import SaveState
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.plan.scenes import NOW
from tests.run.operations import vm_of

pytestmark = pytest.mark.timeout(10)

SAVE = CheckpointInternal("c1")


def with_job(job_id: str = "theirs", status: JobStatus = JobStatus.RUNNING) -> FakeTarget:
    fake = FakeTarget(graph(vda="base <- s1*"))
    nothing = SaveState(job_id, "x", ())
    fake.start_job(Job(job_id, "backup", status, ready=status is JobStatus.READY), nothing)
    return fake


async def test_when_idle_plans_once_the_job_has_ended() -> None:
    fake = with_job()
    task = asyncio.create_task(vm_of(fake).when_idle(SAVE))
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    fake.let_go()
    plan = await task
    assert plan.intent == SAVE
    assert fake.watched == 0


async def test_when_idle_refuses_a_job_that_is_ready() -> None:
    with pytest.raises(NodeBusy, match="'theirs'"):
        await vm_of(with_job(status=JobStatus.READY)).when_idle(SAVE)


async def test_when_idle_refuses_what_is_in_the_way_and_is_no_job() -> None:
    fake = FakeTarget(graph(vda="base*", nodes=(Node("leak", "qcow2", "/images/x.qcow2"),)))
    with pytest.raises(NodeBusy, match="'leak'"):
        await vm_of(fake).when_idle(SAVE)


async def test_when_idle_refuses_a_job_that_has_ended_and_is_in_the_way_all_the_same() -> None:
    fake = with_job(status=JobStatus.CONCLUDED)
    busy = NodeBusy("it has concluded and was not dismissed", node="", job_id="theirs")
    fake.fail("graph", busy)
    fake.fail("graph", busy)
    with pytest.raises(NodeBusy):
        await vm_of(fake).when_idle(SAVE)


async def test_interrupted_leaves_out_other_machines_and_clients_at_work() -> None:
    fake = FakeTarget(graph(vda="base <- s1*"))
    files, place = ("/images/s1.qcow2", "/images/base.qcow2"), "/images/base.qmpsnap"
    ours = IntentRecord("ours", "snapshot", NOW, {"vda": files}, directory=place)
    theirs = replace(ours, id="theirs", chains={"vda": ("/images/x.qcow2", files[1])})
    same = replace(theirs, id="same", was=Settings(True, process=fake.guest.now.process))
    job = replace(theirs, id="job")
    busy = replace(ours, id="busy", live=True)
    fake.files.records += [ours, theirs, same, job, busy]
    fake.start_job(Job("job", "stream", JobStatus.RUNNING), SaveState("job", "x", ()))
    vm = vm_of(fake)
    assert [one.id for one in await vm.interrupted()] == ["ours", "same", "job"]
    assert [one.id for one in await vm.interrupted(live=True)] == ["ours", "same", "job", "busy"]
