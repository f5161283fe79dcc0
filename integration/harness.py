"""Interrupting operations: the same cases for cancel, kill -9 of the client and kill -9 of QEMU.

A Case (`cases.py`) is an operation on known images. A Rig is a machine with these images. `Rig.verify` says
what must hold after any interruption that was cleared away: the chains are those before or those after, no
job, no node and not a file of ours is left, every byte is right, and a layer that lost its moment is named.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Coroutine
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

import qmpsnap
from integration.cases import LATER, Case
from integration.known_images import MIB, Kept, content, make_images, overwritten
from integration.machines import Machine, blockdev, listing
from qmpsnap.model.record_file import from_json
from qmpsnap.run import backups, copying
from qmpsnap.run import session as sessions
from qmpsnap.run.daemon import DaemonTarget, start_daemon
from qmpsnap.run.images import Images
from qmpsnap.run.live import LiveTarget
from qmpsnap.run.preflight import read_chains
from qmpsnap.vm import VM

if TYPE_CHECKING:
    from collections.abc import Callable


class _Steps:
    """What makes a target call `at` right before and right after each step that it performs.

    The points are counted from 0: even ones lie before a step, odd ones after it. What lies between a
    wait and the next step is the same point as before that step.

    Attributes:
        states: Points at which the world differs from that at the point before. After a step and before the
            next one it is the same, unless the operation has waited for its job in between.
    """

    def __init__(self, *arguments, at: Callable[[int], None], **options):
        super().__init__(*arguments, **options)
        self._at, self._steps = at, 0
        self._moved = True
        self._entered = False  # steps that open images are none of the plan's
        self.states: list[int] = []

    async def __aenter__(self):
        target = await super().__aenter__()
        self._entered = True
        return target

    async def perform(self, step):
        if not self._entered:
            return await super().perform(step)
        with self.counted():
            return await super().perform(step)

    @contextmanager
    def counted(self):
        """Count what the block does as one step."""
        number, self._steps = self._steps, self._steps + 1
        self._reach(2 * number)
        self._moved = True
        yield
        self._moved = True  # another step may have gone on side by side
        self._reach(2 * number + 1)

    def _reach(self, point):
        if self._moved:
            self.states.append(point)
        self._moved = False
        self._at(point)

    @contextmanager
    def watch(self, job_id):
        with super().watch(job_id) as watch:
            yield _Watch(watch, self._waits)

    def _waits(self):
        self._moved = True


class Stepped(_Steps, LiveTarget):
    """A running QEMU whose steps are counted."""


class SteppedDaemon(_Steps, DaemonTarget):
    """A storage daemon whose steps are counted."""


@contextmanager
def copies_counted(target):
    """Count as steps of a target what a backup does to files: each copy and comparison, and the last name."""
    run, finish = copying._run, backups.Partial.finish

    async def copied(*arguments, **options):
        with target.counted():
            await run(*arguments, **options)

    def finished(*arguments):
        with target.counted():
            return finish(*arguments)

    copying._run, backups.Partial.finish = copied, finished
    try:
        yield
    finally:
        copying._run, backups.Partial.finish = run, finish


class _Watch:
    """What watches a job, and tells when somebody waits by it."""

    def __init__(self, watch, tell):
        self._watch, self._tell = watch, tell

    def __getattr__(self, name):
        if name.startswith("until"):
            self._tell()
        return getattr(self._watch, name)


@asynccontextmanager
async def stepped(socket, at=lambda _: None):
    """A VM whose every step is watched; see `Stepped`, which is `vm._target`."""
    target = Stepped(
        lambda: sessions.connect(socket),
        again=True,
        shared_fs=None,
        images=Images(),
        name="stepped",
        at=at,
    )
    async with target:
        yield VM(target)


@asynccontextmanager
async def stepped_offline(qemu, disks, at=lambda _: None):
    """As `stepped`, on the images of a machine that is off."""
    program = str(qemu.directory / "qemu-storage-daemon")
    chains = read_chains({disk: str(file) for disk, file in disks.items()})
    async with start_daemon(program, "stepped") as process:
        images = Images(str(qemu.directory / "qemu-img"))
        async with SteppedDaemon(process, chains, images=images, name="stepped", at=at) as target:
            yield VM(target)


_INSIDE: dict[tuple, dict[str, Kept]] = {}


def forget_images(memory):
    """Free the images that are kept for rigs with this memory, which they hold: hundreds of MiB each.

    Every process that a test starts would be forked from a worker of that size.
    """
    for key in [key for key in _INSIDE if memory in key]:
        del _INSIDE[key]


@dataclass
class Rig:
    """A case's images in a folder of their own; `memory`: a file whose bytes the guest's RAM begins with."""

    qemu: object
    case: Case
    folder: Path
    memory: Path | None = None
    images: dict = field(default_factory=dict)
    running: Machine | None = None

    def __post_init__(self):
        self.folder.mkdir(parents=True)
        self.images = {
            name: make_images(self.qemu, self._made(name), drawing)
            for name, drawing in self.case.disks.items()
        }
        self._put_inside()
        self.before = self.names()
        self.chains_before = {name: made.chain for name, made in self.images.items()}
        for name in self.before:  # that a commit had begun is told by the time at which a file was written
            os.utime(self.folder / name, (1e9, 1e9))

    def _made(self, name):
        (self.folder / name).mkdir()
        return self.folder / name

    def _put_inside(self):
        """Take the internal snapshots and the checkpoint, once for all rigs that have the same."""
        case = self.case
        if not case.inside and not case.checkpoint:
            return
        key = (self.qemu.version, self.memory, *map(repr, (case.disks, case.inside, case.checkpoint)))
        if key not in _INSIDE:
            for disk, names in case.inside.items():
                for name in names:
                    if name != case.checkpoint:
                        self.qemu.img("snapshot", "-c", name, self.images[disk].active)
            if case.checkpoint:
                with self.start() as running:
                    running.qmp.hmp(f"savevm {case.checkpoint}")
                    for disk in self.images:
                        running.write(disk, *LATER)
            _INSIDE[key] = {disk: Kept.of(made.active) for disk, made in self.images.items()}
            return
        for disk, kept in _INSIDE[key].items():
            active, *below = self.images[disk].chain
            Path(active).unlink()
            kept.put(active, below[0] if below else None)

    def start(self, active=None):
        """Start QEMU, on the original active layers or on those that are given."""
        active = active or {}
        disks = [blockdev(name, active.get(name, made.active)) for name, made in self.images.items()]
        # Sockets' names must be short, and are not to be listed among the images.
        extra = ()
        if self.memory is not None:
            size = self.memory.stat().st_size
            ram = f"memory-backend-file,id=ram,size={size},mem-path={self.memory},share=off"
            extra = ("-object", ram, "-M", "memory-backend=ram", "-m", f"{size // MIB}")
        self.running = Machine(self.qemu, self.folder.parent, *sum(disks, ()), extra=extra)
        if self.case.runs:
            self.running.qmp("cont")
        return self.running

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

    async def prepare(self):
        """Bring the machine that was just started to where the operation begins."""
        if self.case.prepare is not None:
            async with self.running.connect() as vm:
                await self.case.prepare(vm)
                self.chains_before = (await vm.graph()).chains()
            self.before = self.names()
        self.settings = self._settings()

    def _settings(self):
        capabilities = self.running.qmp("query-migrate-capabilities")
        return (
            sorted(one["capability"] for one in capabilities if one["state"]),
            self.running.qmp("query-migrate-parameters")["max-bandwidth"],
            self.running.qmp("query-fdsets"),
        )

    def check_machine(self, *, done):
        """Demand that QEMU stands, and is set, as before; it is the one that the operation began on."""
        assert self._settings() == self.settings
        if self.case.runs:
            status = self.running.qmp("query-status")["status"]
            assert status == (self.case.ends if done else "running"), status

    def reusable(self, *, done):
        """Whether the operation can begin on it once more: it was not done, and wrote into no layer.

        What it has spoiled stays so and is found when the rig is verified: nothing writes into these layers.
        """
        return not done and not self.case.writes_into

    def path(self, name):
        return str(self.folder / f"{name}.qcow2")

    async def cleared(self, vm):
        """Demand that one who connects later finds nothing to do; return whether the case is done.

        A commit that keeps its overlay changes no chain and no name: that it is done cannot be seen.
        """
        assert [job for job in await vm.jobs.list() if job.mine] == []
        records = await vm.jobs.interrupted()
        written = [record for record in records if record.invalid]
        assert list(records) == written, "a record that names nothing is left"
        invalid = {file for record in written for file in record.invalid}
        assert invalid <= {self.path(name) for name in self.case.writes_into}
        chains, names = (await vm.graph()).chains(), self.names()
        done = chains != self.chains_before or bool({"vda/copy.qcow2", "vm.state"} & set(names))
        # A memory that got its name is kept with its overlays, also by a QEMU that was started without these.
        done |= names == sorted(self.case.after) != self.before
        if self.case.inside:
            inside = await self._inside(vm)
            assert inside in (self.case.inside, self.case.inside_after)
            done |= self._went_back() if self.case.goes_back else inside == self.case.inside_after
            if self.running is not None:
                assert self.running.qmp("query-status")["running"] is self.case.runs
        if not (done and self.case.halfway and names == sorted(self.case.halfway)):
            assert names == (sorted(self.case.after) if done else self.before)
        assert not (done and written)
        return done

    def _went_back(self):
        """Whether the disks' bytes are the checkpoint's; demand that they are of one instant."""
        (back,) = {not self.running.reads(disk, *LATER) for disk in self.images}
        return back

    def _active(self, disk, *, done):
        """What a disk reads."""
        read = self.images[disk].content[-1]
        later = self.case.checkpoint and not (done and self.case.goes_back)
        return overwritten(read, LATER) if later else read

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
        active = {made.active: disk for disk, made in self.images.items()}
        for name, count in reads.items():
            self.qemu.check(self.path(name), leaks=leaks)
            disk = active.get(self.path(name))
            wanted = self._active(disk, done=done) if disk and self.case.checkpoint else content(count)
            assert self.qemu.read(self.path(name)) == wanted, f"{name} does not read its moment"
        for disk, names in (self.case.inside_after if done else self.case.inside).items():
            made = self.images[disk]
            assert self.qemu.inside(made.active) == list(names)
            for name in names:
                assert self.qemu.read_inside(made.active, name) == made.content[-1], f"{name} on {disk}"
        for disk, made in self.images.items():
            if Path(made.active).exists():
                wanted = self._active(disk, done=done)
                assert self.qemu.read(made.active) == wanted, f"{disk} does not read what it read"


# -- cancel at every await -------------------------------------------------------------------------

_OURS = str(Path(qmpsnap.__file__).parent)


class Ordinals:
    """Chooses every suspension once, by its number: one a round, from `first` on."""

    def __init__(self, first=1):
        self.rounds = first - 1

    def begin(self):
        self.rounds, self._count = self.rounds + 1, 0

    def __call__(self, coroutine):
        self._count += 1
        return self._count == self.rounds


class Sites:
    """Chooses every site at which a task suspends once: one a round.

    A site is the task, the lines of all of our frames that wait there for each other, and the kind of step
    that is being performed.
    """

    def __init__(self):
        self.rounds = 0
        self._seen = set()

    def begin(self):
        self.rounds, self._chosen = self.rounds + 1, False

    def __call__(self, coroutine):
        if self._chosen or (site := _site(coroutine)) in self._seen:
            return False
        self._seen.add(site)
        self._chosen = True
        return True


def _site(coroutine):
    found = [coroutine.__qualname__]
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is not None and frame.f_code.co_filename.startswith(_OURS):
            found.append((frame.f_code.co_filename, frame.f_lineno))
            if frame.f_code.co_qualname == LiveTarget.perform.__qualname__:
                found.append(type(frame.f_locals["step"]).__name__)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return tuple(found)


class Watched(Coroutine):
    """A coroutine that tells `suspended` whenever it suspends."""

    def __init__(self, coroutine, suspended):
        self._coroutine, self._suspended = coroutine, suspended

    def send(self, value):
        waits_for = self._coroutine.send(value)
        self._suspended(self._coroutine)
        return waits_for

    def throw(self, *error):
        waits_for = self._coroutine.throw(*error)
        self._suspended(self._coroutine)
        return waits_for

    def close(self):
        self._coroutine.close()

    def __await__(self):
        return self

    def __getattr__(self, name):
        return getattr(self._coroutine, name)


async def interrupt(operation, choose, *, cancel):
    """Run an operation and cancel it where it is chosen as a task suspends; whether it came to that.

    Args:
        operation: A coroutine function.
        choose: `Ordinals` or `Sites`; it goes one on.
        cancel: "task" or "scope".
    """
    loop = asyncio.get_running_loop()
    scope = anyio.CancelScope()
    finished, came = [], []

    async def body():
        if cancel == "scope":
            with scope:
                finished.append(await operation())
        else:
            finished.append(await operation())

    def suspended(coroutine):
        if choose(coroutine):
            came.append(coroutine)
            scope.cancel() if cancel == "scope" else task.cancel()

    choose.begin()
    loop.set_task_factory(
        lambda loop, coroutine, **options: asyncio.Task(Watched(coroutine, suspended), loop=loop, **options)
    )
    try:
        task = loop.create_task(body())
        await asyncio.wait({task})
    finally:
        loop.set_task_factory(None)
    if not task.cancelled():
        task.result()
    return bool(came), finished


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)
