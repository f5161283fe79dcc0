"""A template of a guest and its clones: each goes on from the template's count, and sees no other's."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.counter import Counter
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import CHEAP, SOON, blockdev, listing, wait_for
from qmpsnap.errors import (
    Busy,
    ConnectFailed,
    InvalidTarget,
    MachineDiffers,
    StillNeeded,
    TargetExists,
)
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.machine import PORT_NAME, guest_machine

WRITE, LATER = (0xA1, 6 * MIB, 64 * KIB), (0xA2, 7 * MIB, 64 * KIB)


def sums(template):
    files = (*template.record.files(template.directory), *template.record.keepers)
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


async def test_ten_clones_of_a_guest_go_on_each_for_itself(qemu, tmp_path, times):
    """Also a checkpoint inside a clone, which goes back in place; and nothing of the clones stays."""
    folder = tmp_path / "images"
    folder.mkdir()
    vda = qemu.create(folder / "base.qcow2")
    disk = qmpsnap.MachineDisk(name="vda", file=vda)
    async with qmpsnap.launch(guest_machine(qemu.system, [disk], memory_mib=128)) as vm:
        guest = Guest(vm.port(PORT_NAME))
        await guest.wait_ready()
        device = await guest.device("vda")

        def counter(of):
            return Counter(Guest(of.port(PORT_NAME)), {"vda": device})

        await counter(vm).set(7)
        template = await vm.freeze_template(tmp_path / "template", name="t1")
        assert template.taken.standstill_s < SOON
        await counter(vm).set(8)
        frozen = sums(template)
        async with AsyncExitStack() as stack:

            async def begin(number):
                clone = await stack.enter_async_context(template.clone(directory=tmp_path))
                assert await counter(clone).get() == {"RAM": "7", "vda": "7"}
                await counter(clone).set(100 + number)
                return clone

            clones = await asyncio.gather(*(begin(number) for number in times(10)))
            await clones[0].checkpoint("inside", mode="in-place")
            await counter(clones[0]).set(5)
            await clones[0].revert("inside")
            counts = await asyncio.gather(*(counter(clone).get() for clone in clones))
            assert counts == [{"RAM": str(100 + number), "vda": str(100 + number)} for number in times(10)]
        assert sums(template) == frozen
        assert await counter(vm).get() == {"RAM": "8", "vda": "8"}
        await template.remove()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
        await vm.delete("t1")
        assert [name for name in listing(folder) if "t1" in name and not name.endswith("qcow2")] == []
        async with vm.fork(2, launcher=overlapping(vm, 2), directory=tmp_path) as children:
            async for child in children:
                assert await counter(child.vm).get() == {"RAM": "8", "vda": "8"}
                await counter(child.vm).set(20 + child.number)
        assert await counter(vm).get() == {"RAM": "8", "vda": "8"}


def overlapping(vm, count):
    """A launcher whose helper loads the guest's memory only once the QEMUs of all children map it."""
    mapped, all_map = [], anyio.Event()

    @asynccontextmanager
    async def start(given):
        async with vm.launcher(given) as qemu:
            perform = qemu._target.perform

            async def performed(step):
                if step.command == "migrate-incoming":
                    with anyio.fail_after(60):
                        await all_map.wait()
                return await perform(step)

            if given.memory.share:
                qemu._target.perform = performed
            else:
                mapped.append(qemu.pid)
                if len(mapped) == count:
                    all_map.set()
            yield qemu

    return start


def launcher(qemu, *extra, arguments=None):
    def start(given):
        disks = *blockdev("vda", given.disks["vda"]), *blockdev("vdb", given.disks["vdb"])
        added = given.arguments if arguments is None else arguments(given)
        return qmpsnap.launch([qemu.system, *CHEAP, *disks, *extra, *added])

    return start


def shared(given):
    """The arguments of a launcher that lets a clone write into the template's memory."""
    return [word.replace('"share": false', '"share": true') for word in given.arguments]


def bare(_):
    """The arguments of a launcher that leaves the memory out."""
    return "-S", "-incoming", "defer"


def cancelling(start, scope):
    """A launcher whose caller is cancelled once QEMU runs."""

    @asynccontextmanager
    async def launch(given):
        async with start(given) as vm:
            scope.cancel()
            yield vm

    return launch


@pytest.fixture
def two(images):
    return images("base <- s1", folder="a"), images("base", folder="b", base_format="raw")


async def test_template_that_cannot_be_made_leaves_nothing(qemu, two, machine, tmp_path):
    vda, vdb = two
    place = tmp_path / "t1"
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            before = listing(running.folder)
            cases = [
                (None, qmpsnap.BadArgument, "launcher"),
                (launcher(qemu, "-device", "virtio-rng-pci,id=rng"), MachineDiffers, "another device, rng"),
                (launcher(qemu, "-m", "96"), ConnectFailed, "memory size"),
                (launcher(qemu, arguments=bare), MachineDiffers, "did not use the memory"),
            ]
            for start, error, text in cases:
                with pytest.raises(error, match=text):
                    await vm.freeze_template(place, launcher=start)
                assert listing(running.folder) == before
                chains = {"vda": tuple(vda.files[::-1]), "vdb": tuple(vdb.files[::-1])}
                assert (await vm.graph()).chains() == chains
            with anyio.CancelScope() as scope:
                await vm.freeze_template(place, launcher=cancelling(launcher(qemu), scope))
            assert scope.cancelled_caught
            assert (listing(running.folder), (await vm.status()).running) == (before, True)


