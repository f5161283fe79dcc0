"""kill -9 of the client, and of QEMU, right before and right after every step of every operation.

Who comes later is told, and `job_wait` brings it to an end: the chain is the one before or the one after,
nothing of ours is left, every byte is right, and a layer that holds no moment any more is named.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from integration.cases import CASES
from integration.harness import Rig, stepped
from qmpsnap.errors import Changed, JobFailed, LinkLost

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def clients():
    """Start what forks the clients; the result runs a case up to a point, and says how the client ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "integration.client"],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:

        def run(running, rig, name, point, delay=0):
            order = {
                "socket": running.socket,
                "case": name, "folder": str(rig.folder), "point": point,
                "delay": delay,
            }  # fmt: skip
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield run
        server.stdin.close()


async def end(vm):
    """Do as one does who comes later: wait for whatever `jobs` and the records show."""
    ids = {record.id for record in await vm.interrupted()} | {job.id for job in await vm.jobs() if job.mine}
    assert len(ids) <= 1
    for job_id in ids:
        with anyio.fail_after(20):
            try:
                await vm.job_wait(job_id)
            except JobFailed as failed:
                return failed
    return None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
async def test_killed_client_leaves_what_the_next_one_ends(qemu, tmp_path, name):
    with clients() as run:
        point, status = 0, -9
        while status == -9:
            rig = Rig(qemu, CASES[name], tmp_path / f"p{point}")
            with rig.start() as running:
                await rig.prepare()
                status = run(running, rig, name, point)
                assert status in {0, -9}
                async with running.connect() as vm:
                    failed = await end(vm)
                    done = await rig.cleared(vm)
                running.check_nothing_left()
                rig.check_machine(done=done)
                # A stream that had not begun and one that failed look alike.
                assert failed is None or (name == "stream" and not done and failed.changed is Changed.NO)
            rig.verify(done=done)
            rig.forget_records()
            point += 1
    assert done or "keeps" in name


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
async def test_killed_qemu_ends_the_operation_and_the_next_start_goes_on(qemu, tmp_path, name):
    point, killed_at = 0, 1.0
    while killed_at:
        rig = Rig(qemu, CASES[name], tmp_path / f"p{point}")
        killed_at = 0.0
        with rig.start() as running:
            await rig.prepare()

            def at(now, point=point, running=running):
                nonlocal killed_at
                if now == point:
                    running.kill()
                    killed_at = time.monotonic()

            async with stepped(running.socket, at) as vm:
                plan = await vm.plan(rig.intent)
                chains, lost = rig.chains_before, None
                try:
                    chains = (await vm.run(plan)).chains
                except LinkLost as error:
                    lost = error
                if lost is not None:
                    assert time.monotonic() - killed_at < 1
                    assert set(lost.invalid) <= {rig.path(layer) for layer in rig.case.writes_into}
                if killed_at:
                    with pytest.raises(LinkLost):
                        await vm.graph()
        if killed_at:
            with rig.start({name: chains[name][0] for name in rig.images}) as running:
                async with running.connect() as vm:
                    failed = await end(vm)
                    if failed is not None and "mirror" in name:
                        assert "left there" in failed.message
                        Path(rig.path("copy")).unlink()
                    done = await rig.cleared(vm)
            rig.verify(done=done, leaks=bool(rig.case.inside))
        rig.forget_records()
        point += 1
    assert point > (2 if rig.case.inside else 4)
