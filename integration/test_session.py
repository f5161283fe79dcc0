"""Sessions and job monitors on every QEMU that is here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from integration.machines import SOON
from qmpsnap.errors import CommandFailed, ConnectFailed, JobFailed, JobPaused, LinkLost
from qmpsnap.model.job import VERBS, Job, JobStatus, JobVerb
from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.session import connect
from qmpsnap.run.session.change import Outcome

MATRIX = Path(__file__).resolve().parents[1] / "scripts" / "qemu-matrix"
QEMUS = [
    line.split()
    for line in subprocess.run([MATRIX], capture_output=True, text=True, check=True).stdout.splitlines()
]
JOB = "qmpsnap-mirror-pivot-0a1b2c3d"
MIB = 1024 * 1024


@dataclass
class Qemu:
    """A QEMU without a guest, and a disk of 16 MiB as node `a`."""

    directory: str
    folder: Path
    process: subprocess.Popen

    @property
    def socket(self):
        return str(self.folder / "qmp")

    def image(self, name, size=16 * MIB):
        path = self.folder / name
        subprocess.run(
            [f"{self.directory}/qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True
        )
        return str(path)


def _listens(path):
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


@pytest.fixture(params=QEMUS, ids=[line[0] for line in QEMUS])
def qemu(request, tmp_path):
    directory = request.param[1]
    source = tmp_path / "a.qcow2"
    subprocess.run([f"{directory}/qemu-img", "create", "-q", "-f", "qcow2", source, "16M"], check=True)
    subprocess.run(
        [f"{directory}/qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 16M", source], check=True, stdout=-3
    )
    process = subprocess.Popen(
        [f"{directory}/qemu-system-x86_64", "-M", "q35", "-m", "64", "-nodefaults", "-display", "none", "-S",
         "-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off",
         "-blockdev", f"driver=file,filename={source},node-name=f",
         "-blockdev", "driver=qcow2,file=f,node-name=a"],
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not _listens(f"{tmp_path}/qmp"):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        yield Qemu(directory, tmp_path, process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def monitored(qemu):
    async with connect(qemu.socket) as session, JobMonitor(session) as monitor:
        yield session, monitor


async def add(session, node, path):
    arguments = {"driver": "qcow2", "node-name": node, "file": {"driver": "file", "filename": path}}
    await session.change("blockdev-add", arguments)


async def mirror(session, **more):
    arguments = {"job-id": JOB, "device": "a", "target": "t", "sync": "full", "auto-dismiss": False, **more}
    await session.change("blockdev-mirror", arguments)


async def test_session_knows_its_qemu(qemu):
    async with connect(qemu.socket) as session:
        assert (session.is_unix, session.peer_pid) == (True, qemu.process.pid)
        assert (await session.query("query-status"))["running"] is False
        with pytest.raises(CommandFailed) as caught:
            await session.change("job-cancel", {"id": "none"})
        assert caught.value.desc == "Job not found"


async def test_second_client_is_told_who_may_hold_the_monitor(qemu):
    async with connect(qemu.socket):
        with pytest.raises(ConnectFailed, match="no greeting") as caught:
            async with connect(qemu.socket, greeting_limit=0.2):
                pytest.fail("connected")
        assert "this process itself is connected to it" in caught.value.message
        assert "end that client" in caught.value.hint
        many = [asyncio.create_task(_fails_to_connect(qemu.socket)) for _ in range(4)]
        assert all(await asyncio.gather(*many))
    async with connect(qemu.socket) as session:
        await session.query("query-status")


async def _fails_to_connect(path):
    try:
        async with connect(path, greeting_limit=0.2):
            return False
    except ConnectFailed:
        return True


async def test_connect_tries_again_when_a_reply_to_the_client_before_comes_first(qemu, tmp_path):
    """A blockdev-add waits for an NBD server and fails; its client went meanwhile."""
    with socket.socket(socket.AF_UNIX) as nbd:
        nbd.bind(str(tmp_path / "nbd"))
        nbd.listen()
        with _raw_client(qemu) as one:
            place = {"type": "unix", "path": str(tmp_path / "nbd")}
            order = {"driver": "nbd", "node-name": "n", "server": place}
            one.sendall(json.dumps({"execute": "blockdev-add", "id": "lost", "arguments": order}).encode())
            silent, _ = nbd.accept()
        next_one = asyncio.create_task(_status(qemu))
        await anyio.sleep(0.3)  # it is greeted; its own qmp_capabilities waits behind the blockdev-add
        silent.close()
        assert await next_one == "prelaunch"


async def _status(qemu):
    async with connect(qemu.socket) as session:
        return (await session.query("query-status"))["status"]


def _raw_client(qemu):
    """A client that said qmp_capabilities, and had its answer."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(qemu.socket)
    client.recv(65536)
    client.sendall(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}')
    assert b"return" in client.recv(65536)
    return client


