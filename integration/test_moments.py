"""Which moments a commit or a stream costs, and where each of the others lies: as told, and byte by byte.

`Disk` is the table, written down once more: it knows what every file reads, and which names a step costs.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import pytest

from integration import states
from integration.known_images import KIB
from integration.machines import drive
from qmpsnap.errors import Detached, NotFound, NotInChain, StillNeeded, Unsupported
from qmpsnap.plan.intent import Commit, Mirror, Stream
from qmpsnap.run.outcome import Hooks

BLOCK, COUNT = 64 * KIB, 12


@dataclass
class Disk:
    """A disk as it has to be.

    Attributes:
        chain: Its files, active first.
        reads: Pattern of each block, as the guest reads it.
        lies: Where each moment lies that can be gone back to, by name.
        read: What the disk read at each moment.
        overlays: The overlay that began at each moment.
        below: The file that each file stands on.
        lost: Names of moments that are lost.
    """

    chain: list[str]
    reads: list[int] = field(default_factory=lambda: [0] * COUNT)
    lies: dict[str, str] = field(default_factory=dict)
    read: dict[str, list[int]] = field(default_factory=dict)
    overlays: dict[str, str] = field(default_factory=dict)
    below: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def snapshot(self, name, overlay):
        self.lies[name], self.read[name], self.overlays[name] = self.chain[0], list(self.reads), overlay
        self.below[overlay] = self.chain[0]
        self.chain.insert(0, overlay)

    def commit(self, top, base, *, keep=False):
        """The layers from `top` to just above `base` go down; return the names that this costs."""
        folded, into = self.chain[top:base], self.chain[base]
        written = {*folded[1:], into}
        costs = {name for name, file in self.lies.items() if file in written}
        if not keep:
            for name, file in self.lies.items():
                if file == folded[0]:
                    self.lies[name] = into
            if top:
                self.below[self.chain[top - 1]] = into
            del self.chain[top:base]
        self._forget(costs)
        return costs

    def stream(self, into, base):
        """The layers between go out of the chain, and nothing is lost."""
        gone = self.chain[into + 1 : base]
        self.below[self.chain[into]] = self.chain[base] if base < len(self.chain) else ""
        del self.chain[into + 1 : base]
        assert gone

    def revert(self, name, overlay):
        self.below[overlay] = self.lies[name]
        self.chain = [overlay]
        while below := self.below.get(self.chain[-1]):
            self.chain.append(below)
        self.reads = list(self.read[name])

    def _forget(self, names):
        self.lost |= names
        for name in names:
            del self.lies[name]


@dataclass
class Walk:
    """A machine, and what its disk has to be."""

    running: object
    vm: object
    qemu: object
    disk: Disk
    kind: str
    random: random.Random
    records: Path
    did: list[str] = field(default_factory=list)

    def write(self):
        block, pattern = self.random.randrange(COUNT), self.random.randrange(1, 255)
        self.running.write("vda", pattern, block * BLOCK, BLOCK)
        self.disk.reads[block] = pattern

    async def step(self, number):
        self.write()
        depth = len(self.disk.chain)
        what = self.random.choice(["snapshot", "commit", "commit", "stream", "keep", "revert"])
        if what == "snapshot" or depth < 3:
            done = await states.take(self.vm, f"n{number}", self.kind)
            self.did.append(f"snapshot n{number}")
            self.disk.snapshot(f"n{number}", done.chains["vda"][0])
        elif what == "stream":
            into = self.random.randrange(depth - 2)
            base = self.random.randrange(into + 2, depth + 1)
            kept = self.disk.chain[base] if base < depth else None
            await self.vm.stream("vda", into=self.disk.chain[into], base=kept)
            self.did.append(f"stream into {into}, kept {base}")
            self.disk.stream(into, base)
        elif what == "revert" and self.disk.lies:
            await self.revert(self.random.choice(sorted(self.disk.lies)))
        elif what != "revert":
            await self.commit(what)
        await self.check()

    async def commit(self, what):
        depth = len(self.disk.chain)
        keep = what == "keep"
        top = 0 if keep else self.random.randrange(depth - 1)
        base = self.random.randrange(top + 1, depth)
        files = {"top": self.disk.chain[top], "base": self.disk.chain[base]}
        try:
            done = await self.vm.commit("vda", **files, keep_overlay=keep, folded="remove")
        except StillNeeded:  # a revert has left something aside that stands there
            return
        self.did.append(f"{what} {top} into {base}")
        costs = self.disk.commit(top, base, keep=keep)
        told = " ".join(done.notes)
        assert costs == {name for name in {*costs, *self.disk.lies} if f"{name!r} is lost" in told}

    async def revert(self, name):
        try:
            done = await self.vm.revert(name)
        except Unsupported as error:  # QEMU has a layer below open read-write since a commit kept its overlay
            if "open read-write" not in str(error):
                raise
            return
        self.did.append(f"revert {name}")
        self.disk.revert(name, done.chains["vda"][0])

    async def check(self):
        """Demand that the list agrees with the table, and the bytes with both."""
        assert (await self.vm.graph()).chains()["vda"] == tuple(self.disk.chain)
        all_moments = await self.vm.moments()
        moments = {one.name: one for one in all_moments.moments}
        told = {name: one.held[0] for name, one in moments.items()}
        for name, file in self.disk.lies.items():
            assert name in told, f"{name} is not listed, after {self.did}"
            assert (told[name].file, told[name].invalid) == (file, False), name
            assert states.patterns(self.qemu, file, BLOCK) == self.disk.read[name], name
        for name in self.disk.lost & set(told):
            assert told[name].invalid, name
        if self.kind != "disks":
            needed = {moments[name].vm_state_file for name in self.disk.lies}
            lie = {str(file) for file in Path(self.disk.chain[0]).parent.glob("*.vmstate.qcow2")}
            assert needed <= lie
            names = {file.removesuffix(".vmstate.qcow2").rpartition(".")[2] for file in lie}
            assert {name for name in names if not [*self.records.glob(f"moment-{name}-*")]} == set()
        assert all_moments.unneeded == ()


@pytest.mark.one_qemu
@pytest.mark.parametrize("seed", range(4))
async def test_moments_are_where_they_are_told_to_be(qemu, machine, tmp_path, kind, seed, leftovers):
    state = tmp_path / "state"
    base = qemu.create(tmp_path / "base.qcow2", BLOCK * COUNT)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect(state_dir=str(state)) as vm:
            walk = Walk(running, vm, qemu, Disk([base]), kind, random.Random(f"{seed} {kind}"), state)
            for number in range(12):
                await walk.step(number)
            for name in sorted(walk.disk.lost):
                with pytest.raises((NotInChain, NotFound)):
                    await walk.revert(name)
            for name in sorted(walk.disk.lies):
                await walk.revert(name)
                for block, pattern in enumerate(walk.disk.reads):
                    running.read("vda", pattern, block * BLOCK, BLOCK)
                await walk.check()
    leftovers.allow(*state.glob("intent-qmpsnap-commit-keep-*"))  # which say what the kept overlays cost


@pytest.mark.parametrize("mode", states.MODES)
async def test_vm_state_goes_with_the_moment_and_what_nobody_needs_is_listed(machine, qemu, tmp_path, mode):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    other = tmp_path / "base.other.memory"
    other.write_bytes(b"somebody's")
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode=mode)
            (one,) = (await vm.moments()).moments
            file, record = Path(one.vm_state_file), one.record
            assert file.stat().st_mode & 0o777 == 0o600
            kept = tmp_path / "kept"
            os.link(file, kept)
            done = await vm.commit("vda")
            assert not file.exists()
            assert f"its VM state {file} with it" in " ".join(done.notes)
            assert (await vm.moments()).unneeded == ()
            kept.rename(file)  # as an earlier version left it, or a commit that could not remove it
            partial = tmp_path / f"base.c2.{states.ENDINGS[mode]}.{record.id[-8:]}.partial"
            partial.touch()
            assert (await vm.moments()).unneeded == tuple(sorted([str(file), str(partial)]))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda _: Stream("vda"), id="stream"),
        pytest.param(lambda _: Commit("vda", top="two", base="one"), id="commit"),
        pytest.param(lambda folder: Mirror("vda", f"{folder}/copy.qcow2", ending="pivot"), id="mirror"),
    ],
)
async def test_whoever_ends_an_operation_tells_all_that_its_result_would_have_told(
    machine, qemu, tmp_path, make
):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK * COUNT)
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            for name in ("one", "two", "three"):
                running.write("vda", 7, 0, BLOCK)
                await vm.snapshot(name)
            plan = await vm.plan(replace(make(tmp_path), speed=KIB))
            detach = anyio.Event()
            detach.set()
            with pytest.raises(Detached) as caught:
                await vm.run(plan, Hooks(detach=detach))
            await vm.jobs.set_speed(caught.value.job_id, 0)
            done = await vm.jobs.wait(caught.value.job_id)
            assert {*done.notes} >= {*plan.notes} != set()


async def test_moments_whose_layers_stay_after_a_stream_are_listed(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            for name in ("one", "two", "three"):
                await vm.snapshot(name)
            await vm.stream("vda", base=base)
            assert [one.name for one in (await vm.moments()).moments] == ["one", "two", "three"]


async def test_moments_inside_layers_that_a_revert_left_are_listed(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.snapshot("one")
            await vm.snapshot("inside", inside=True)
            await vm.revert("one")
            assert "inside" in [one.name for one in (await vm.moments()).moments]


async def test_checkpoint_is_taken_again_under_the_name_of_one_that_was_deleted(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    qemu.create(tmp_path / "other.qcow2", BLOCK, backing=base)  # so that the layer of "a" stays
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("a", mode="in-place")
            await vm.delete("a")
            done = await vm.checkpoint("a", mode="in-place")
            assert [Path(file).name for file in done.chains["vda"]] == [
                "base.a-2.qcow2", "base.a.qcow2", "base.qcow2",
            ]  # fmt: skip
            await vm.revert("a")
            await vm.delete("a")
