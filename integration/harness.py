"""Interrupting operations: the same cases for cancel, kill -9 of the client and kill -9 of QEMU.

A Case is an operation on known images. A Rig is a machine with these images. `Rig.verify` says what must
hold after any interruption that was cleared away: the chains are those before or those after, no job, no
node and no file of ours is left, every byte is right, and a layer that lost its moment is named.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from integration.known_images import content, make_images
from integration.machines import Machine, blockdev, listing
from qmpsnap.model.record import from_json
from qmpsnap.plan.intent import (
    Checkpoint,
    CheckpointInternal,
    Commit,
    Delete,
    DeleteCheckpoint,
    Mirror,
    PrepareRevert,
    Revert,
    Save,
    Snapshot,
    SnapshotInternal,
    Stream,
)
from qmpsnap.run import session as sessions
from qmpsnap.run.images import Images
from qmpsnap.run.live import LiveTarget
from qmpsnap.vm import VM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from qmpsnap.plan.intent import Intent


@dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        disks: Drawing of each disk's images.
        intent: What is wanted, by the folder that holds a folder of each disk.
        after: Files that there are once it is done, relative to the folder; records left out.
        reads: What each file then reads, as a number of layers (see `known_images.content`).
        writes_into: Names of the layers that hold no moment from the job's start on.
        inside: Of a case that changes no chain: internal snapshots of active layers, by disk.
        inside_after: The same once it is done.
        running: Whether the guest runs.
        ends: Run state once it is done, where the guest ran.
        prepare: What is done to the machine beforehand, by a client of its own.
        halfway: Names of another good end: the overlays stay, and no moment has them.
    """

    disks: Mapping[str, str]
    intent: Callable[[str], Intent]
    after: tuple[str, ...]
    reads: Mapping[str, int]
    writes_into: tuple[str, ...] = ()
    inside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inside_after: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    running: bool = False
    ends: str = "running"
    prepare: Callable[[VM], Awaitable[object]] | None = None
    halfway: tuple[str, ...] = ()


TWO = {"vda": "base <- s1", "vdb": "base"}
BEFORE = ("vda/base.qcow2", "vda/s1.qcow2", "vdb/base.qcow2")
READS = {"vda/base": 1, "vda/s1": 2, "vdb/base": 1}
TAKEN = (*BEFORE, "vda/base.ck.qcow2", "vdb/base.ck.qcow2")
TAKEN_READS = {**READS, "vda/base.ck": 2, "vdb/base.ck": 1}
BACK = ("vda/base.ck-#.qcow2", "vdb/base.ck-#.qcow2")

