"""Layers to which somebody else has written after a snapshot, as they are reported.

First what we and QEMU do to the files of layers, after which nothing may be reported; then what others do.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration import states
from integration.helpers import launcher
from integration.known_images import KIB, MIB
from integration.machines import WAYS, blockdev, drive, wait_for
from integration.off import offline
from qmpsnap.errors import MachineDiffers
from qmpsnap.model.record_file import from_json
from qmpsnap.plan.intent import Revert
from qmpsnap.run.outcome import Hooks

WRITE = (0xA1, 0, 256 * KIB)


def chained(*files, base_format="qcow2", **options):
    """The arguments of a disk whose layers are nodes of their own, active first, all open for writing."""
    words, formats = [], {len(files) - 1: base_format}
    for at in reversed(range(len(files))):
        below = {"backing": f"n{at + 1}"} if at + 1 < len(files) else {}
        form = formats.get(at, "qcow2")
        node = {"driver": form, "node-name": f"n{at}", "file": {"driver": "file", "filename": files[at]}}
        words += ["-blockdev", json.dumps({**node, **below, **options})]
    return (*words, "-device", "virtio-blk-pci,drive=n0,id=vda")


async def told(vm):
    """What is said to be written to: names of snapshots, and of the file."""
    moments = (await vm.moments()).moments
    parts = [part for moment in moments for part in moment.held]
    return {(layer.moment, Path(layer.file).name) for part in parts for layer in part.written}


def modified(file):
    return Path(file).stat().st_mtime_ns


def stamps(place):
    """How many layers the records in a directory could tell of."""
    records = [from_json(file.read_text()) for file in Path(place).rglob("moment-*.json")]
    return sum(len(record.stamps) for record in records)


# -- what is not told ------------------------------------------------------------------------------


def started(kind, chain):
    """How a machine is started on a chain, active first."""
    if kind == "raw" and len(chain) == 1:
        return blockdev("vda", chain[0], "raw")
    if kind in {"chained", "raw-chained"}:
        return chained(*chain, base_format="raw" if kind == "raw-chained" else "qcow2")
    if kind == "copy-on-read":
        image, device = drive("vda", chain[0])[1:4:2]
        return ("-drive", f"{image},copy-on-read=on", "-device", device)
    if kind == "lazy":
        image, device = drive("vda", chain[0])[1:4:2]
        return ("-drive", f"{image},lazy-refcounts=on,cache=none", "-device", device)
    return WAYS.get(kind, blockdev)("vda", chain[0])


class Life:
    """A machine that is driven from one state to the next; nothing may be told after any step."""

    def __init__(self, machine, kind, base):
        self._machine, self._kind, self.chain = machine, kind, [base]
        self._patterns = itertools.count(1)

    @asynccontextmanager
    async def run(self, *, killed=False):
        """The machine, which is ended then."""
        with self._machine(*started(self._kind, self.chain)) as running:
            running.qmp("cont")
            async with running.connect() as vm:
                self._running, self.vm = running, vm
                await self.still()
                yield vm
                await self.still()
                self.chain = (await vm.graph()).chains()["vda"]
            if killed:
                running.kill()

    async def still(self):
        assert await told(self.vm) == set()

    async def take(self, *names, kind="disks"):
        """Take snapshots, the guest writing before each of them and afterwards."""
        for name in names:
            self.write()
            await states.take(self.vm, name, kind)
            await self.still()
        self.write()

    def write(self):
        number = next(self._patterns)
        self._running.write("vda", number, 64 * KIB * (number * 7 % 64), 128 * KIB)
        self._running.read("vda", 0, 7 * MIB, 64 * KIB)


@pytest.mark.one_qemu
@pytest.mark.parametrize("kind", ["lazy", "chained", "raw-chained", "copy-on-read"])
async def test_nothing_is_told_of_what_we_and_qemu_do(machine, qemu, tmp_path, kind):
    base = qemu.create(tmp_path / "base.img", 8 * MIB, form="raw" if kind.startswith("raw") else "qcow2")
    if kind in {"chained", "copy-on-read"}:  # QEMU writes a bitmap at each start and end
        qemu.img("bitmap", "-f", "qcow2", "--add", base, "b0")
    life = Life(machine, kind, base)
    async with life.run() as vm:
        await life.take("a", "b")
        await life.take("c", kind="in-place")
        await life.take("d", "e")
        assert stamps(tmp_path) >= (0 if kind == "copy-on-read" else 5)
        await vm.revert("c")
        await life.still()
        await vm.delete("b")
        await life.take("f", "g", "h")
        await vm.stream("vda", into="g", base=base)
    async with life.run(killed=True) as vm:
        await life.take("i", "j")
        await vm.commit("vda", top="i", base=life.chain[0])
    async with life.run() as vm:
        await life.take("k", "l")
        await vm.prune(keep_last=2)
        await life.take("m")
        await vm.mirror("vda", tmp_path / "copy.qcow2", ending="pivot", sync="top")
    for name in ("n", "o"):
        async with offline(qemu, {"vda": life.chain[0]}) as vm:
            assert await told(vm) == set()
            await vm.snapshot(name)
            await vm.snapshot(f"{name}{name}")
            await vm.delete(f"{name}{name}")
            await vm.revert(name)
            assert await told(vm) == set()
            life.chain = (await vm.graph()).chains()["vda"]


async def test_nothing_is_told_of_what_is_moved_or_copied(machine, qemu, tmp_path):
    place = tmp_path / "one"
    place.mkdir()
    base = qemu.create(place / "base.qcow2")
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            running.write("vda", *WRITE)
            await vm.snapshot("s1")
            running.write("vda", *WRITE)
            await vm.snapshot("s2")
    assert stamps(place) == 3
    names = sorted(path.name for path in place.glob("*.qcow2"))
    assert len(names) == 3
    for name, backing in (("base.s1.qcow2", "base.qcow2"), ("base.s2.qcow2", "base.s1.qcow2")):
        qemu.img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, place / name)
    copied, plain, moved = (tmp_path / name for name in ("two", "three", "four"))
    shutil.copytree(place, copied)  # cp -a
    shutil.copytree(place, plain, copy_function=shutil.copyfile)
    place.rename(moved)
    for where in (copied, plain, moved):
        async with offline(qemu, {"vda": where / "base.s2.qcow2"}) as vm:
            assert await told(vm) == set()
    qemu.io(moved / "base.qcow2", "write -q -P 9 0 64k")
    async with offline(qemu, {"vda": moved / "base.s2.qcow2"}) as vm:
        assert await told(vm) == {("s1", "base.qcow2"), ("s2", "base.qcow2")}


async def test_nothing_is_told_of_a_job_of_ours_that_runs_or_was_cancelled(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2")
    second = ("-qmp", f"unix:{tmp_path}/second,server=on,wait=off")
    with machine(*drive("vda", base), extra=second) as running:
        running.qmp("cont")
        async with running.connect() as vm, qmpsnap.connect(f"{tmp_path}/second") as second:
            for name, length in (("s1", 64 * KIB), ("s2", 4 * MIB), ("s3", 64 * KIB)):
                running.write("vda", 1, 0, length)
                await vm.snapshot(name)
            into = (await vm.graph()).chains()["vda"][1]
            was, seen = modified(into), []

            async def look(progress):
                if progress.job.offset and modified(into) > was:
                    seen.append(await told(second))
                    scope.cancel()

            with anyio.CancelScope() as scope:
                await vm.stream("vda", into="s2", base=base, speed=MIB // 4, hooks=Hooks(look, interval=0.05))
            assert set().union(*seen) == set()
            assert seen
            assert modified(into) > was
            assert await told(vm) == set()
        running.quit()
        qemu.io(into, "write -q -P 9 0 64k")  # from then on it is told again
    async with offline(qemu, {"vda": tmp_path / "base.s3.qcow2"}) as vm:
        assert await told(vm) == {("s3", "base.s2.qcow2")}


# -- what is told ----------------------------------------------------------------------------------


async def test_a_commit_of_another_client_is_told(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2")
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            await vm.snapshot("s1")
            running.write("vda", *WRITE)
            await vm.snapshot("s2")
            running.write("vda", *WRITE)
            assert await told(vm) == set()
            running.qmp(
                "block-commit",
                {
                    "job-id": "c",
                    "device": "drive-vda",
                    "top": f"{tmp_path}/base.s1.qcow2",
                    "auto-dismiss": False,
                },
            )
            wait_for(lambda: running.qmp("query-jobs")[0]["status"] == "concluded")
            running.qmp("job-dismiss", id="c")
            # s2.qcow2 has another backing file in its header; s1 is gone.
            assert await told(vm) == {("s1", "base.qcow2"), ("s2", "base.qcow2")}


@pytest.mark.parametrize("how", ["commit -d", "qemu-io", "machine", "rebase"])
async def test_what_others_write_while_the_machine_is_off_is_told(machine, qemu, tmp_path, how):
    base = qemu.create(tmp_path / "base.qcow2")
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            running.write("vda", 1, 0, 64 * KIB)
            await vm.snapshot("s1")
            running.write("vda", 2, 0, 64 * KIB)
            (overlay, _) = (await vm.graph()).chains()["vda"]
    match how:
        case "commit -d":
            qemu.img("commit", "-q", "-d", "-f", "qcow2", overlay)
        case "qemu-io":
            qemu.io(base, "write -q -P 3 0 64k")
        case "machine":
            with machine(*drive("vda", base)) as running:
                running.write("vda", 3, 0, 64 * KIB)
        case "rebase":
            qemu.img("check", "-q", "-f", "qcow2", base)  # reads alone
            async with offline(qemu, {"vda": overlay}) as vm:
                assert await told(vm) == set()
            os.utime(base)
    with machine(*drive("vda", overlay)) as running:
        async with running.connect() as vm:
            assert await told(vm) == {("s1", "base.qcow2")}
            (note,) = [note for note in (await vm.plan(Revert("s1"))).notes if "not by qmpsnap" in note]
            assert note.startswith(f"{base}, from which 's1' of vda is read, was written to at ")
            (finding,) = [each for each in await vm.diagnose() if each.is_trouble]
            assert (finding.code, finding.subject) == ("layer-written", base)
            assert note in (await vm.revert("s1")).notes


async def test_memory_is_not_loaded_with_a_disk_that_others_have_written_to(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2")
    with machine(*blockdev("vda", base)) as running:
        async with running.connect() as vm:
            running.write("vda", 1, 0, 64 * KIB)
            await vm.checkpoint("c1", mode="in-place")
            running.write("vda", 2, 0, 64 * KIB)
            await vm.revert("c1")
            was = modified(base)
            with Path(base).open("r+b", buffering=0) as file:
                file.seek(6 * MIB)
                file.write(b"x")
            assert [layer.file for view in await vm.views("c1") for layer in view.written_since] == [base]
            with pytest.raises(MachineDiffers, match=r"was written to at .* and not by qmpsnap"):
                await vm.freeze_template(tmp_path / "template", of="c1", launcher=launcher(qemu))
            with pytest.raises(MachineDiffers, match=r"was written to at .* and not by qmpsnap") as caught:
                await vm.revert("c1")
            assert str(base) in caught.value.hint
            (command,) = [part for part in caught.value.hint.split(": ") if part.startswith("touch -d ")]
            assert os.system(command) == 0
            assert modified(base) == was
            await vm.revert("c1")
            assert await told(vm) == set()
