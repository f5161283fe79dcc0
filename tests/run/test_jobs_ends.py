from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest

from qmpsnap.errors import JobFailed, JobPaused, LinkLost
from qmpsnap.model.job import JobStatus
from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.session import connect
from qmpsnap.testing.jobs import job_turns
from qmpsnap.testing.server import Emit, Fail, Return
from tests.run.watched import DONE, JOB, heard, turns, waiting

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]


# Late clients


@pytest.mark.parametrize("status", ["running", "ready", "concluded"])
async def test_monitor_finds_the_jobs_that_are_there(server, jobs, status):
    jobs.put(JOB, status)
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        assert [(job.id, job.status) for job in monitor.found] == [(JOB, status)]


async def test_watch_tells_at_once_that_a_job_had_ended(jobs, monitor):
    jobs.put(JOB, "concluded", offset=8)
    with monitor.watch(JOB) as watch:
        assert (await watch.until_concluded()).offset == 8


async def test_watch_tells_at_once_that_a_job_had_failed(jobs, monitor):
    jobs.put(JOB, "concluded", error="Operation canceled")
    with monitor.watch(JOB) as watch:
        for until in (watch.until_ready, watch.until_concluded):
            with pytest.raises(JobFailed, match="Operation canceled"):
                await until()


async def test_watch_tells_at_once_that_a_job_is_ready(jobs, monitor):
    jobs.put(JOB, "ready")
    with monitor.watch(JOB) as watch:
        assert (await watch.until_ready()).status is JobStatus.READY


async def test_watch_tells_at_once_that_a_job_was_stopped_by_an_error(jobs, monitor):
    jobs.put(JOB, "paused", io_status="nospace")
    with monitor.watch(JOB) as watch, pytest.raises(JobPaused):
        await watch.until_concluded()


async def test_watch_waits_for_a_job_that_ran_before(server, jobs, monitor):
    jobs.put(JOB, "running")
    with monitor.watch(JOB) as watch:
        async with waiting(watch.until_concluded()) as task:
            assert not task.done()
            jobs.put(JOB, "concluded")
            server.emit(*turns("waiting", "pending", "concluded"))
        assert task.result().status is JobStatus.CONCLUDED


async def test_watch_fails_when_the_job_is_not_known(jobs, monitor):
    with monitor.watch(JOB) as watch, pytest.raises(JobFailed, match="vanished"):
        await watch.until_concluded()


async def test_watch_believes_the_event_when_it_overtakes_the_answer(server, jobs, monitor):
    jobs.put(JOB, "running")
    stale = (Return(jobs.jobs()), Emit("JOB_STATUS_CHANGE", {"id": JOB, "status": "concluded"}))
    server.answer_once("query-block-jobs", Return(jobs.block_jobs()))
    server.answer_once("query-jobs", *stale)
    with monitor.watch(JOB) as watch:
        jobs.put(JOB, "concluded", offset=8)
        with anyio.fail_after(30):
            assert (await watch.until_concluded()).offset == 8


# Ends


async def test_watch_fails_when_the_job_was_created_and_given_up(server, jobs, monitor):
    server.answer("block-commit", *turns("created", "null"), Fail("Block node is read-only"))
    with monitor.watch(JOB) as watch:
        with contextlib.suppress(Exception):
            await monitor._session.change("block-commit")
        with pytest.raises(JobFailed, match="vanished"):
            await watch.until_concluded()


async def test_watch_returns_a_job_whose_end_it_saw_when_somebody_dismissed_it(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running", "waiting", "pending"), DONE, *turns("concluded", "null"))
        await heard(monitor)
        job = await watch.until_concluded()
    assert (job.status, job.offset, job.length, job.type) == (JobStatus.CONCLUDED, 8, 8, "mirror")


async def test_watch_knows_what_an_earlier_one_saw_of_a_job_that_was_dismissed(server, jobs, monitor):
    with monitor.watch(JOB):
        server.emit(*turns("created", "running", "waiting", "pending"), DONE, *turns("concluded", "null"))
        await heard(monitor)
        with monitor.watch(JOB) as later:
            assert (await later.until_concluded()).offset == 8
            assert JobStatus.PENDING in later.times
        server.emit(*turns("created", "aborting", "concluded", "null"))
        await heard(monitor)
        with monitor.watch(JOB) as later, pytest.raises(JobFailed, match="failed: QEMU gave no reason"):
            await later.until_concluded()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (Emit("BLOCK_JOB_COMPLETED", {"device": JOB, "error": "Input/output error"}), "Input/output error"),
        (Emit("BLOCK_JOB_CANCELLED", {"device": JOB}), "Operation canceled"),
        (turns("aborting")[0], "no reason"),
    ],
    ids=["error", "cancelled", "no block job"],
)
async def test_watch_fails_when_somebody_dismissed_a_failed_job(server, jobs, monitor, end, error):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"), end, *turns("concluded", "null"))
        await heard(monitor)
        with pytest.raises(JobFailed, match=error):
            await watch.until_concluded()


async def test_watch_starts_afresh_when_the_name_is_used_again(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "aborting", "concluded", "null"))
        server.emit(*turns("created", "running", at=200.0))
        await heard(monitor)
        assert watch.times == {JobStatus.CREATED: 200.0, JobStatus.RUNNING: 201.0}
        server.emit(*turns("pending", "concluded", "null"))
        await heard(monitor)
        assert (await watch.until_concluded()).error is None