CASES = {
    "snapshot": Case(
        {"vda": "base <- s1", "vdb": "base"},
        lambda _: Snapshot("sn"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/base.sn.qcow2", "vdb/base.qcow2", "vdb/base.sn.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vda/base.sn": 2, "vdb/base": 1, "vdb/base.sn": 1},
    ),
    "snapshot inside": Case(
        {"vda": "base <- s1", "vdb": "base"},
        lambda _: SnapshotInternal("i1"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vdb/base.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vdb/base": 1},
        inside={"vda": ("old",)},
        inside_after={"vda": ("old", "i1"), "vdb": ("i1",)},
    ),
    "delete inside": Case(
        {"vda": "base <- s1"},
        lambda _: Delete("old"),
        ("vda/base.qcow2", "vda/s1.qcow2"),
        {"vda/base": 1, "vda/s1": 2},
        inside={"vda": ("older", "old")},
        inside_after={"vda": ("older",)},
    ),
    "checkpoint inside": Case(
        {"vda": "base <- s1", "vdb": "base"},
        lambda _: CheckpointInternal("c1"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vdb/base.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vdb/base": 1},
        inside={"vda": ("old",)},
        inside_after={"vda": ("old", "c1"), "vdb": ("c1",)},
    ),
    "delete checkpoint inside": Case(
        {"vda": "base <- s1", "vdb": "base"},
        lambda _: DeleteCheckpoint("old"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vdb/base.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vdb/base": 1},
        inside={"vda": ("old",), "vdb": ("older", "old")},
        inside_after={"vdb": ("older",)},
    ),
    "stream": Case(
        {"vda": "base <- s1 <- s2 <- s3"},
        lambda _: Stream("vda", base="base"),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/s2.qcow2", "vda/s3.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "vda/s2": 3, "vda/s3": 4},
    ),
    "commit": Case(
        {"vda": "base <- s1 <- s2 <- s3"},
        lambda _: Commit("vda", top="s2", base="base"),
        ("vda/base.qcow2", "vda/s1.qcow2.invalid", "vda/s2.qcow2.invalid", "vda/s3.qcow2"),
        {"vda/base": 3, "vda/s3": 4},
        ("vda/base", "vda/s1"),
    ),
    "active commit": Case(
        {"vda": "base <- s1 <- s2"},
        lambda _: Commit("vda"),
        ("vda/base.qcow2", "vda/s1.qcow2.invalid", "vda/s2.qcow2.invalid"),
        {"vda/base": 3},
        ("vda/base", "vda/s1"),
    ),
    "commit that keeps": Case(
        {"vda": "base <- s1 <- s2"},
        lambda _: Commit("vda", keep_overlay=True),
        ("vda/base.qcow2", "vda/s1.qcow2", "vda/s2.qcow2"),
        {"vda/base": 3, "vda/s2": 3},
        ("vda/base", "vda/s1"),
    ),
    "mirror with pivot": Case(
        {"vda": "base <- s1"},
        lambda folder: Mirror("vda", f"{folder}/copy.qcow2", ending="pivot"),
        ("vda/base.qcow2", "vda/s1.qcow2", "copy.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "copy": 2},
    ),
    "mirror that ends": Case(
        {"vda": "base <- s1"},
        lambda folder: Mirror("vda", f"{folder}/copy.qcow2", ending="finish"),
        ("vda/base.qcow2", "vda/s1.qcow2", "copy.qcow2"),
        {"vda/base": 1, "vda/s1": 2, "copy": 2},
    ),
    "checkpoint stop": Case(
        TWO,
        lambda _: Checkpoint("ck"),
        (*TAKEN, "vda/base.ck.memory"),
        TAKEN_READS,
        running=True,
    ),
    "checkpoint background": Case(
        TWO,
        lambda _: Checkpoint("ck", "background"),
        (*TAKEN, "vda/base.ck.memory"),
        TAKEN_READS,
        running=True,
        halfway=TAKEN,
    ),
    "checkpoint in place": Case(
        TWO,
        lambda _: Checkpoint("ck", "in-place"),
        (*TAKEN, "vda/base.ck.vmstate.qcow2"),
        TAKEN_READS,
        running=True,
    ),
    "revert in place": Case(
        TWO,
        lambda _: Revert("ck"),
        (*TAKEN, "vda/base.ck.vmstate.qcow2", *BACK),
        TAKEN_READS,
        running=True,
        prepare=lambda vm: vm.checkpoint("ck", mode="in-place"),
    ),
    "revert disks": Case(
        TWO,
        lambda _: Revert("ck"),
        (*TAKEN, *BACK),
        TAKEN_READS,
        running=True,
        prepare=lambda vm: vm.snapshot("ck"),
    ),
    "revert prepare": Case(
        TWO,
        lambda _: PrepareRevert("ck"),
        (*TAKEN, *BACK),
        TAKEN_READS,
        running=True,
        prepare=lambda vm: vm.snapshot("ck"),
    ),
    "save": Case(
        TWO,
        lambda folder: Save(f"{folder}/vm.state"),
        (*BEFORE, "vm.state"),
        READS,
        running=True,
        ends="postmigrate",
    ),
}


class Stepped(LiveTarget):
    """A live target that calls `at` right before and right after each step that it performs.

    The points are counted from 0: even ones lie before a step, odd ones after it. What lies between a
    wait and the next step is the same point as before that step.
    """

    def __init__(self, *arguments, at: Callable[[int], None], **options):
        super().__init__(*arguments, **options)
        self._at, self._steps = at, 0

    async def perform(self, step):
        number, self._steps = self._steps, self._steps + 1
        self._at(2 * number)
        seconds = await super().perform(step)
        self._at(2 * number + 1)
        return seconds


@asynccontextmanager
async def stepped(socket, qemu_img, at):
    """A VM whose every step is watched."""
    target = Stepped(
        lambda: sessions.connect(socket),
        again=True,
        shared_fs=None,
        images=Images(qemu_img),
        name="stepped",
        at=at,
    )
    async with target:
        yield VM(target)


@dataclass
class Rig:
    """A case's images in a folder of their own."""

    qemu: object
    case: Case
    folder: Path
    images: dict = field(default_factory=dict)

    def __post_init__(self):
        self.folder.mkdir(parents=True)
        self.images = {
            name: make_images(self.qemu, self._made(name), drawing)
            for name, drawing in self.case.disks.items()
        }
        for disk, names in self.case.inside.items():
            for name in names:
                self.qemu.img("snapshot", "-c", name, self.images[disk].active)
        self.before = self.names()
        self.chains_before = {name: made.chain for name, made in self.images.items()}
        for name in self.before:  # that a commit had begun is told by the time at which a file was written
            os.utime(self.folder / name, (1e9, 1e9))

    def _made(self, name):
        (self.folder / name).mkdir()
        return self.folder / name

    def start(self, active=None):
        """Start QEMU, on the original active layers or on those that are given."""
        active = active or {}
        disks = [blockdev(name, active.get(name, made.active)) for name, made in self.images.items()]
        # Sockets' names must be short, and are not to be listed among the images.
        return Machine(self.qemu, self.folder.parent, *sum(disks, ()))

    @property
    def intent(self):
        return self.case.intent(str(self.folder))

    def records(self):
        return [path for path in self.folder.rglob("*.json") if path.name.startswith("intent-")]

    def forget_records(self):
        """Remove the records that name what holds no moment; nothing leads to any other that is left."""
        for file in self.records():
            assert from_json(file.read_text()).invalid, f"{file} is left, and nobody finds it"
            file.unlink()

    def names(self):
        """Files that there are, records left out, and digests spelled as "#"."""
        found = [name for name in listing(self.folder) if ".qmpsnap/" not in name]
        return sorted(re.sub(r"-[0-9a-f]{8}\.", "-#.", name) for name in found)

    async def prepare(self, running):
        """Bring the machine to where the operation begins."""
        if self.case.running:
            running.qmp("cont")
        if self.case.prepare is not None:
            async with running.connect() as vm:
                await self.case.prepare(vm)
                self.chains_before = (await vm.graph()).chains()
            self.before = self.names()
        self.settings = self._settings(running)

    @staticmethod
    def _settings(running):
        capabilities = running.qmp("query-migrate-capabilities")
        return (
            sorted(one["capability"] for one in capabilities if one["state"]),
            running.qmp("query-migrate-parameters")["max-bandwidth"],
            running.qmp("query-fdsets"),
        )

    def check_machine(self, running, *, done):
        """Demand that QEMU stands, and is set, as before; it is the one that the operation began on."""
        assert self._settings(running) == self.settings
        if self.case.running:
            status = running.qmp("query-status")["status"]
            assert status == (self.case.ends if done else "running")

    def path(self, name):
        return str(self.folder / f"{name}.qcow2")

    async def cleared(self, vm):
        """Demand that one who connects later finds nothing to do; return whether the case is done.

        A commit that keeps its overlay changes no chain and no name: that it is done cannot be seen.
        """
        assert [job for job in await vm.jobs() if job.mine] == []
        records = await vm.interrupted()
        written = [record for record in records if record.invalid]
        assert list(records) == written, "a record that names nothing is left"
        invalid = {file for record in written for file in record.invalid}
        assert invalid <= {self.path(name) for name in self.case.writes_into}
        chains, names = (await vm.graph()).chains(), self.names()
        done = chains != self.chains_before or bool({"copy.qcow2", "vm.state"} & set(names))
        done |= self.case.prepare is not None and names == sorted(self.case.after)
        if self.case.inside:
            inside = await self._inside(vm)
            assert inside in (self.case.inside, self.case.inside_after)
            done |= inside == self.case.inside_after
        if not (done and self.case.halfway and names == sorted(self.case.halfway)):
            assert names == (sorted(self.case.after) if done else self.before)
        assert not (done and written)
        return done

    async def _inside(self, vm):
        """Internal snapshots of active layers, of the disks that have some."""
        disks = (await vm.graph()).disks.values()
        found = {disk.name: tuple(one.name for one in disk.active.snapshots) for disk in disks}
        return {disk: names for disk, names in found.items() if names}

    def verify(self, *, done, leaks=False):
        """Demand that every byte is right; QEMU has ended. `done` as `cleared` returned it.

        `leaks`: images may have lost space, as QEMU leaves them when it is killed after it wrote a table of
        internal snapshots.
        """
        invalid = set()
        for file in self.records():
            invalid |= set(from_json(file.read_text()).invalid)
        if done:
            reads = dict(self.case.reads)
        else:
            reads = {
                f"{disk}/{Path(file).stem}": count
                for disk, made in self.images.items()
                for count, file in enumerate(made.files, 1)
                if file not in invalid
            }
        for name, count in reads.items():
            self.qemu.check(self.path(name), leaks=leaks)
            assert self.qemu.read(self.path(name)) == content(count), f"{name} does not read its moment"
        for disk, names in (self.case.inside_after if done else self.case.inside).items():
            made = self.images[disk]
            assert self.qemu.inside(made.active) == list(names)
            for name in names:
                assert self.qemu.read_inside(made.active, name) == made.content[-1], f"{name} on {disk}"
        for disk, made in self.images.items():
            if Path(made.active).exists():
                assert self.qemu.read(made.active) == made.content[-1], f"{disk} does not read what it read"


# -- cancel at every await -------------------------------------------------------------------------


class Steps:
    """Counts how often any task of the loop suspends, and calls `then` at the n-th time."""

    def __init__(self, number, then):
        self.count, self._number, self._then = 0, number, then

    def __call__(self):
        self.count += 1
        if self.count == self._number:
            self._then()


class Counted(Coroutine):
    """A coroutine that tells when it suspends."""

    def __init__(self, coroutine, steps):
        self._coroutine, self._steps = coroutine, steps

    def send(self, value):
        waits_for = self._coroutine.send(value)
        self._steps()
        return waits_for

    def throw(self, *error):
        waits_for = self._coroutine.throw(*error)
        self._steps()
        return waits_for

    def close(self):
        self._coroutine.close()

    def __await__(self):
        return self

    def __getattr__(self, name):
        return getattr(self._coroutine, name)


async def interrupt(operation, number, *, cancel):
    """Run an operation and cancel it as any task suspends for the n-th time since; whether it came to that.

    Args:
        operation: A coroutine function.
        number: n, from 1.
        cancel: "task" or "scope".
    """
    loop = asyncio.get_running_loop()
    scope = anyio.CancelScope()
    finished = []

    async def body():
        if cancel == "scope":
            with scope:
                finished.append(await operation())
        else:
            finished.append(await operation())

    steps = Steps(number, lambda: scope.cancel() if cancel == "scope" else task.cancel())
    loop.set_task_factory(
        lambda loop, coroutine, **options: asyncio.Task(Counted(coroutine, steps), loop=loop, **options)
    )
    try:
        task = loop.create_task(body())
        await asyncio.wait({task})
    finally:
        loop.set_task_factory(None)
    if not task.cancelled():
        task.result()
    return steps.count >= number, finished


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)
