"""The client is killed, or cancels, while QEMU is in the middle of a save or a load of VM state.

QEMU carries it to its end: who comes later finds it done, the guest running and nothing half-made.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

from integration.cases import CASES
from integration.harness import Rig, forget_images
from integration.known_images import KIB, MIB
from integration.test_kill import check_told, end, run

NAMES = ["checkpoint inside", "checkpoint by jobs", "revert inside", "revert by jobs"]
AFTER = 0.02  # seconds
SENT = 2  # the point just before the step: the record's own step came first
MEMORY = 384 * MIB


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A file that makes a save or a load take a good part of a second."""
    file = tmp_path_factory.mktemp("memory") / "ram"
    with file.open("wb") as ram:
        for number in range(MEMORY // MIB):
            ram.write(bytes([1 + number % 255]) * (MIB - 4 * KIB) + b"\1" * (4 * KIB))
    yield file
    forget_images(file)
    file.unlink()


@pytest.fixture(params=NAMES)
def rig(request, qemu, tmp_path, memory):
    case = dataclasses.replace(CASES[request.param], runs=True)
    return Rig(qemu, case, tmp_path / "rig", memory)


def resumed(running):
    """When the guest ran on, by QEMU's clock, which is ours."""
    stamp = running.qmp.wait_event("RESUME")["timestamp"]
    return stamp["seconds"] + stamp["microseconds"] / 1e6


async def test_killed_client_leaves_qemu_in_the_middle_and_the_next_one_finds_it_done(rig, request):
    name = request.node.callspec.params["rig"]
    with rig.start() as running:
        running.qmp.wait_event("RESUME")
        assert run(running, rig, name, SENT, AFTER) == -9
        killed = time.time()
        assert resumed(running) > killed
        async with running.connect() as vm:
            check_told(await end(vm), name, done=True)
            assert await rig.cleared(vm)
        running.check_nothing_left()
    rig.verify(done=True)


async def test_cancel_in_the_middle_awaits_the_end_and_leaves_nothing(rig):
    with rig.start() as running:
        running.qmp.wait_event("RESUME")
        async with running.connect() as vm:
            plan = await vm.plan(rig.intent)
            perform, cancelled = vm._target.perform, []

            def cancel():
                cancelled.append(time.time())
                task.cancel()

            async def late(step):
                if step.way in {"savevm", "loadvm", "snapshot-save", "snapshot-load"}:
                    asyncio.get_running_loop().call_later(AFTER, cancel)
                return await perform(step)

            vm._target.perform = late
            task = asyncio.create_task(vm.run(plan))
            with pytest.raises(asyncio.CancelledError):
                await task
            vm._target.perform = perform
            assert resumed(running) > cancelled[0]
            assert await rig.cleared(vm)
    rig.verify(done=True)
