"""A deletion takes one moment away: every other one reads its bytes, and is gone back to.

`Tree` knows what each moment has to read; where its bytes lie is what the product says.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from integration import states
from integration.known_images import KIB, MIB, content
from integration.machines import blockdev, drive, listing
from integration.off import offline
from qmpsnap.errors import Changed, InvalidTarget, JobFailed, NotFound
from qmpsnap.plan.intent import Delete, Prune
from qmpsnap.run.outcome import Hooks

BLOCK, COUNT = 64 * KIB, 12


@dataclass
class Tree:
    """A machine, and what its disks have to read.

    Attributes:
        reads: Pattern of each block of each disk, as the guest reads it.
        read: The same of each moment that is not deleted.
        did: What was done, for the reader of a failure.
    """

    running: object
    vm: object
    qemu: object
    kind: str
    random: random.Random
    reads: dict[str, list[int]]
    read: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    did: list[str] = field(default_factory=list)

    def write(self):
        for disk, reads in self.reads.items():
            for _ in range(self.random.randrange(4)):
                block, pattern = self.random.randrange(COUNT), self.random.randrange(1, 255)
                self.running.write(disk, pattern, block * BLOCK, BLOCK)
                reads[block] = pattern

    async def step(self, number):
        self.write()
        what = self.random.choice(["snapshot", "snapshot", "revert", "delete", "delete"])
        if what == "snapshot" or not self.read:
            name = f"n{number}"
            self.did.append(f"snapshot {name}")
            await states.take(self.vm, name, self.kind)
            self.read[name] = {disk: list(reads) for disk, reads in self.reads.items()}
        else:
            name = self.random.choice(sorted(self.read))
            self.did.append(f"{what} {name}")
            await (self.revert(name) if what == "revert" else self.delete(name))
        await self.check()

    async def revert(self, name):
        await self.vm.revert(name)
        self.reads = {disk: list(reads) for disk, reads in self.read[name].items()}

    async def delete(self, name):
        done = await self.vm.delete(name)
        self.did += done.notes
        del self.read[name]

    async def check(self):
        """Demand that each moment is listed, and that it and the guest read their bytes."""
        found = await self.vm.moments()
        assert {moment.name for moment in found.moments} == set(self.read), self.did
        for moment in found.moments:
            for part in moment.held:
                assert not part.invalid, (moment.name, self.did)
                assert states.patterns(self.qemu, part.file, BLOCK) == self.read[moment.name][part.disk], (
                    moment.name,
                    self.did,
                )
        for disk, reads in self.reads.items():
            for block, pattern in enumerate(reads):
                self.running.read(disk, pattern, block * BLOCK, BLOCK)


@pytest.mark.parametrize("seed", range(3))
async def test_every_other_moment_reads_its_bytes_whatever_is_deleted(qemu, machine, tmp_path, seed):
    kind = "in-place" if seed == 2 else "disks"
    disks = {name: qemu.create(tmp_path / f"{name}.qcow2", BLOCK * COUNT) for name in ("vda", "vdb")}
    words = [word for name, file in disks.items() for word in drive(name, file)]
    with machine(*words) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            reads = {name: [0] * COUNT for name in disks}
            tree = Tree(running, vm, qemu, kind, random.Random(f"{seed} {kind}"), reads)
            for number in range(14):
                await tree.step(number)
            for name in sorted(tree.read):
                await tree.revert(name)
                await tree.check()
            chains = (await vm.graph()).chains()
            for name in sorted(tree.read):
                await tree.delete(name)
                await tree.check()
                chains = (await vm.graph()).chains()
        running.quit()
    words = [word for name, files in chains.items() for word in drive(name, files[0])]
    with machine(*words) as running:
        tree.running = running
        for disk, reads in tree.reads.items():
            for block, pattern in enumerate(reads):
                running.read(disk, pattern, block * BLOCK, BLOCK)


ODD = ("-dash", "with space", "semi;colon", "a/b", "x" * 300, "nope", "new\nline", 'quo"te')


async def test_delete_of_a_name_that_nobody_has_changes_nothing(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.snapshot("one")
            before = listing(tmp_path)
            for name in ODD:
                with pytest.raises(NotFound):
                    await vm.delete(name)
            assert listing(tmp_path) == before


async def test_talks_chain_without_sn2_by_delete_commit_and_stream(machine, qemu, tmp_path):
    """T9: base <- sn1 <- sn2 <- sn3 becomes base <- sn1 <- sn3, down and up."""
    for way in ("down", "up", "commit", "stream"):
        place = tmp_path / way
        place.mkdir()
        base = qemu.create(place / "base.qcow2", BLOCK * COUNT)
        with machine(*drive("vda", base)) as running:
            running.qmp("cont")
            async with running.connect() as vm:
                running.write("vda", 1, 0, BLOCK * 3)
                for number, name in enumerate(("sn1", "sn2", "sn3"), 2):
                    await vm.snapshot(name)
                    # It goes where less is copied.
                    count = 6 if (way, name) in {("up", "sn2"), ("down", "sn1")} else 2
                    running.write("vda", number, BLOCK * number, BLOCK * count)
                files = (await vm.graph()).chains()["vda"]
                match way:
                    case "commit":
                        await vm.commit("vda", top="sn2", base="sn1")
                    case "stream":
                        await vm.stream("vda", into="sn3", base="sn1")
                    case _:
                        done = await vm.delete("sn2")
                        assert ("into " + files[1 if way == "up" else 2]) in done.notes[0]
                chain = (await vm.graph()).chains()["vda"]
                kept = 1 if way == "up" else 2
                assert chain == (files[0], files[kept], files[3])
                if way in {"up", "down"}:
                    names = [moment.name for moment in (await vm.moments()).moments]
                    assert names == ["sn1", "sn3"]
                    assert not Path(files[3 - kept]).exists()
            running.quit()
        with machine(*drive("vda", chain[0])) as running:
            for pattern, start, count in ((1, 0, 2), (2, 2, 1), (3, 3, 1), (4, 4, 2)):
                running.read("vda", pattern, BLOCK * start, BLOCK * count)
        for file in chain:
            qemu.check(file)


@pytest.mark.parametrize("way", ["commit", "stream"])
async def test_t9_by_commit_down_and_stream_up_with_the_machine_off(qemu, images, way):
    """T9 offline: base <- sn1 <- sn2 <- sn3 becomes base <- sn1 <- sn3."""
    base, sn1, sn2, sn3 = images("base <- sn1 <- sn2 <- sn3").files
    async with offline(qemu, {"vda": sn3}) as vm:
        if way == "commit":
            await vm.commit("vda", top="sn2", base="sn1")
        else:
            await vm.stream("vda", into="sn3", base="sn1")
        assert (await vm.graph()).chains()["vda"] == (sn3, sn1, base)
    qemu.check_chain(sn3, sn1, base)
    # What the commit has written into sn1 is sn2's; after the stream both are as before.
    assert [qemu.read(file) for file in (sn3, base)] == [content(4), content(1)]
    assert qemu.read(sn1) == content(3 if way == "commit" else 2)
    assert Path(sn2).exists() == (way == "stream") != Path(f"{sn2}.invalid").exists()
    assert way == "commit" or qemu.read(sn2) == content(3)


@pytest.mark.parametrize("way", ["down", "up"])
async def test_t9_by_deletion_with_the_machine_off(qemu, tmp_path, way):
    """T9 offline: sn2 goes, and sn1 and sn3 stay; its overlay goes down, or what is beneath it goes up."""
    base = qemu.create(tmp_path / "base.qcow2", BLOCK * COUNT)
    async with offline(qemu, {"vda": base}) as vm:
        for name in ("sn1", "sn2", "sn3"):
            await vm.snapshot(name)
        files = (await vm.graph()).chains()["vda"][::-1]
    reads = [[0] * COUNT]
    for number, file in enumerate(files):
        size = 6 if (way, number) in {("up", 2), ("down", 1)} else 2  # it goes where less is copied
        qemu.io(file, f"write -q -P {number + 1} {BLOCK * number} {BLOCK * size}")
        reads.append([*reads[-1][:number], *[number + 1] * size, *reads[-1][number + size :]])
    async with offline(qemu, {"vda": files[3]}) as vm:
        await vm.delete("sn2")
        chain = (await vm.graph()).chains()["vda"]
        assert [moment.name for moment in (await vm.moments()).moments] == ["sn1", "sn3"]
    dropped, kept = files[1:3] if way == "up" else files[2:0:-1]
    assert chain == (files[3], kept, base)
    qemu.check_chain(*chain)
    # sn1 is what base holds, sn3 what the layer between holds.
    assert [states.patterns(qemu, file, BLOCK) for file in chain] == [reads[4], reads[3], reads[1]]
    assert not Path(dropped).exists()


async def test_delete_without_space_leaves_every_other_moment_and_goes_on_with_space(machine, qemu, small):
    place = small("3m")
    base = qemu.create(place / "base.qcow2", MIB * 4)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.snapshot("one")
            running.write("vda", 1, 0, BLOCK * 4)
            await vm.snapshot("two")
            running.write("vda", 2, MIB, BLOCK * 8)
            filler = place / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            with pytest.raises((JobFailed, InvalidTarget)) as caught:
                await vm.delete("two")
            assert caught.value.changed is not Changed.UNKNOWN
            names = [moment.name for moment in (await vm.moments()).moments]
            assert names == ["one", "two"]
            assert states.patterns(qemu, base, BLOCK)[:4] == [0] * 4
            running.read("vda", 1, 0, BLOCK * 4)
            running.read("vda", 2, MIB, BLOCK * 8)
            filler.unlink()
            await vm.delete("two")
            assert [moment.name for moment in (await vm.moments()).moments] == ["one"]
            running.read("vda", 1, 0, BLOCK * 4)
            running.read("vda", 2, MIB, BLOCK * 8)


async def test_prune_folds_a_chain_with_the_fewest_bytes_and_a_dry_run_says_so(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK * COUNT)
    with machine(*blockdev("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for number in range(6):
                await vm.snapshot(f"n{number}")
                running.write("vda", number + 1, BLOCK * number, BLOCK * (6 if number == 1 else 1))
            plan = await vm.plan(Prune(keep_last=2))
            jobs = [part.start.command for part in plan.parts]
            assert jobs == ["block-stream", "block-commit"]
            assert len((await vm.graph()).chains()["vda"]) == 7
            done = await vm.run(plan)
            assert (len(done.chains["vda"]), done.changed) == (3, True)
            assert [moment.name for moment in (await vm.moments()).moments] == ["n4", "n5"]
            assert (await vm.prune(keep_last=2)).changed is False
            done = await vm.prune(max_depth=1)
            assert (await vm.moments()).moments == ()
            chain = (await vm.graph()).chains()["vda"]
            assert len(chain) == 1
            for number in range(6):
                running.read("vda", number + 1, BLOCK * number, BLOCK)
        running.quit()
    with machine(*blockdev("vda", chain[0])) as running:
        for number in range(6):
            running.read("vda", number + 1, BLOCK * number, BLOCK)


async def test_delete_and_prune_of_a_machine_that_is_off(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK * 8)
    other = qemu.create(tmp_path / "other.qcow2", BLOCK * 8)
    with machine(*drive("vda", base), *drive("vdb", other)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for number, name in enumerate(("m1", "m2", "m3", "m4"), 1):
                running.write("vda", number, BLOCK * number, BLOCK)
                running.write("vdb", number, 0, BLOCK)
                await vm.snapshot(name)
            running.write("vda", 9, 0, BLOCK)
            chains = (await vm.graph()).chains()
            active, vdb = (chains[disk][0] for disk in ("vda", "vdb"))
    async with offline(qemu, {"vda": active}) as vm:  # without vdb, whose snapshots stay
        gone = await vm.delete("m2")
        assert [
            note
            for note in gone.notes
            if f"'m2' is deleted from vda only, and stays on vdb ({chains['vdb'][3]})" in note
        ]
        pruned = await vm.prune(keep_last=1)
        (left,) = (await vm.moments()).moments
        active = (await vm.graph()).chains()["vda"][0]
    assert (left.name, gone.deleted, pruned.deleted) == ("m4", ("m2",), ("m1", "m3"))
    async with offline(qemu, {"vda": active, "vdb": vdb}) as vm:
        assert [(one.name, one.disks) for one in (await vm.moments()).moments] == [
            ("m1", ("vdb",)), ("m2", ("vdb",)), ("m3", ("vdb",)), ("m4", ("vda", "vdb"))
        ]  # fmt: skip
        assert (await vm.graph()).chains()["vdb"] == chains["vdb"]
        await vm.delete("m2")
        held = {moment.name: moment.held[-1].file for moment in (await vm.moments()).moments}
    read = {name: states.patterns(qemu, file, BLOCK)[0] for name, file in held.items()}
    assert read == {"m1": 1, "m3": 3, "m4": 4}
    assert states.patterns(qemu, left.held[0].file, BLOCK) == [0, 1, 2, 3, 4, 0, 0, 0]
    assert states.patterns(qemu, active, BLOCK) == [9, 1, 2, 3, 4, 0, 0, 0]
    async with offline(qemu, {"vda": active}) as vm:
        done = await vm.delete("m4")
    assert len(done.chains["vda"]) == 1
    assert states.patterns(qemu, done.chains["vda"][0], BLOCK) == [9, 1, 2, 3, 4, 0, 0, 0]


async def test_delete_leaves_a_file_that_its_header_shows_to_be_another_one(machine, qemu, tmp_path):
    """As where another client has merged the layer beneath since the deletion was planned."""
    base = qemu.create(tmp_path / "base.qcow2", BLOCK * COUNT)
    file = tmp_path / "base.n3.qcow2"

    def exchange(_):
        file.write_bytes(file.read_bytes().replace(b"/base.n2.qcow2", b"/base.n1.qcow2", 1))

    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for number in range(4):
                running.write("vda", number + 1, number * BLOCK, BLOCK)
                await vm.snapshot(f"n{number}")
            running.write("vda", 5, 4 * BLOCK, BLOCK)
            done = await vm.run(await vm.plan(Delete("n3")), hooks=Hooks(on_pivot=exchange))
            says = f"{file} stays: its header names '{tmp_path}/base.n1.qcow2' as its backing file"
            assert [note for note in done.notes if note.startswith(says)]
            assert (str(file) in done.invalid, file.exists()) == (True, True)
            assert await vm.jobs.interrupted() == ()
            found = (await vm.moments()).moments
            assert [moment.name for moment in found] == ["n0", "n1", "n2"]
            for moment, reads in zip(found, ([1], [1, 2], [1, 2, 3]), strict=True):
                assert not moment.held[0].invalid
                patterns = states.patterns(qemu, moment.held[0].file, BLOCK)
                assert patterns == reads + [0] * (COUNT - len(reads))
            for number in range(5):
                running.read("vda", number + 1, number * BLOCK, BLOCK)
