"""The demonstration: snapshots, streams, commits and a mirror, while a real guest writes.

Run it as scripts/demo. Two writers in the guest never pause for us; whatever is done to the disks,
each must end as the replay of all the writes that it has acknowledged, and each layer must read
what the disk held at some instant of the call that made it.
"""

from __future__ import annotations

import argparse
import io
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from demo_bytes import Moment, Tools, WrongBytes

import qmpsnap
from qmpsnap.testing.guest import Guest, Writer, open_guest
from qmpsnap.testing.machine import GuestDisk, accelerator, find_guest_image, guest_argv

if TYPE_CHECKING:
    from qmpsnap.testing.writer import Writes

SIZE = 96 << 20  # bytes of each disk
BLOCKS = 1024  # of 64 KiB, at the start of each disk: where the guest writes
BETWEEN = 200  # blocks that the guest writes to each disk between two acts, at least


class Stage:
    """The machine, what the guest has written, and the moments that layers hold."""

    def __init__(
        self, vm: qmpsnap.VM, guest: Guest, writers: dict[str, Writer], *, tools: Tools, show_plans: bool
    ) -> None:
        self.vm = vm
        self.guest = guest
        self.writers = writers
        self.tools = tools
        self.moments: list[Moment] = []
        self._show_plans = show_plans
        self._acts = 0

    async def counts(self) -> dict[str, int]:
        """How many writes each disk has acknowledged."""
        return {name: await writer.count() for name, writer in self.writers.items()}

    async def guest_writes(self, number: int) -> None:
        """Wait until the guest has written `number` blocks more to each disk."""
        wanted = {name: count + number for name, count in (await self.counts()).items()}
        while any(count < wanted[name] for name, count in (await self.counts()).items()):
            await anyio.sleep(0.05)

    async def act(self, title: str, *intents: qmpsnap.Intent) -> None:
        """Do these one after the other, and show the chains before and after, and what it cost."""
        await self.guest_writes(BETWEEN)
        self._acts += 1
        print(f"\n{self._acts}. {title}")
        before = (await self.vm.graph()).chains()
        start = await self.counts()
        for writer in self.writers.values():
            await writer.longest_gap()
        done = [await self.do(intent) for intent in intents]
        gaps = [await writer.longest_gap() for writer in self.writers.values()]
        wrote = sum((await self.counts()).values()) - sum(start.values())
        for disk, files in before.items():
            if disk in done[-1].chains:
                print(f"   {disk}  {_drawn(files)}")
                print(f"   {'':{len(disk)}}  becomes {_drawn(done[-1].chains[disk])}")
        print(f"   {_took(done)}; {_standstill(done)}")
        if wrote < 0:  # its memory, too, is that of the checkpoint
            print(f"   {-wrote} writes of the guest and more are undone by it")
        else:
            print(
                f"   meanwhile the guest wrote {wrote} blocks, none of them took longer than {_ms(max(gaps))}"
            )
        for disk, file in done[-1].active.items():
            print(f"   from now on, start {disk} from {Path(file).name}")
        if done[-1].invalid:
            print(f"   their moments are gone, as their names say: {_names(done[-1].invalid)}")

    async def do(self, intent: qmpsnap.Intent) -> qmpsnap.Done:
        """Plan and run one intent, and note the moments that it makes."""
        before, chains = await self.counts(), (await self.vm.graph()).chains()
        plan = await self.vm.plan(intent)
        if self._show_plans:
            print("   | " + str(plan).replace("\n", "\n   | "))
        started = time.monotonic()
        done = await self.vm.run(plan)
        done = replace(done, elapsed_s=time.monotonic() - started)
        after = await self.counts()
        match intent:
            case qmpsnap.Snapshot(name=name):
                covered = {disk: chains[disk][0] for disk in done.chains}
            case qmpsnap.Mirror(disk=disk, ending="pivot"):
                name, covered = "mirror's pivot", {disk: chains[disk][0]}
            case _:
                return done
        for disk, file in covered.items():  # one write more can be under way when the count is read
            self.moments.append(Moment(name, disk, file, before[disk], after[disk] + 1))
        return done

    async def refused(self, title: str, intent: qmpsnap.Intent) -> None:
        """Ask for what must not be done."""
        self._acts += 1
        print(f"\n{self._acts}. {title}")
        try:
            await self.vm.plan(intent)
        except qmpsnap.StillNeeded as refusal:
            print(f"   refused, nothing was sent: {_names(refusal.by)} stand on it")
        else:
            raise WrongBytes(f"{intent} was not refused")

    async def give_up(self, disk: str, *names: str) -> None:
        """Check moments that are about to end, in the layers that hold them now."""
        leaving = [moment for moment in self.moments if moment.disk == disk and moment.name in names]
        await self.check(leaving, running=True)
        self.moments = [moment for moment in self.moments if moment not in leaving]
        print(f"\n   (the {len(leaving)} moments of {disk} that the next act gives up were checked: right)")

    async def check(self, moments: list[Moment], *, running: bool) -> None:
        """Hold each moment against the guest's writes."""
        for moment in moments:
            await self.tools.moment(moment, running=running)

    def moved(self, disk: str, name: str, file: str) -> None:
        """A commit has put what this moment reads into another layer."""
        self.moments = [
            replace(one, file=file) if (one.disk, one.name) == (disk, name) else one for one in self.moments
        ]


