"""A watch tells a job that stands still from one that only passes."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from qmpsnap.errors import LinkLost
from qmpsnap.model.job import JobStatus
from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.session import connect
from qmpsnap.testing.server import Hangup
from tests.run.watched import JOB, heard, io_error, turns, waiting

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]

SOON = 0.02  # seconds
NEVER = 60.0  # seconds, longer than any test

STILL = ["paused", "ready", "standby", "waiting", "pending"]


@pytest.mark.parametrize("status", STILL)
async def test_until_still_reports_a_job_that_was_paused_before_anybody_listened(jobs, monitor, status):
    jobs.put(JOB, status)
    with monitor.watch(JOB) as watch:
        assert (await watch.until_still(SOON)).status == status


@pytest.mark.parametrize("status", STILL)
async def test_until_still_reports_a_job_that_pauses(server, jobs, monitor, status):
    jobs.put(JOB, "running")
    with monitor.watch(JOB) as watch:
        async with waiting(watch.until_still(SOON)) as task:
            await heard(monitor)
            asked = list(server.commands)
            await asyncio.sleep(3 * SOON)
            assert (task.done(), server.commands) == (False, asked)  # one that runs is not asked for
            jobs.put(JOB, status)
            server.emit(*turns(status))
        assert task.result().status == status


async def test_until_still_waits_on_when_the_job_stood_for_a_moment_only(server, jobs, monitor):
    jobs.put(JOB, "paused")
    with monitor.watch(JOB) as watch:
        async with waiting(watch.until_still(NEVER)) as task:
            for states in (["running"], ["paused", "running"], ["ready", "standby", "ready"], ["waiting"]):
                server.emit(*turns(*states))
                await heard(monitor)
                assert not task.done()
            server.emit(*turns("pending", "concluded", "null"))
        assert task.result() is None


async def test_until_still_counts_the_moment_anew_after_each_turn(server, jobs, monitor, monkeypatch):
    jobs.put(JOB, "paused")
    loop = asyncio.get_running_loop()
    clock, skipped = loop.time, list[int]()
    monkeypatch.setattr(loop, "time", lambda: clock() + sum(skipped))
    with monitor.watch(JOB) as watch:
        async with waiting(watch.until_still(5)) as task:
            for _ in range(4):
                skipped.append(3)
                await heard(monitor)
                server.emit(*turns("running", "paused"))
                await heard(monitor)
            assert not task.done()
            skipped.append(6)
        assert task.result().status is JobStatus.PAUSED


async def test_until_still_believes_the_answer_when_an_event_came_with_it(server, jobs, monitor):
    jobs.put(JOB, "running")  # what QEMU says when it is asked, although the last event said otherwise
    with monitor.watch(JOB) as watch:
        server.emit(*turns("created", "running", "paused"))
        await heard(monitor)
        async with waiting(watch.until_still(SOON)) as task:
            await asyncio.sleep(3 * SOON)
            assert not task.done()
            server.emit(*turns("waiting", "pending", "concluded"))
        assert task.result() is None


async def test_until_still_hears_nothing_of_errors_that_are_ignored(server, jobs, monitor):
    jobs.put(JOB, "ready")
    with monitor.watch(JOB) as watch:
        async with waiting(watch.until_still(SOON)) as task:
            server.emit(*[io_error("ignore")] * 50)
        assert task.result().ready


@pytest.mark.parametrize("status", ["concluded", None])
async def test_until_still_reports_no_job_that_has_ended(jobs, monitor, status):
    if status is not None:
        jobs.put(JOB, status, error="No space left on device")
    with monitor.watch(JOB) as watch, anyio.fail_after(30):
        assert await watch.until_still(NEVER) is None


async def test_until_still_raises_link_lost_when_the_link_goes(server, jobs):
    jobs.put(JOB, "paused")
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        with monitor.watch(JOB) as watch:
            async with waiting(watch.until_still(NEVER)) as task:
                server.answer("query-status", Hangup())
                with pytest.raises(LinkLost):
                    await session.query("query-status")
            with pytest.raises(LinkLost, match=JOB):
                task.result()


async def test_until_still_ends_when_nobody_takes_notes_any_more(jobs, monitor):
    jobs.put(JOB, "running")
    with monitor.watch(JOB) as watch:
        async with waiting(watch.until_still(NEVER)) as task:
            watch.close()
        with pytest.raises(LinkLost, match="nobody is following"):
            task.result()