async def test_quit_ends_the_session_quietly(qemu):
    async with connect(qemu.socket) as session:
        await session.change("quit")
        with anyio.fail_after(SOON):
            await session.wait_lost()
        assert "host-qmp-quit" in session.close_reason


async def test_calls_and_waits_end_soon_when_qemu_is_killed(qemu):
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("t.qcow2"))
        with monitor.watch(JOB) as watch:
            await mirror(session, speed=MIB)
            waits = [asyncio.create_task(wait) for wait in (watch.until_ready(), watch.until_concluded())]
            waits.append(asyncio.create_task(session.wait_lost()))
            await asyncio.sleep(0.05)
            os.kill(qemu.process.pid, signal.SIGSTOP)
            waits += [asyncio.create_task(session.query("query-block")) for _ in range(3)]
            waits.append(asyncio.create_task(session.change("job-pause", {"id": JOB})))
            await asyncio.sleep(0.05)
            qemu.process.kill()
            with anyio.fail_after(SOON):
                ends = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(end) for end in ends] == [LinkLost, LinkLost, type(None), *[LinkLost] * 4]


async def test_five_seconds_of_sigstop_break_nothing(qemu):
    async with connect(qemu.socket) as session:
        os.kill(qemu.process.pid, signal.SIGSTOP)
        change = session.begin("blockdev-add", {"driver": "null-co", "node-name": "n"})
        asyncio.get_running_loop().call_later(5, os.kill, qemu.process.pid, signal.SIGCONT)
        with anyio.move_on_after(1):
            await change.reply()
        assert change.outcome is Outcome.DONE
        names = [node["node-name"] for node in await session.query("query-named-block-nodes", flat=True)]
        assert "n" in names


async def test_mirror_is_ready_completes_and_waits_to_be_dismissed(qemu):
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("t.qcow2"))
        with monitor.watch(JOB) as watch:
            await mirror(session)
            job = await watch.until_ready()
            assert (job.status, job.ready, job.io_status, job.fraction) == (JobStatus.READY, True, "ok", 1.0)
            await session.change("job-complete", {"id": JOB})
            job = await watch.until_concluded()
            assert (job.status, job.error) == (JobStatus.CONCLUDED, None)
            assert list(watch.times) == ["created", "running", "ready", "waiting", "pending", "concluded"]
            assert 0 <= watch.times["concluded"] - watch.times["pending"] < SOON
            await session.change("job-dismiss", {"id": JOB})
        assert await monitor.jobs() == ()


@pytest.mark.parametrize("verb", [JobVerb.COMPLETE, JobVerb.PAUSE, JobVerb.DISMISS, JobVerb.FINALIZE])
async def test_verbs_are_refused_where_the_table_says(qemu, verb):
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("t.qcow2"))
        with monitor.watch(JOB) as watch:
            await mirror(session, speed=MIB)
            await _try(session, verb, JobStatus.RUNNING)
            if verb is JobVerb.PAUSE:
                await session.change("job-resume", {"id": JOB})
            await session.change("block-job-set-speed", {"device": JOB, "speed": 0})
            await watch.until_ready()
            await session.change("job-pause", {"id": JOB})  # the reply does not wait for that
            with anyio.fail_after(60):
                while [job.status for job in await monitor.jobs()] != [JobStatus.STANDBY]:
                    await anyio.sleep(0.01)
            if verb is not JobVerb.PAUSE:
                await _try(session, verb, JobStatus.STANDBY)
            await session.change("job-resume", {"id": JOB})
            if verb is JobVerb.COMPLETE:
                await watch.until_concluded()
            else:
                await session.change("job-cancel", {"id": JOB})
                with pytest.raises(JobFailed, match="Operation canceled"):
                    await watch.until_concluded()
            await _try(session, verb, JobStatus.CONCLUDED)


async def _try(session, verb, status):
    if status in VERBS[verb]:
        await session.change(f"job-{verb}", {"id": JOB})
    else:
        with pytest.raises(CommandFailed, match=f"in state '{status}'"):
            await session.change(f"job-{verb}", {"id": JOB})


async def test_job_cancelled_while_it_runs_has_failed(qemu):
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("t.qcow2"))
        with monitor.watch(JOB) as watch:
            await mirror(session, speed=MIB)
            await session.change("job-cancel", {"id": JOB})
            with pytest.raises(JobFailed) as caught:
                await watch.until_concluded()
    assert caught.value.error == "Operation canceled"


