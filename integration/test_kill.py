"""kill -9 of the client, and of QEMU, in every state of the world that lies between steps of every operation.

On the system's QEMU all of them, on each other one a sample (`sampled`); with --all there, too.
Who comes later is told, and `jobs.wait` brings it to an end: the chain is the one before or the one after,
nothing of ours is left, every byte is right, and a layer that no longer holds a snapshot is named.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import anyio
import pytest

from integration import forking
from integration.cases import CASES
from integration.cli import Cli
from integration.harness import Rig, stepped
from integration.known_images import QEMUS
from integration.machines import SOON, wait_for
from qmpsnap.cli.result import result_lines
from qmpsnap.errors import Changed, JobFailed, LinkLost
from qmpsnap.run.outcome import Done

ROOT = Path(__file__).resolve().parents[1]
STREAMS = {"stream", "delete up"}
OVERLAYS_ON = 27  # a point of the background checkpoint at which the guest writes to its overlays


def give(**order):
    """Give a client an order; return how it ended, -9 when it was killed."""
    return forking.client(order)


def run(running, rig, name, point, delay=0):
    """Run a case up to a point; without a running machine, on its images, those that the rig began with."""
    return give(
        socket=running.socket if running else "",
        images={} if running else {disk: made.active for disk, made in rig.images.items()},
        qemu=rig.qemu.version,
        case=name,
        folder=str(rig.folder),
        point=point,
        delay=delay,
    )


async def unfinished(vm):
    """Ids of what `jobs` shows, in its order."""
    jobs = [job.id for job in await vm.jobs.list() if job.mine]
    return [*jobs, *(record.id for record in await vm.jobs.interrupted() if record.id not in jobs)]


async def end(vm):
    """Do as one does who comes later: wait for whatever `jobs` and the records show.

    Returns:
        The result; the error if the operation had failed; None if there was nothing.
    """
    ids = await unfinished(vm)
    assert len(ids) <= 1
    for job_id in ids:
        with anyio.fail_after(60):
            try:
                return await vm.jobs.wait(job_id)
            except JobFailed as failed:
                return failed
    return None


def check_told(result, case, *, done):
    """Demand that a result says whether anything was changed, as is so; `done` is from `Rig.cleared`."""
    if not isinstance(result, Done):
        return
    assert result_lines(result)[0].endswith("nothing was changed") is not result.changed
    if result.ended == "unknown":  # nothing but the disks' bytes shows whether it was loaded
        assert result.op == "revert-internal"
    elif "keeps" in case:  # it changes nothing that can be seen
        assert result.changed is (result.ended == "finished")
    elif CASES[case].halfway:  # overlays that the guest writes to were merged back, or there were none yet
        assert result.ended == ("finished" if done else "rolled-back")
    else:
        assert (result.ended == "rolled-back", result.changed) == (not done, done)


async def states(qemu, name, folder):
    """Run the case to its end and verify it; return the points at which the world differs (`Stepped`)."""
    rig = Rig(qemu, CASES[name], folder)
    with rig.start() as running:
        await rig.prepare()
        async with stepped(running.socket) as vm:
            await vm.run(await vm.plan(rig.intent))
            found = vm._target.states
        async with running.connect() as vm:
            assert not isinstance(await end(vm), JobFailed)
            done = await rig.cleared(vm)
        running.check_nothing_left()
        rig.check_machine(done=done)
    rig.verify(done=done)
    rig.forget_records()
    assert done or "keeps" in name
    assert len(found) > (1 if rig.case.inside else 2)
    return found


def sampled(points, qemu, name, *, everything):
    """Return all points on the system's QEMU; of each operation every third one on another, and the last.

    What is tested is our way back, which is one; another QEMU could only answer its commands in another way.
    """
    if everything or qemu == QEMUS[0]:
        return points
    first = list(CASES).index(name) % 3
    return [point for number, point in enumerate(points[:-1]) if number % 3 == first] + points[-1:]


def test_points_that_are_sampled_are_of_every_operation_and_all_are_taken_on_the_first_qemu():
    for name in CASES:
        for count in range(2, 20):
            points = list(range(count))
            assert sampled(points, QEMUS[0], name, everything=False) == points
            other = sampled(points, None, name, everything=False)
            assert other == sorted(set(other))
            assert other[-1] == points[-1]
            assert len(other) >= count // 3
            assert sampled(points, None, name, everything=True) == points


@pytest.mark.parametrize("name", CASES)
async def test_killed_client_leaves_what_the_next_one_ends(qemu, tmp_path, everything, name):
    points = sampled(await states(qemu, name, tmp_path / "all"), qemu, name, everything=everything)
    while points:
        rig = Rig(qemu, CASES[name], tmp_path / f"p{points[0]}")
        with rig.start() as running:
            await rig.prepare()
            again = True
            while again and points:
                assert run(running, rig, name, points.pop(0)) == -9
                async with running.connect() as vm:
                    result = await end(vm)
                    done = await rig.cleared(vm)
                running.check_nothing_left()
                rig.check_machine(done=done)
                check_told(result, name, done=done)
                if isinstance(
                    result, JobFailed
                ):  # a stream that had not begun and one that failed look alike
                    assert (name in STREAMS, done, result.changed) == (True, False, Changed.NO)
                again = rig.reusable(done=done)
        rig.verify(done=done)
        rig.forget_records()


async def test_overlays_of_a_killed_checkpoint_are_merged_back_whoever_is_killed_meanwhile(
    qemu, tmp_path, everything
):
    """kill -9 of the client of the checkpoint, once its overlays are on, and at each step of the merge."""
    name, step, status = "checkpoint background", 1 if everything else 4 if qemu == QEMUS[0] else 11, -9
    rig = Rig(qemu, CASES[name], tmp_path / "rig")
    with rig.start() as running:
        await rig.prepare()
        order, where = {"socket": running.socket, "qemu": qemu.version}, {"folder": str(rig.folder)}
        for point in range(1, 100, step):
            assert give(**order, images={}, case=name, point=OVERLAYS_ON, **where) == -9
            async with running.connect() as vm:
                (record,) = await vm.jobs.interrupted()
                assert (await vm.graph()).chains() != rig.chains_before
            status = give(**order, end=record.id, point=point)
            async with running.connect() as vm:
                while ids := await unfinished(vm):
                    await vm.jobs.wait(ids[0])
                assert not await rig.cleared(vm)
            running.check_nothing_left()
            rig.check_machine(done=False)
            if status == 0:
                break
            assert status == -9
    assert status == 0
    rig.verify(done=False)


@pytest.mark.one_qemu
async def test_killed_checkpoint_is_shown_while_another_client_s_job_keeps_its_overlays(qemu, tmp_path):
    rig = Rig(qemu, CASES["checkpoint background"], tmp_path / "rig")
    with rig.start() as running:
        await rig.prepare()
        given = {"socket": running.socket, "qemu": qemu.version, "images": {}, "folder": str(rig.folder)}
        assert give(**given, case="checkpoint background", point=OVERLAYS_ON) == -9
        async with running.connect() as vm:
            (node,) = [layer.node for layer in (await vm.graph()).disks["vda"].layers[:1]]
        running.qmp("drive-backup", {"job-id": "theirs", "device": node, "target": f"{tmp_path}/copy",
                                     "sync": "full"}, speed=4096)  # fmt: skip
        running.qmp("cont")  # else it would be resumed, and the overlays would stay
        cli = Cli(running)
        shown = cli("--json", "jobs")
        (left,) = shown.json["interrupted"]
        assert ([job["id"] for job in shown.json["jobs"]], left["op"]) == (["theirs"], "checkpoint")
        refused = cli("--json", "job", "wait", left["id"])
        assert (refused.code, refused.json["error"]["job_id"]) == (3, "theirs")
        running.qmp("job-cancel", id="theirs")
        wait_for(lambda: running.qmp("query-jobs") == [], "the end of the job")
        assert cli("job", "wait", left["id"]).code == 0
        async with running.connect() as vm:
            assert not await rig.cleared(vm)
    rig.verify(done=False)


@pytest.mark.parametrize("name", CASES)
async def test_killed_qemu_ends_the_operation_and_the_next_start_goes_on(qemu, tmp_path, everything, name):
    points = sampled(await states(qemu, name, tmp_path / "all"), qemu, name, everything=everything)
    while points:
        rig = Rig(qemu, CASES[name], tmp_path / f"p{points[0]}")
        running = rig.start()
        again = True
        while again and points:
            with running:
                await rig.prepare()
                chains = await killed_at(points.pop(0), rig, running)
            # The next start; if the operation was not done, it begins once more on this one.
            running = rig.start({name: chains[name][0] for name in rig.images})
            with contextlib.ExitStack() as stack:
                stack.enter_context(running)
                async with running.connect() as vm:
                    result = await end(vm)
                    if isinstance(result, JobFailed) and "mirror" in name:
                        assert "left there" in result.message
                        Path(rig.path("vda/copy")).unlink()
                    done = await rig.cleared(vm)
                again = rig.reusable(done=done) and rig.case.prepare is None and bool(points)
                if again:
                    running.check_nothing_left()
                    stack.pop_all()
        rig.verify(done=done, leaks=bool(rig.case.inside))
        rig.forget_records()


async def killed_at(point, rig, running):
    """Kill QEMU at that point; return the chains from which it has to be started."""
    killed = 0.0

    def at(now):
        nonlocal killed
        if now == point:
            running.kill()
            killed = time.monotonic()

    async with stepped(running.socket, at) as vm:
        plan = await vm.plan(rig.intent)
        chains, lost = rig.chains_before, None
        try:
            chains = (await vm.run(plan)).chains
        except LinkLost as error:
            lost = error
        assert killed, f"there is no point {point}"
        if lost is not None:
            assert time.monotonic() - killed < SOON
            assert set(lost.invalid) <= {rig.path(layer) for layer in rig.case.writes_into}
        with pytest.raises(LinkLost):
            await vm.graph()
    return chains
