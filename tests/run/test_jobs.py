from __future__ import annotations

import asyncio

import pytest

from qmpsnap.errors import Changed, JobFailed, JobPaused, LinkLost
from qmpsnap.model.job import IoStatus, JobStatus
from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.session import connect
from qmpsnap.testing.server import Hangup, Return, Wait
from tests.run.watched import DONE, JOB, heard, io_error, turns, waiting

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]


async def test_watch_returns_the_job_when_it_concluded(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"))
        await heard(monitor)
        async with waiting(watch.until_concluded()) as task:
            jobs.put(JOB, "concluded", offset=8)
            server.emit(*turns("waiting", "pending"), DONE, *turns("concluded"))
        job = task.result()
    assert (job.status, job.offset, job.speed, job.error) == (JobStatus.CONCLUDED, 8, 5, None)


async def test_watch_hears_a_job_that_ended_before_the_reply(server, jobs, monitor):
    jobs.put(JOB, "concluded", offset=8)
    life = turns("created", "running", "waiting", "pending")
    server.answer("block-commit", *life, DONE, *turns("concluded"), Return())
    with monitor.watch(JOB) as watch:
        await monitor._session.change("block-commit")
        assert (await watch.until_concluded()).status is JobStatus.CONCLUDED


async def test_watch_sends_nothing_while_the_job_runs(server, jobs, monitor):
    server.emit(*turns("created", "running"))
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"))
        await heard(monitor)
        before = list(server.commands)
        async with waiting(watch.until_concluded()) as task:
            server.emit(*turns("paused", "running"), *[io_error("ignore")] * 50, *turns("paused"))
            await asyncio.sleep(0.01)
            assert server.commands == before
            task.cancel()


async def test_watch_returns_at_ready(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"))
        await heard(monitor)
        async with waiting(watch.until_ready()) as task:
            jobs.put(JOB, "ready", offset=8)
            server.emit(*turns("ready"))
        assert task.result().ready


async def test_watch_returns_when_the_job_waits_to_be_finalized(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"))
        await heard(monitor)
        async with waiting(watch.until_pending()) as task:
            jobs.put(JOB, "pending", offset=8)
            server.emit(*turns("waiting", "pending"))
        assert task.result().status is JobStatus.PENDING


async def test_watch_fails_when_the_job_ended_with_an_error(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"))
        await heard(monitor)
        async with waiting(watch.until_concluded()) as task:
            jobs.put(JOB, "concluded", error="No space left on device")
            server.emit(io_error("report"), *turns("aborting"), *turns("concluded"))
        with pytest.raises(JobFailed, match="No space left") as caught:
            task.result()
    assert (caught.value.job_id, caught.value.error) == (JOB, "No space left on device")
    assert caught.value.changed is Changed.UNKNOWN
    assert watch.error_count == 1


async def test_until_ready_fails_when_the_job_ended_without_being_completed(server, jobs, monitor):
    jobs.put(JOB, "concluded", offset=8)
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running", "ready", "waiting", "pending", "concluded"))
        await heard(monitor)
        with pytest.raises(JobFailed, match="before it was completed"):
            await watch.until_ready()


@pytest.mark.parametrize("until", ["until_ready", "until_pending", "until_concluded"])
async def test_watch_says_paused_when_an_io_error_stopped_the_job(server, jobs, monitor, until):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"))
        await heard(monitor)
        async with waiting(getattr(watch, until)()) as task:
            jobs.put(JOB, "paused", io_status="nospace")
            server.emit(*[io_error("stop")] * 13, *turns("paused"))
        with pytest.raises(JobPaused, match="paused: no space") as caught:
            task.result()
    assert (caught.value.job_id, caught.value.reason) == (JOB, "no space")
    assert f"job resume {JOB}" in caught.value.hint
    assert watch.error_count == 13


async def test_until_ready_says_paused_when_an_io_error_stopped_a_ready_job(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        jobs.put(JOB, "standby", io_status="failed")
        server.emit(*turns("created", "running", "ready"), io_error("stop"), *turns("standby"))
        await heard(monitor)
        with pytest.raises(JobPaused, match="paused: I/O error"):
            await watch.until_ready()


async def test_watch_says_paused_again_until_the_job_is_resumed(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        jobs.put(JOB, "paused", io_status="nospace")
        server.emit(*turns("created", "running"), io_error("stop"), *turns("paused"))
        await heard(monitor)
        for _ in range(2):
            with pytest.raises(JobPaused):
                await watch.until_concluded()
        jobs.put(JOB, "paused")  # resumed; now it is a drain
        asked = len(server.commands)
        async with waiting(watch.until_concluded()) as task:
            assert not task.done()
            assert len(server.commands) == asked + 2  # once, both queries
            jobs.put(JOB, "concluded")
            server.emit(*turns("running", "waiting", "pending", "concluded"))
        assert task.result().status is JobStatus.CONCLUDED


async def test_watch_takes_a_drain_for_no_pause(server, jobs, monitor):
    jobs.put(JOB, "paused")
    with monitor.watch(JOB) as watch:
        async with waiting(watch.until_concluded()) as task:
            server.emit(*turns("paused", "running", "standby"))
            await heard(monitor)
            assert not task.done()
            task.cancel()


async def test_watch_counts_a_storm_of_ignored_errors(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"))
        await heard(monitor)
        async with waiting(watch.until_ready()) as task:
            server.emit(*[io_error("ignore")] * 5000)
            jobs.put(JOB, "ready")
            server.emit(*turns("ready"), *[io_error("ignore")] * 5000)
            await heard(monitor)
        assert task.result().ready
        assert watch.error_count == 10_000


# Asking


async def test_jobs_joins_what_qemu_says(jobs, monitor):
    jobs.put(JOB, "paused", offset=3, io_status="nospace")
    (job,) = await monitor.jobs()
    assert (job.offset, job.length, job.speed, job.io_status, job.mine) == (3, 8, 5, IoStatus.NOSPACE, True)


async def test_progress_tells_rate_and_time_left_until_the_end(jobs, monitor):
    jobs.put(JOB, "running", offset=2)
    reports = []
    async for step in monitor.progress(JOB, 0.005):
        reports.append(step)
        if len(reports) == 1:
            jobs.put(JOB, "running", offset=4)
        else:
            jobs.put(JOB, "concluded", offset=8)
    assert [step.job.offset for step in reports] == [2, 4, 8]
    assert (reports[0].rate, reports[0].remaining) == (None, None)
    assert reports[1].rate is not None
    assert reports[1].rate * reports[1].remaining == pytest.approx(4)
    assert reports[2].remaining == 0


async def test_progress_tells_no_time_left_when_nothing_moves(jobs, monitor):
    jobs.put(JOB, "paused", offset=2)
    told = []
    async for step in monitor.progress(JOB, 0.001):
        told.append(step)
        if len(told) == 3:
            jobs.remove(JOB)
    assert [(step.rate, step.remaining) for step in told[1:]] == [(0.0, None), (0.0, None)]


async def test_progress_raises_link_lost_when_the_link_goes(server, jobs):
    jobs.put(JOB, "running")
    go = asyncio.Event()
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        server.answer("query-jobs", Wait(go), Hangup())
        go.set()
        with pytest.raises(LinkLost):
            async for _ in monitor.progress(JOB, 0.001):
                pass