async def play(stage: Stage, directory: Path) -> None:
    """All acts, in an order in which each is allowed."""
    ten = [f"n{number:02}" for number in range(1, 11)]
    await stage.act("T2: an external snapshot of both disks, at one instant", qmpsnap.Snapshot("t2"))
    await stage.act("ten snapshots of both disks in a row", *(qmpsnap.Snapshot(name) for name in ten))

    await stage.act("T6: a partial stream; only the base stays below",
                    qmpsnap.Stream("vdb", base="vdb.raw"))  # fmt: skip
    await stage.refused("a commit into that base now: the middle layers are valid images that stand on it",
                        qmpsnap.Commit("vdb"))  # fmt: skip
    await stage.act("T7: a complete stream; the active layer stands alone", qmpsnap.Stream("vdb"))

    await stage.give_up("vda", "t2", *ten)
    await stage.act("the active layer and all below it go down into the base, and the disk pivots to that",
                    qmpsnap.Commit("vda"))  # fmt: skip

    for name in ("s1", "s2", "s3", "s4"):
        await stage.guest_writes(BETWEEN)
        await stage.do(qmpsnap.Snapshot(name, ("vda",)))
    print("\n   (and now four snapshots of vda, one after the other, with writes between them)")
    await stage.give_up("vda", "s2", "s3")
    await stage.act("T5: wanted is base <- s1 <- s4, by one commit: top s3, base s1",
                    qmpsnap.Commit("vda", top="s3", base="s1"))  # fmt: skip
    stage.moved("vda", "s4", str(directory / "vda.s1.qcow2"))

    await branch(stage)

    target = directory / "elsewhere" / "vda-copy.qcow2"
    target.parent.mkdir()
    await stage.act("a mirror of the whole disk to another directory, and the disk pivots to it",
                    qmpsnap.Mirror("vda", str(target), ending="pivot"))  # fmt: skip


async def branch(stage: Stage) -> None:
    """Go back to a checkpoint, memory and all, and delete snapshots here and on the branch that was left."""
    await stage.do(qmpsnap.Checkpoint("c1", "in-place"))
    for name in ("b1", "b2"):
        await stage.guest_writes(BETWEEN)
        await stage.do(qmpsnap.Snapshot(name, ("vda",)))
    await stage.act("G2: back to a checkpoint, the guest's memory and all disks; a branch begins",
                    qmpsnap.Revert("c1"))  # fmt: skip
    for name in ("c2", "c3"):
        await stage.guest_writes(BETWEEN)
        await stage.do(qmpsnap.Snapshot(name, ("vda",)))
    await stage.give_up("vda", "c2")
    await stage.act("T9, G3: one snapshot is deleted, and every other one keeps its bytes",
                    qmpsnap.Delete("c2"))  # fmt: skip
    await stage.act("one on the branch that was left: others are based on it, only the name goes",
                    qmpsnap.Delete("b1"))  # fmt: skip
    for moment in (await stage.vm.moments()).moments:
        for part in moment.held:
            stage.moved(part.disk, moment.name, part.file)


async def check(stage: Stage, chains: dict[str, tuple[str, ...]], counts: dict[str, int]) -> None:
    """Check every byte of every image once the machine is off."""
    for disk, files in chains.items():
        by_headers = await stage.tools.chain(files[0])
        if by_headers != files:
            raise WrongBytes(f"the headers say {by_headers}, QEMU said {files}")
        for file in files:
            await stage.tools.sound(file)
        await stage.tools.equal(disk, files[0], counts[disk])
        print(f"   {disk}: {qmpsnap.draw(files)} is equal to a replay of its {counts[disk]} writes")
    for disk in chains:
        moments = [moment for moment in stage.moments if moment.disk == disk]
        for moment in moments:
            await stage.tools.sound(moment.file)
        await stage.check(moments, running=False)
        print(f"   {disk}: each of its {len(moments)} moments reads what the disk held in its call:")
        for moment in moments:
            print(f"   {'':{len(disk)}}    {moment.name} in {Path(moment.file).name}")