async def test_watch_takes_no_running_job_of_the_same_name_for_a_success(server, jobs, monitor):
    jobs.put(JOB, "running")
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running", "pending", "concluded"))
        await heard(monitor)
        server.answer_once("query-jobs", *turns("null", "created", "running"), Return(jobs.jobs()))
        async with waiting(watch.until_concluded()) as task:
            assert not task.done()
            jobs.put(JOB, "concluded", error="no")
            server.emit(*turns("aborting", "concluded"))
        with pytest.raises(JobFailed, match="no"):
            task.result()


async def test_times_are_those_of_qemu(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running", "ready", "waiting", "pending", "concluded", at=10.5))
        await heard(monitor)
        assert watch.times["concluded"] - watch.times["pending"] == 1.0
        assert watch.times["created"] == 10.5


@pytest.mark.parametrize("until", ["until_ready", "until_concluded"])
@pytest.mark.parametrize("states", [(), ("created", "running"), ("created", "running", "ready")])
async def test_watch_says_link_lost_soon(server, jobs, until, states):
    jobs.put(JOB, "running")
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        with monitor.watch(JOB) as watch:
            if not (states[-1:] == ("ready",) and until == "until_ready"):
                server.emit(*turns(*states))
                await heard(monitor)
                async with waiting(getattr(watch, until)()) as task:
                    server.hang_up()
                    with anyio.fail_after(30):
                        await asyncio.wait({task})
                with pytest.raises(LinkLost, match="waiting for job") as caught:
                    task.result()
                assert JOB in caught.value.step


async def test_watch_says_link_lost_when_qemu_ends_a_job_and_itself(server, jobs):
    """What all three QEMUs send at SIGTERM: they cancel the job, dismiss it, and close."""
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        with monitor.watch(JOB) as watch:
            server.emit(*turns("created", "running", "ready"))
            await heard(monitor)
            async with waiting(watch.until_concluded()) as task:
                cancelled = Emit("BLOCK_JOB_CANCELLED", {"device": JOB})
                shutdown = Emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})
                server.emit(
                    shutdown, *turns("standby", "ready", "aborting"), cancelled, *turns("concluded", "null")
                )
                server.hang_up()
            with pytest.raises(LinkLost, match=r"host-signal.*Operation canceled"):
                task.result()


async def test_watch_ends_its_waiters_when_it_is_closed(jobs, monitor):
    jobs.put(JOB, "running")
    with monitor.watch(JOB) as watch:
        task = asyncio.create_task(watch.until_concluded())
        await asyncio.sleep(0.002)
    with pytest.raises(LinkLost, match="nobody is following"):
        await task


async def test_monitor_ends_the_waiters_when_it_is_closed(server, jobs):
    jobs.put(JOB, "running")
    async with connect(server.path) as session, contextlib.AsyncExitStack() as stack:
        monitor = await stack.enter_async_context(JobMonitor(session))
        with monitor.watch(JOB) as watch:
            task = asyncio.create_task(watch.until_concluded())
            await asyncio.sleep(0.002)
            await stack.aclose()
            with pytest.raises(LinkLost, match="nobody is following"):
                await task


async def test_until_leaves_the_watch_usable_when_it_is_cancelled(server, jobs, monitor):
    jobs.put(JOB, "running")
    with monitor.watch(JOB) as watch:
        with anyio.move_on_after(0.002):
            await watch.until_concluded()
        jobs.put(JOB, "concluded")
        server.emit(*turns("concluded"))
        assert (await watch.until_concluded()).status is JobStatus.CONCLUDED


async def test_two_watches_on_one_job_both_return(server, jobs, monitor):
    jobs.put(JOB, "ready")
    with monitor.watch(JOB) as first, monitor.watch(JOB) as second:
        await asyncio.gather(first.until_ready(), second.until_ready())


async def test_monitor_keeps_nothing_of_jobs_that_nobody_watches(server, jobs, monitor):
    for number in range(20):
        with monitor.watch(f"job{number}"):
            server.emit(*job_turns(f"job{number}", "created", "running"))
            await heard(monitor)
    server.emit(*job_turns("foreign", "created", "running", "concluded", "null"))
    await heard(monitor)
    assert monitor._watches == {}


async def test_others_jobs_come_and_go_without_harm(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running"), *job_turns("foreign", "created", "aborting", "concluded"))
        await heard(monitor)
        assert watch.status is JobStatus.RUNNING


async def test_broken_job_events_do_no_harm(server, jobs, monitor):
    with monitor.watch(JOB) as watch:
        server.emit(
            Emit("JOB_STATUS_CHANGE", {"id": JOB, "status": "dreaming"}),
            Emit("JOB_STATUS_CHANGE", {"id": [], "status": "running"}),
            Emit("JOB_STATUS_CHANGE", {}),
            Emit("BLOCK_JOB_COMPLETED", {"device": JOB, "len": "x"}),
            Emit("BLOCK_JOB_PENDING", {"id": JOB, "type": "mirror"}),
        )
        await heard(monitor)
        assert watch.status is None
