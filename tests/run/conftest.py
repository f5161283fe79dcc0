"""What the tests of run/ share: a scripted server, and a look at what a test leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

import pytest

from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.session import connect
from qmpsnap.testing.jobs import ScriptedJobs
from qmpsnap.testing.server import Return, serve


@pytest.fixture
async def nothing_stays():
    """After each test: no task, no descriptor, nothing for the loop's exception handler."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    before = open_files()
    gc.collect()
    gc.freeze()  # what is there by now is not walked through once more
    yield complaints
    gc.collect()
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()
    assert open_files() == before
    assert complaints == []


def open_files():
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[entry.name] = str(entry.readlink())
    return {number: target for number, target in found.items() if not target.startswith("/proc/")}


@pytest.fixture
async def server(tmp_path):
    async with serve(str(tmp_path / "s")) as server:
        server.answer("query-status", Return({"status": "running"}))
        yield server


@pytest.fixture
def jobs(server):
    return ScriptedJobs(server)


@pytest.fixture
async def monitor(server, jobs):
    async with connect(server.path) as session, JobMonitor(session) as monitor:
        yield monitor