async def while_off(
    qemu: Path, tools: Tools, chains: dict[str, tuple[str, ...]], counts: dict[str, int]
) -> None:
    """Take a snapshot of all disks without the machine, and merge one of the overlays back."""
    active = {disk: files[0] for disk, files in chains.items()}
    formats = {disk: "raw" for disk, file in active.items() if not file.endswith(".qcow2")}
    print(
        "\nthe machine is off: a snapshot of both disks, and the overlay of vda back into the layer beneath"
    )
    async with qmpsnap.offline(active, formats=formats, daemon=qemu / "qemu-storage-daemon") as vm:
        taken = await vm.snapshot("off")
        done = await vm.commit("vda", base=active["vda"])
        after = (await vm.graph()).chains()
    for disk, files in chains.items():
        print(f"   {disk}  {_drawn(files)}")
        print(f"   {'':{len(disk)}}  becomes {_drawn(taken.chains[disk])}")
    print(f"   vda  becomes {_drawn(done.chains['vda'])}")
    for disk, files in after.items():
        if await tools.chain(files[0]) != files:
            raise WrongBytes(f"the headers of {disk} do not say {files}")
        await tools.sound(files[0])
        await tools.equal(disk, files[0], counts[disk])
        print(f"   {disk}: {qmpsnap.draw(files)} is equal to a replay of its {counts[disk]} writes")


async def demonstrate(qemu: Path, directory: Path, *, show_plans: bool) -> int:
    """Boot, play, power off, check; return the number of writes."""
    disks = [
        GuestDisk(name="vda", file=directory / "vda.qcow2"),
        GuestDisk(name="vdb", file=directory / "vdb.raw", format="raw"),
    ]
    scratch = directory / "scratch"
    scratch.mkdir()
    writes: dict[str, Writes] = {}
    tools = Tools(qemu, scratch, writes, SIZE)
    for disk in disks:
        await tools.create(disk.file, disk.format)
    argv = guest_argv(qemu / "qemu-system-x86_64", disks, image=find_guest_image(), port=directory / "port")
    started = time.monotonic()
    async with (
        qmpsnap.launch(argv, name="demo") as vm,
        open_guest(directory / "port") as guest,
    ):
        print(f"a Linux guest has booted in {time.monotonic() - started:.1f} s, {accelerator()}")
        writers = {
            name: await guest.start_writer(await guest.device(name), seed=seed, blocks=BLOCKS)
            for seed, name in enumerate(("vda", "vdb"))
        }
        writes.update({name: writer.writes for name, writer in writers.items()})
        print("it writes to vda (qcow2) and to vdb (raw) from now on, all the time")
        stage = Stage(vm, guest, writers, tools=tools, show_plans=show_plans)
        await stage.guest_writes(BLOCKS // 2)
        await play(stage, directory)
        await stage.guest_writes(BETWEEN)
        chains = (await vm.graph()).chains()
        counts = {name: await writer.stop() for name, writer in writers.items()}
        await guest.poweroff()
        with anyio.fail_after(60):
            await vm.wait_lost()
    print("\nthe guest has powered itself off; now every byte, with qemu-img and qemu-io")
    await check(stage, chains, counts)
    await while_off(qemu, tools, chains, counts)
    return sum(counts.values())


def _took(done: list[qmpsnap.Done]) -> str:
    if len(done) == 1:
        return f"took {_ms(done[0].elapsed_s)}"
    return (
        f"took {_ms(sum(one.elapsed_s for one in done))}, {_ms(max(one.elapsed_s for one in done))} at most"
    )


def _standstill(done: list[qmpsnap.Done]) -> str:
    seconds = [one.standstill_s for one in done if one.standstill_s is not None]
    if not seconds:
        return "no standstill of the guest's I/O but the job's own start and end"
    if len(seconds) == 1:
        return f"the guest's I/O was paused for {_ms(seconds[0])}"
    median = _ms(statistics.median(seconds))
    return f"the guest's I/O was paused for {median} each (median), {_ms(max(seconds))} at most"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def _drawn(files: tuple[str, ...]) -> str:
    layers = qmpsnap.draw(files).split(" <- ")
    return " <- ".join(layers if len(layers) < 7 else [*layers[:3], f"{len(layers) - 5} more", *layers[-2:]])


def _names(files: tuple[str, ...]) -> str:
    names = [Path(file).name for file in files]
    return ", ".join(names) if len(names) < 5 else f"{names[0]}, {names[1]} ... {names[-1]}"


def main() -> int:
    """Run the demonstration; 0 when every byte is right."""
    parser = argparse.ArgumentParser(prog="scripts/demo")
    found = shutil.which("qemu-system-x86_64")
    parser.add_argument("--qemu", type=Path, default=Path(found or "/usr/bin/x").parent, metavar="DIRECTORY")
    parser.add_argument("--plan", action="store_true", help="print the plan of each act, with the exact QMP")
    asked = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # they end like Ctrl-C: nothing stays behind
        signal.signal(ending, lambda *_: signal.raise_signal(signal.SIGINT))
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="qmpsnap-demo-") as directory:
            count = anyio.run(partial(demonstrate, asked.qemu, Path(directory), show_plans=asked.plan))
    except KeyboardInterrupt:
        print("\nstopped; nothing of it is left", file=sys.stderr)
        return 130
    except (qmpsnap.QmpsnapError, WrongBytes, OSError) as error:
        print(f"\nFAILED: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"\nEvery byte is right after {count} writes. {time.monotonic() - started:.0f} s in all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
