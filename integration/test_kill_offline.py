"""kill -9 of the client, or of its storage daemon, between the steps of each operation on images alone.

Of the points of `test_kill.py` one in three, on the system's QEMU; with --all each of them, on all. The two
are taken in turn: in either case the daemon is gone, and the next client finds the images and the record.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from integration.cases import CASES
from integration.harness import Rig, stepped_offline
from integration.known_images import QEMUS
from integration.machines import wait_for
from integration.off import daemons, offline
from integration.test_kill import check_told, end, run
from qmpsnap.errors import JobFailed, LinkLost

NAMES = (
    "snapshot", "snapshot inside", "stream", "commit", "active commit", "commit that keeps",
    "mirror with pivot", "mirror that ends",
)  # fmt: skip


class OffRig(Rig):
    """A rig without a machine."""

    @property
    def active(self):
        """The image of each disk that the next client is given: that of before, if it still has its name."""
        found = {}
        for disk, made in self.images.items():
            found[disk] = made.active if Path(made.active).exists() else self.path(f"{disk}/base")
        return found


async def count(qemu, name, folder):
    rig = OffRig(qemu, CASES[name], folder)
    async with stepped_offline(qemu, rig.active) as vm:
        await vm.run(await vm.plan(rig.intent))
        found = vm._target.states
    rig.forget_records()
    return found


async def daemon_killed_at(point, rig):
    def at(now):
        if now == point:
            os.kill(vm.pid, signal.SIGKILL)

    async with stepped_offline(rig.qemu, rig.active, at) as vm:
        plan = await vm.plan(rig.intent)
        with contextlib.suppress(LinkLost):
            await vm.run(plan)


@pytest.mark.parametrize("name", NAMES)
async def test_next_client_ends_what_was_under_way(qemu, tmp_path, everything, name):
    points = await count(qemu, name, tmp_path / "all")
    if not everything:
        points = points[NAMES.index(name) % 3 :: 3] if qemu == QEMUS[0] else points[-2:-1]
    for number, point in enumerate(points):
        rig = OffRig(qemu, CASES[name], tmp_path / f"p{point}")
        if number % 2:
            assert run(None, rig, name, point) == -9
        else:
            await daemon_killed_at(point, rig)
        wait_for(lambda rig=rig: not daemons(rig.folder), "the daemon's end")
        async with offline(qemu, rig.active) as vm:
            result = await end(vm)
            failed = isinstance(result, JobFailed)
            if failed and "mirror" in name:
                assert "left there" in result.message
                Path(rig.path("vda/copy")).unlink()
            done = await rig.cleared(vm)
            assert not (failed and done)
            check_told(result, name, done=done)
        rig.verify(done=done, leaks=True)
        rig.forget_records()