async def test_late_client_finds_a_job_that_ended_meanwhile(qemu):
    async with connect(qemu.socket) as session:
        await add(session, "t", qemu.image("t.qcow2"))
        await mirror(session, **{"on-target-error": "report"})
    async with monitored(qemu) as (session, monitor):
        assert [job.id for job in monitor.found] == [JOB]
        with monitor.watch(JOB) as watch:
            assert (await watch.until_ready()).mine
            await session.change("job-cancel", {"id": JOB})
            with pytest.raises(JobFailed):
                await watch.until_concluded()
    async with monitored(qemu) as (_, monitor):
        assert [(job.status, job.error) for job in monitor.found] == [
            (JobStatus.CONCLUDED, "Operation canceled")
        ]
        with monitor.watch(JOB) as watch, pytest.raises(JobFailed, match="Operation canceled"):
            await watch.until_concluded()


async def test_full_target_pauses_a_job_with_policy_stop_and_goes_on_with_room(small, qemu):
    place = small()
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("small/t.qcow2"))
        with monitor.watch(JOB) as watch:
            await mirror(session, **{"on-target-error": "stop"})
            for _ in range(2):
                with pytest.raises(JobPaused, match="paused: no space"):
                    await watch.until_ready()
            async with monitored_late(monitor) as late:
                with pytest.raises(JobPaused):
                    await late.until_concluded()
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            await session.change("job-resume", {"id": JOB})
            assert (await watch.until_ready()).ready
            assert watch.error_count > 0
            await session.change("job-cancel", {"id": JOB})
            with pytest.raises(JobFailed):
                await watch.until_concluded()
        await session.change("quit")


@contextlib.asynccontextmanager
async def monitored_late(monitor):
    with monitor.watch(JOB) as watch:
        yield watch


async def test_full_target_fails_a_job_with_policy_report(small, qemu):
    small()
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("small/t.qcow2"))
        with monitor.watch(JOB) as watch:
            await mirror(session, **{"on-target-error": "report"})
            with pytest.raises(JobFailed) as caught:
                await watch.until_ready()
        assert caught.value.error == "No space left on device"
        await session.change("quit")


async def test_full_target_with_policy_ignore_goes_on_when_there_is_room(small, qemu):
    place = small()
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("small/t.qcow2"))
        with monitor.watch(JOB) as watch:
            await mirror(session, **{"on-target-error": "ignore"})
            with anyio.fail_after(60):
                while watch.error_count <= 500:
                    with anyio.move_on_after(0.2):
                        await watch.until_ready()
                        pytest.fail("ready without room")
            assert (await session.query("query-status"))["running"] is False
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            with anyio.fail_after(60):
                assert (await watch.until_ready()).ready
        await session.change("quit")


@pytest.mark.parametrize("way", ["SIGTERM", "quit"])
async def test_ready_job_is_no_success_when_qemu_ends(qemu, way):
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("t.qcow2"))
        with monitor.watch(JOB) as watch:
            await mirror(session)
            await watch.until_ready()
            waiter = asyncio.create_task(watch.until_concluded())
            await asyncio.sleep(0.01)
            if way == "quit":
                await session.change("quit")
            else:
                qemu.process.terminate()
            with anyio.fail_after(SOON), pytest.raises((LinkLost, JobFailed)):
                await waiter


async def test_job_of_another_comes_and_goes_without_harm(qemu):
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("t.qcow2"))
        await session.change("blockdev-mirror", {"job-id": "x", "device": "a", "target": "t", "sync": "full"})
        assert [job.mine for job in await monitor.jobs()] == [False]
        with monitor.watch("x") as watch:
            await watch.until_ready()
            await session.change("job-complete", {"id": "x"})
            job = await watch.until_concluded()
        assert (job.id, job.status, job.type) == ("x", JobStatus.CONCLUDED, "mirror")
        assert await monitor.jobs() == ()


async def test_progress_tells_of_a_slow_job(qemu):
    async with monitored(qemu) as (session, monitor):
        await add(session, "t", qemu.image("t.qcow2"))
        await mirror(session, speed=4 * MIB)
        told = []
        async for step in monitor.progress(JOB, 0.1):
            told.append(step)
            if len(told) == 4:
                break
        jobs: list[Job] = [step.job for step in told]
        assert jobs[0].offset <= jobs[-1].offset <= jobs[-1].length
        assert all(job.speed == 4 * MIB for job in jobs)
        await session.change("job-cancel", {"id": JOB})