async def test_template_is_refused_before_the_guest_is_paused_where_it_cannot_be_made(
    qemu, two, machine, tmp_path
):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            running.qmp.events.clear()
            for place, error in [(tmp_path, TargetExists), (tmp_path / "no" / "t1", InvalidTarget)]:
                with pytest.raises(error):
                    await vm.freeze_template(place, launcher=launcher(qemu), name="t1")
            running.qmp("query-status")
            assert running.qmp.events == []


async def test_template_keeps_its_layers_and_is_refused_once_one_was_written_to(qemu, two, machine, tmp_path):
    vda, vdb = two
    place = tmp_path / "t1"
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            template = await vm.freeze_template(place, launcher=launcher(qemu))
            running.write("vda", *LATER)
            with pytest.raises(TargetExists):
                await vm.freeze_template(place, launcher=launcher(qemu), name="t2")
            shutil.copytree(place, tmp_path / "copy")
            assert (await qmpsnap.remove_template(tmp_path / "copy"), (tmp_path / "copy").exists()) == (
                (),
                False,
            )
            for disk in ("vda", "vdb"):
                with pytest.raises(StillNeeded, match=r"t1-\w{8}\.template\.qcow2"):
                    await vm.commit(disk)
            assert (await vm.plan(qmpsnap.Delete("t1"))).jobs == ()
            active = (await vm.graph()).disks["vda"].files[0]
    frozen = sums(template)
    template = await qmpsnap.open_template(place)
    for start, text in [
        (launcher(qemu, "-device", "virtio-rng-pci,id=rng"), "another device, rng"),
        (launcher(qemu, arguments=bare), "memory that it was given"),
        (launcher(qemu, arguments=shared), "share"),
    ]:
        with pytest.raises((MachineDiffers, ConnectFailed), match=text):
            async with template.clone(launcher=start, directory=tmp_path, keep=tmp_path / "kept"):
                raise AssertionError
    async with template.clone(launcher=launcher(qemu), keep=tmp_path / "kept") as clone:
        graph = await clone.graph()
        assert graph.disks["vda"].files == (str(tmp_path / "kept" / "vda.qcow2"), *vda.files[::-1])
        with pytest.raises(Busy, match="is running"):
            await template.remove()
    assert qemu.read(tmp_path / "kept" / "vda.qcow2") == overwritten(content(2), WRITE)
    assert sums(template) == frozen
    os.utime(vda.files[0])
    with pytest.raises(InvalidTarget, match="has been written to"):
        async with template.clone(launcher=launcher(qemu), directory=tmp_path):
            raise AssertionError
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a", "b", "t1", "kept"}
    await template.remove()
    assert [path for path in template.record.keepers if Path(path).exists()] == []
    kept = [str(tmp_path / name) for name in listing(tmp_path) if "template" in name]
    assert len(kept) == len(template.record.keepers)  # each layer is needed by the clone that was kept
    async with qmpsnap.offline(vda=active, daemon=qemu.directory / "qemu-storage-daemon") as vm:
        with pytest.raises(StillNeeded, match=rf"for the overlays of a clone in '{tmp_path}/kept'\)"):
            await vm.commit("vda")
        with pytest.raises(Busy, match="overlays of a clone"):
            await qmpsnap.remove_template(kept[0])
        shutil.rmtree(tmp_path / "kept")
        with pytest.raises(StillNeeded, match="which is gone") as caught:
            await vm.commit("vda")
        assert caught.value.hint.endswith(f"qmpsnap template --remove {caught.value.by[0]}")
        assert sorted(await qmpsnap.remove_template(caught.value.by[0])) == sorted(kept)
        await vm.commit("vda")


_KILLED = """
import asyncio, sys
import qmpsnap
def start(given):
    argv = [word.replace("DISK", given.disks.get("vda", "")) for word in sys.argv[3:]]
    return qmpsnap.launch([*argv, *given.arguments])
async def main():
    template = await qmpsnap.open_template(sys.argv[1], launcher=start)
    async with template.clone(directory=sys.argv[2]) as vm:
        print(vm.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_clone_whose_process_is_killed_leaves_what_the_next_removes(qemu, images, tmp_path):
    vda, place = images("base"), tmp_path / "run"
    place.mkdir()
    argv = [qemu.system, *CHEAP, *blockdev("vda", "DISK")]

    def start(given):
        words = [str(word).replace("DISK", str(given.disks.get("vda", vda.active))) for word in argv]
        return qmpsnap.launch([*words, *given.arguments])

    async with start(qmpsnap.Start()) as vm:
        template = await vm.freeze_template(tmp_path / "t1", launcher=start)
    script = [sys.executable, "-c", _KILLED, str(tmp_path / "t1"), str(place), *map(str, argv)]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}/cmdline").exists(), "the end of QEMU")
    (left,) = place.iterdir()
    async with template.clone(directory=place) as clone:
        assert (await clone.status()).running
        assert not left.exists()
    assert list(place.iterdir()) == []
