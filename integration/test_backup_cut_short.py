"""kill -9 of the client, and a cancel, at the steps of a live backup: the guest runs, the next one cleans up.

The steps are those of the snapshot and of the commits that follow, and those on the copies in between.
"""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import anyio
import pytest

import qmpsnap
from integration.harness import copies_counted, stepped, stepped_offline
from integration.known_images import KIB, MIB, QEMUS, overwritten
from integration.machines import drive, listing, wait_for
from integration.off import daemons, offline
from integration.test_kill import run

DRAWN = {"vda": "base <- s1", "vdb": "base"}


def sampled(points, qemu, *, everything):
    """Return every point with --all, else one in three on the system's QEMU, and one in twelve on another."""
    if everything:
        return points
    return points[::3] if qemu == QEMUS[0] else points[QEMUS.index(qemu) :: 12]


class Scene:
    """A machine with two disks, whose guest writes between the interruptions; None if it is off.

    Attributes:
        reads: What each disk reads.
    """

    def __init__(self, running, made, place):
        self.running, self.made, self.place = running, made, place
        self.reads = {disk: one.content[-1] for disk, one in made.items()}
        self.before = self.files()
        self.chains = {disk: one.chain for disk, one in made.items()}
        self._writes = 0

    def files(self):
        return [name for name in listing(self.place.parent) if not name.startswith("backups/")]

    def write(self):
        self._writes += 1
        for disk in self.reads:
            write = (self._writes, 6 * MIB + self._writes * KIB, KIB)
            self.running.write(disk, *write)
            self.reads[disk] = overwritten(self.reads[disk], write)

    async def check_next(self, vm, qemu):
        """Demand that the next backup leaves nothing but itself, and holds what the disks read."""
        done = await vm.backup(self.place)
        assert done.chains == self.chains
        assert {disk: qemu.read(file) for disk, file in done.files.items()} == self.reads
        assert (await vm.moments()).moments == ()
        assert await vm.jobs.interrupted() == ()
        assert await vm.jobs.list() == ()
        assert self.files() == self.before
        for number, record in enumerate(await qmpsnap.list_backups(self.place), 1):
            assert set(record.disks) == set(self.made)
            await qmpsnap.verify_backup(self.place, at=number)
        assert not any(path.suffix == ".partial" for path in self.place.iterdir())
        if self.running:
            self.running.check_nothing_left()
        shutil.rmtree(self.place)

    def newest(self):
        """The image of each disk for the next client, an overlay that was left, if any."""
        left = {disk: sorted(self.place.parent.glob(f"{disk}/*.backup-*.qcow2")) for disk in self.made}
        return {disk: str(left[disk][-1]) if left[disk] else one.active for disk, one in self.made.items()}


async def points(vm, place):
    """The points of a backup at which the world differs; the VM is one whose steps are counted."""
    with copies_counted(vm._target):
        await vm.backup(place)
    shutil.rmtree(place)
    return vm._target.states


@pytest.fixture(autouse=True)
def _tools(qemu, monkeypatch):
    monkeypatch.setenv("PATH", f"{qemu.directory}:{os.environ['PATH']}")


@pytest.fixture
def scene(images, machine, tmp_path):
    made = {disk: images(drawing, folder=disk) for disk, drawing in DRAWN.items()}
    with machine(*(word for disk, one in made.items() for word in drive(disk, one.active))) as running:
        running.qmp("cont")
        yield Scene(running, made, tmp_path / "backups")


async def test_backup_after_a_killed_one_leaves_nothing_of_it(scene, qemu, everything):
    running, place = scene.running, scene.place
    rig = SimpleNamespace(qemu=qemu, folder=place.parent)
    async with stepped(running.socket) as vm:
        found = await points(vm, place)
    for point in sampled(found, qemu, everything=everything):
        assert run(running, rig, place.name, point) == -9
        assert running.qmp("query-status")["status"] == "running"
        scene.write()
        async with running.connect() as vm:
            await scene.check_next(vm, qemu)


async def test_cancelled_backup_leaves_nothing_or_is_complete(scene, qemu, everything):
    running, place = scene.running, scene.place
    async with stepped(running.socket) as vm:
        found = await points(vm, place)
    for point in sampled(found, qemu, everything=everything):
        scope = anyio.CancelScope()

        def at(now, scope=scope, point=point):
            if now == point:
                scope.cancel()

        async with stepped(running.socket, at) as vm:
            with scope, copies_counted(vm._target):
                await vm.backup(place)
            assert scope.cancel_called
            assert (await vm.graph()).chains() == scene.chains
            assert (await vm.moments()).moments == ()
            assert scene.files() == scene.before
            scene.write()
            await scene.check_next(vm, qemu)


@pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[QEMUS[0].short])
async def test_backup_of_a_machine_that_is_off_after_a_killed_one(qemu, images, tmp_path, everything):
    made = {disk: images(drawing, folder=disk) for disk, drawing in DRAWN.items()}
    scene = Scene(None, made, tmp_path / "backups")
    rig = SimpleNamespace(qemu=qemu, folder=tmp_path, images=made)
    async with stepped_offline(qemu, scene.newest()) as vm:
        found = await points(vm, scene.place)
    for point in found if everything else found[1::4]:
        assert run(None, rig, scene.place.name, point) == -9
        wait_for(lambda: not daemons(tmp_path), "the daemon's end")
        async with offline(qemu, scene.newest()) as vm:
            await scene.check_next(vm, qemu)
